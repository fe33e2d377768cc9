"""Measure: full-batch gradients of an unchanged script at the recorded weights of its run.

The first point takes two passes: one with the script's own random numbers, and one with others, which draws order,
augmentation and dropout anew. Where both agree to rounding, and every sample was used, the gradient is the full
batch's, and later points take one pass each. Where they do not, it is one epoch's estimate of it, each point takes two,
and their distance says how good that is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.check_points import check_points
from tvgrad.integrations.measuring.passes import PassOutcome, folder_of_passes
from tvgrad.integrations.measuring.starts import Starts, later_training
from tvgrad.record.batch_items import MODULUS, sum_of_fingerprints
from tvgrad.record.decision import decided
from tvgrad.record.measurement import Measurement, compared, known_as_before, known_from_one
from tvgrad.record.weighing import BatchWeights, Weighing
from tvgrad.store.lock import WriterLock
from tvgrad.store.measured import EXACT, MEASURED
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter
from tvgrad.wording import counted

RESEED = 20_261
"""Where the random numbers of second passes begin."""

PASSES_A_POINT = 2
NARROW = ("bfloat16", "float16")


def points_of(run: Run, text: str) -> list[int]:
    """Read a list of points.

    Args:
        run: a recorded run.
        text: numbers, `last` or `all`, separated by commas.

    Returns:
        The numbers, in order.

    Raises:
        TvgradError: it is not understood, or the run keeps no weights there.
    """
    wanted: set[int] = set()
    for part in check_points(text):
        if part == "all":
            wanted |= set(run.epochs)
        elif run.epochs:
            wanted.add(run.epochs[-1] if part == "last" else int(part))
    missing = sorted(wanted - set(run.epochs))
    if missing or not wanted:
        which = f"at {run.unit} {missing[0]}" if missing else "at any point"
        raise TvgradError(f"{run.root} keeps no weights {which}: choose from {run.epochs}")
    return sorted(wanted)


def cost_sentence(run: Run, points: Sequence[int]) -> str:
    """Say what measuring costs, before it is spent.

    Args:
        run: the run.
        points: where gradients are measured.

    Returns:
        One sentence.
    """
    passes = PASSES_A_POINT * len(points)
    seconds = [p.metrics["seconds"] for p in run.points if p.number > 0 and "seconds" in p.metrics]
    known = run.unit == "epoch" and bool(seconds)
    each = f"up to {max(seconds):.2g} s, as an epoch of the run" if known else "one epoch of forward and backward"
    total = f", {passes * max(seconds):.2g} s in all" if known else ""
    least = len(points) + 1
    fewer = f"; {least} passes where the first point's two agree" if least < passes else ""
    return (
        f"{counted(len(points), 'point')}, {passes} passes of one epoch of forward and backward ({each}{total}), and "
        f"{counted(passes + (not _needs_no_probe(run)), 'start')} of the command{fewer}"
    )


def measure(
    directory: str | os.PathLike[str],
    command: Sequence[str],
    points: Sequence[int],
    *,
    model: str | None = None,
    steps_per_epoch: int | None = None,
    patience: float | None = None,
    on_point: Callable[[int, Measurement], None] = lambda number, made: None,
) -> Run:
    """Measure the full-batch gradient at points of a script's run, and keep it there.

    Args:
        directory: the run.
        command: as the user gives it; the one that the run names is never started.
        points: where.
        model: the model's name, where several have the run's parameters.
        steps_per_epoch: optimizer steps in an epoch; by default as recorded.
        patience: seconds until the command's first backward pass.
        on_point: called with each point and what was measured there.

    Returns:
        The run.

    Raises:
        TvgradError: a pass failed, or the command's data is not what the run was recorded with.
    """  # noqa: DOC502 - raised by run_pass and _require_same_samples
    run = Run.open(directory)
    WriterLock(run.root, "measure a copy of the run").close()  # before long work: can anything be written there?
    with folder_of_passes() as folder:
        starts = Starts(run, command, folder, model, steps_per_epoch, patience)
        weights = batch_weights(starts, points[0])
        first: Measurement | None = None
        for number in points:
            made, weights = measure_point(starts, number, weights, earlier=first)
            first = first or made
            on_point(number, made)
    return Run.open(run.root)


def batch_weights(starts: Starts, number: int) -> BatchWeights:
    """Find out how a script's batches are weighted.

    Args:
        starts: of its command.
        number: of the point at whose weights it is looked at.

    Returns:
        The weights; no start is needed where an epoch of the run is one batch, of samples that are always the same.
    """
    if _needs_no_probe(starts.run):
        return BatchWeights(confirmed=True)
    return _probed(starts.pass_at(number, probe=True))


def measure_point(
    starts: Starts,
    number: int,
    weights: BatchWeights,
    first: PassOutcome | None = None,
    *,
    frugal: bool = False,
    earlier: Measurement | None = None,
) -> tuple[Measurement, BatchWeights]:
    """Measure the full-batch gradient at one point, and keep it in the run.

    Args:
        starts: of the command.
        number: of the point.
        weights: how batches are weighted.
        first: a pass there with the script's own random numbers, where one was made already.
        frugal: leave the second pass out where it could only repeat the first: see `known_from_one`.
        earlier: what was measured at another point of the same command, by two passes; see `known_as_before`.

    Returns:
        What was measured; and the weights, which may be known better now.
    """
    run = starts.run
    first = first or starts.pass_at(number, **_given(weights))
    if first.facts["batches"] > 1 and _needs_no_probe(run):  # of more processes than the run's
        weights = _probed(starts.pass_at(number, probe=True))
        first = starts.pass_at(number, **_given(weights))
    _require_same_size(run, first.facts)
    recorded = _recorded_contents(run, first.facts)
    if len(recorded) > 1 and len(set(recorded)) == 1:  # no augmentation, which gives other samples in each epoch
        _require_same_samples(run, first.facts, first.facts)
    if weights.noise is None and weights.confirmed and first.facts["dtype"] in NARROW:
        weights = _probed(starts.pass_at(number, probe=True))  # whether it is exact depends on its noise
    weights, first = weights_told(starts, number, weights, first)
    made = known_from_one(weights, first.facts, recorded) if frugal else None
    if earlier is not None:
        made = known_as_before(earlier, first.facts, recorded)
    if made is None:
        second = _in_other_batches(starts, number, weights, first)
        _require_same_samples(run, first.facts, second.facts)
        made = compared(weights, (first.facts, first.gradient), (second.facts, second.gradient))
    _keep(run.root, number, first, made)
    return made, weights


def _in_other_batches(starts: Starts, number: int, weights: BatchWeights, first: PassOutcome) -> PassOutcome:
    """A second pass, with other random numbers, whose batches exchange samples where the script goes on with that."""
    plan: dict[str, Any] = {"reseed": RESEED, **_given(weights)}
    if first.facts["batches"] > 1:
        try:
            second = starts.pass_at(number, exchange=tuple(first.facts["batches_of_each"]), **plan)
        except TvgradError:  # samples must be in order, say: without the exchange, the sentence is the script's own
            second = None
        if second is not None and second.facts["samples"] == first.facts["samples"]:  # an error did not end its epoch
            return second
    return starts.pass_at(number, **plan)


def weights_told(
    starts: Starts, number: int, weights: BatchWeights, first: PassOutcome, **plan: Any
) -> tuple[BatchWeights, PassOutcome]:
    """Find out more of the weights, where the batches of a pass are weighted otherwise by counters that the probe left.

    Args:
        starts: of the command.
        number: of the point.
        weights: how batches are weighted, by the probe.
        first: the pass.
        plan: of the pass, without the weights.

    Returns:
        See `decided`.
    """

    def probed(tell: tuple[int, ...]) -> BatchWeights:
        return _probed(starts.pass_at(number, probe=True, tell=tell, apart=tuple(first.facts.get("apart", ()))))

    def passed(others: BatchWeights) -> PassOutcome:
        return starts.pass_at(number, **plan, **_given(others))

    return decided(weights, first, lambda one: one.facts.get("unlike", ()), probed, passed)


def _given(weights: BatchWeights) -> dict[str, Any]:
    return {"weighing": weights.weighing.value, "counter": weights.used}


def _probed(found: PassOutcome) -> BatchWeights:
    facts = found.facts
    return BatchWeights(
        Weighing(facts["weighing"]),
        facts["counter"],
        facts["confirmed"],
        facts["reason"],
        facts["noise"],
        facts["redrawn"],
        tuple(facts.get("others", ())),
        facts.get("shared", False),
        facts.get("likely"),
    )


def _tables(run: Run) -> list[pd.DataFrame]:
    """The tables of steps of the epochs whose batches were counted."""
    found = [run.steps(number) for number in run.having("steps")] if run.unit == "epoch" else []
    return [table for table in found if "batch_size" in table and not table["batch_size"].isna().any()]


def _most_accumulated(tables: Sequence[pd.DataFrame]) -> float:
    return max((float(table["accumulated"].max()) for table in tables if "accumulated" in table), default=math.inf)


def _one_batch_an_epoch(run: Run) -> bool:
    """Whether no weights are needed; several processes have a batch each."""
    tables = _tables(run) if run.info.get("processes", 1) == 1 else []
    return bool(tables) and all(len(table) == 1 for table in tables) and _most_accumulated(tables) == 1


def _needs_no_probe(run: Run) -> bool:
    """Whether there are no weights to be found, and no samples that may be others when they are read again."""
    recorded = [contents for size in _sizes(run) if (contents := _recorded_contents(run, {"samples": size}))]
    always = all(len(contents) > 1 and len(set(contents)) == 1 for contents in recorded)
    return _one_batch_an_epoch(run) and always


def _sizes(run: Run) -> set[int]:
    """The numbers of samples in the run's epochs."""
    return {int(table["batch_size"].sum()) for table in _tables(run)}


