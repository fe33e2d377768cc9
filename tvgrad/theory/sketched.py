"""Sketched: what a run says of gradients of which it keeps sketches: estimates with intervals, apart from all else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

import torch

from tvgrad.results import Result
from tvgrad.sketching.sketches import Estimate, Sketch, norm_of_squares, sketch_of
from tvgrad.store.kept_gradients import ALL_GRADIENTS, SKETCHED, KeptGradients
from tvgrad.store.run import Run
from tvgrad.streaming.blocks import tensor_blocks
from tvgrad.theory.equivalence import first_rates
from tvgrad.vectors.parameters import ALL
from tvgrad.wording import percent


@dataclass(frozen=True)
class SketchedEstimate(Result):
    """A number of a run that is estimated from sketches: a row of sketches.csv.

    Attributes:
        run: the run's name.
        other: the second run, of a cosine between two; else empty.
        epoch: the point.
        quantity: what is estimated.
        estimate: the number.
        low: lower end of its interval, which covers the truth in at least 95 of 100 cases.
        high: upper end.
    """

    run: str
    other: str
    epoch: int
    quantity: str
    estimate: float
    low: float
    high: float


def sketched_rows(runs: Sequence[Run], names: Sequence[str]) -> list[SketchedEstimate]:
    """Estimate what exact tables say of gradients that are kept whole.

    Args:
        runs: recorded runs of one model.
        names: of the runs.

    Returns:
        Norms, cosines to the first gradient and of task vectors to minus the first gradient, and cosines between
        gradients of two runs, of the whole model; nothing of runs that keep whole gradients.
    """
    width = {name: KeptGradients(run.info.get("keep_gradients", ALL_GRADIENTS)).width for run, name in _of(runs, names)}
    rows = [row for run, name in _of(runs, names) if width[name] for row in _of_one(run, name)]
    for (one, left), (two, right) in combinations(_of(runs, names), 2):
        wide = width[left] or width[right]
        if wide is None or {width[left], width[right]} - {None, wide}:  # whole gradients, or two projections
            continue
        for epoch in sorted(_full(one) & _full(two)):
            made = sketch_at(one, "gradient", epoch, wide).cosine(sketch_at(two, "gradient", epoch, wide))
            rows.append(SketchedEstimate(left, right, epoch, "cos_gradients", *_values(made)))
    return rows


def sketch_at(run: Run, kind: str, number: int, width: int) -> Sketch:
    """Read the sketch of a gradient, or make one of a gradient that was kept whole.

    Args:
        run: the run.
        kind: gradient or epoch_gradient.
        number: the point.
        width: numbers in a sketch that is made.

    Returns:
        The sketch.
    """
    if SKETCHED[kind] in run.point(number).files:
        return run.gradient_sketch(number, kind)
    return _sketch_of_files(run, [(kind, number)], width)


def task_vector_sketch(run: Run, number: int, width: int) -> Sketch:
    """Sketch a task vector, whose differences are formed in float64.

    Args:
        run: the run.
        number: epochs (or steps) done.
        width: numbers in the sketch.

    Returns:
        The sketch.
    """
    return _sketch_of_files(run, [("weights", number), ("weights", 0)], width)


def sketched_deviation(run: Run, rate: float) -> tuple[Estimate, Estimate] | None:
    """Estimate how far the first task vector is from minus the rate times the full-batch gradient.

    Args:
        run: the run.
        rate: the learning rate.

    Returns:
        The norm of `tau_1 + rate g_0` over that of `rate g_0`, and the cosine of `tau_1` to `-g_0`; None where no
        sketch was kept or the gradient is zero.
    """
    if SKETCHED["gradient"] not in run.point(0).files or not {0, 1} <= set(run.epochs):
        return None
    gradient = run.gradient_sketch(0)
    moved, length = task_vector_sketch(run, 1, gradient.width), abs(rate) * gradient.norm
    if not length:
        return None
    apart = Sketch(moved.values + rate * gradient.values, gradient.entries, {}).estimated_norm()
    deviation = Estimate(apart.value / length, apart.low / length, apart.high / length)
    return deviation, _turned(moved.cosine(gradient))


def sketched_cause(run: Run) -> str | None:
    """Say what a sketch tells of the first epoch, where no full-batch gradient can be compared exactly.

    Args:
        run: the run.

    Returns:
        A clause with the estimates; None where no sketch of the first full-batch gradient was kept.
    """
    if SKETCHED["gradient"] not in run.point(0).files:
        return None
    kept = "of the full-batch gradient at the pretrained weights a sketch was kept"
    rates = {rate for rate in ({} if run.rule is None else first_rates(run, run.rule)).values() if rate}
    found = sketched_deviation(run, rates.pop()) if len(rates) == 1 else None
    if found is None:
        return kept
    away, cosine = found
    return (
        f"{kept}: by estimate {percent(away.value)} away ({percent(away.low)} to {percent(away.high)}), "
        f"cosine {cosine.value:.3f} ({cosine.low:.3f} to {cosine.high:.3f})"
    )


def sketched_norms(run: Run, groups: Mapping[str, str]) -> dict[tuple[str, int], dict[str, float]]:
    """Read the norms that stand beside sketches: they are sums of squares of all entries, and no estimates.

    Args:
        run: the run.
        groups: parameter -> group.

    Returns:
        (gradient or epoch_gradient, epoch) -> group, or the whole model -> norm. An epoch gradient stands at the epoch
        that begins where its sum does.
    """
    found = {}
    for kind, sketch in SKETCHED.items():
        for epoch in run.having(sketch):
            squares = run.gradient_sketch(epoch, kind).squares
            parts: dict[str, list[float]] = {ALL: list(squares.values())}
            for name, square in squares.items():
                parts.setdefault(groups[name], []).append(square)
            place = epoch - (kind == "epoch_gradient")
            if kind == "gradient" or run.unit == "epoch":
                found[kind, place] = {group: norm_of_squares(part) for group, part in parts.items()}
    return found


def _of(runs: Sequence[Run], names: Sequence[str]) -> Iterator[tuple[Run, str]]:
    return zip(runs, names, strict=True)


def _full(run: Run) -> set[int]:
    """Points with a full-batch gradient, whole or sketched."""
    return {*run.having("gradient"), *run.having(SKETCHED["gradient"])}


def _of_one(run: Run, name: str) -> Iterator[SketchedEstimate]:
    full, summed = run.having(SKETCHED["gradient"]), run.having(SKETCHED["epoch_gradient"])
    first = run.gradient_sketch(0) if 0 in full else None
    # The sum over an epoch belongs to the epoch that begins before it; by step there are no epochs.
    summed = [epoch for epoch in summed if run.unit == "epoch"]
    first_sum = run.gradient_sketch(1, "epoch_gradient") if 1 in summed else None
    for epoch in sorted({*full, *(one - 1 for one in summed), *run.epochs}):
        made: dict[str, Estimate] = {}
        if epoch in full:
            here = run.gradient_sketch(epoch)
            made["gradient_norm"] = here.estimated_norm()
            if first is not None:
                made["cos_gradient_first"] = here.cosine(first)
        if epoch + 1 in summed:
            total = run.gradient_sketch(epoch + 1, "epoch_gradient")
            made["epoch_gradient_norm"] = total.estimated_norm()
            if first_sum is not None:
                made["cos_epoch_gradient_first"] = total.cosine(first_sum)
        known = first or first_sum
        if epoch and epoch in run.epochs and 0 in run.epochs and known is not None:
            moved = task_vector_sketch(run, epoch, known.width)
            if first is not None:
                made["cos_task_vector_descent"] = _turned(moved.cosine(first))
            if first_sum is not None:
                made["cos_task_vector_epoch_descent"] = _turned(moved.cosine(first_sum))
        for quantity, one in made.items():
            yield SketchedEstimate(name, "", epoch, quantity, *_values(one))


def _values(one: Estimate) -> tuple[float, float, float]:
    return one.value, one.low, one.high


def _turned(cosine: Estimate) -> Estimate:
    """The cosine to the opposite vector."""
    return Estimate(-cosine.value, -cosine.high, -cosine.low)


def _sketch_of_files(run: Run, places: Sequence[tuple[str, int]], width: int) -> Sketch:
    """Sketch the tensors of a file, minus those of a second where there is one."""
    with ExitStack() as stack:
        files = [stack.enter_context(run.file(*place)) for place in places]

        def blocks(name: str) -> Iterator[torch.Tensor]:
            for block, *minus in tensor_blocks(files, name):
                yield block.double() - minus[0].double() if minus else block

        sizes = {name: math.prod(one.shape) for name, one in run.parameters.items()}
        return sketch_of(sizes, blocks, width)