def _require_same_size(run: Run, measured: dict[str, Any]) -> None:
    """Refuse another number of samples than the run was recorded with."""
    tables = _tables(run)
    sizes = [int(table["batch_size"].sum()) for table in tables]
    samples = measured.get("own_samples", measured["samples"])  # of the process that was recorded
    if not sizes or not measured["batches"] or samples in sizes:
        return
    processes = int(run.info.get("processes", 1))  # of which one has counted; samplers make their shares equal
    if any(0 <= size * processes - measured["samples"] < processes for size in sizes):
        return
    # A last group of accumulated gradients that the script did not consume is no recorded step's.
    left_over = samples - max(sizes)
    if _most_accumulated(tables) > 1 and 0 < left_over < max(float(table["batch_size"].max()) for table in tables):
        return
    raise _other_data(run, f"an epoch has {samples:,} samples, and had {max(sizes):,}")


def _require_same_samples(run: Run, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse other samples than the run was recorded with, as far as their fingerprints tell."""
    sums = _recorded_contents(run, first)
    measured = {one.get("own_content", one["content"]) for one in (first, second)}
    if not sums or None in measured or measured & set(sums):
        return
    # Augmentation gives other samples in every epoch: then neither the epochs nor the passes agree with one another.
    if len(measured) == 1 or (len(sums) > 1 and len(set(sums)) == 1):
        raise _other_data(run, "its samples have another fingerprint")


def require_same_epoch(run: Run, first: Sequence[int | None], second: Sequence[int | None] | None = None) -> None:
    """Refuse a start through the run's first epoch that had samples of other data, as far as fingerprints tell.

    Args:
        run: the run, whose epochs are compared with one another too: where they had other samples each, only two starts
            that had the same ones say that the data is another.
        first: the fingerprint of each step of a start.
        second: of another start.

    Raises:
        TvgradError: the data is not what the run was recorded with.
    """  # noqa: DOC501 - made by _other_data
    tables = _tables(run)
    if not tables or not run.steps(1).equals(tables[0]):
        return
    length, samples = len(tables[0]), int(tables[0]["batch_size"].sum())
    recorded = _recorded_contents(run, {"samples": samples})
    content = sum_of_fingerprints(first[:length])
    if not recorded or content is None or len(first) < length or content in recorded:
        return
    if len(recorded) > 1 and len(set(recorded)) == 1:
        raise _other_data(run, "its samples have another fingerprint")
    if second is not None and list(first[:length]) == list(second[:length]):
        raise _other_data(run, "two starts of it had the same samples in the first epoch, and the run had others")


def _other_data(run: Run, how: str) -> TvgradError:
    return TvgradError(f"the command's data is not what {run.root} was recorded with: {how}{later_training(run)}")


def _recorded_contents(run: Run, measured: dict[str, Any]) -> list[int]:
    """The fingerprint of all samples of each recorded epoch of as many samples as were measured."""
    told = [t for t in _tables(run) if "batch_fingerprint" in t and not t["batch_fingerprint"].isna().any()]
    samples = measured.get("own_samples", measured["samples"])
    same_size = [table for table in told if int(table["batch_size"].sum()) == samples]
    return [sum(map(int, table["batch_fingerprint"])) % MODULUS for table in same_size]


def _keep(root: Path, number: int, measured: PassOutcome, made: Measurement) -> None:
    run = Run.open(root)
    stored = {}
    for name, parameter in run.parameters.items():
        dtype = getattr(torch, parameter.dtype)
        stored[name] = measured.gradient[name].to(torch.float32 if dtype.itemsize < 4 else dtype)
    writer = RunWriter.resume(root)
    writer.again = "type the command again"
    try:
        writer.amend(number, {"gradient": stored}, {})
        record = list(run.info.get("record", ()))
        facts: dict[str, Any] = {MEASURED: {**(run.info.get(MEASURED) or {}), str(number): asdict(made)}}
        if made.kind == EXACT and made.data is not None:
            facts["samples"] = made.data
        writer.update_info(record=["gradients", *(kind for kind in record if kind != "gradients")], **facts)
    finally:
        writer.close()
