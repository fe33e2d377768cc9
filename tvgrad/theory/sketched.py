"""Sketched: what a run says of gradients of which it keeps sketches: estimates with intervals, apart from all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tvgrad.results import Result
from tvgrad.sketching.estimate import Estimate, norm_of_squares
from tvgrad.sketching.sketches import Sketch
from tvgrad.store.kept_gradients import ALL_GRADIENTS, SKETCHED, KeptGradients
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.theory.sketched_step import turned
from tvgrad.theory.sketches_of_runs import (
    Groups,
    cosines,
    kept_estimates,
    norms,
    sketch_at,
    task_vector_sketch,
)
from tvgrad.vectors.parameters import ALL

GRADIENT, SUM = SKETCHED["gradient"], SKETCHED["epoch_gradient"]


@dataclass(frozen=True)
class SketchedEstimate(Result):
    """A number of a run that is estimated from sketches: a row of sketches.csv.

    Attributes:
        run: the run's name.
        other: the second run, of a cosine between two; else empty.
        epoch: the point.
        group: a group of parameters, or all.
        quantity: what is estimated.
        estimate: the number.
        low: lower end of its interval, which covers the truth in at least 95 of 100 cases.
        high: upper end.
    """

    run: str
    other: str
    epoch: int
    group: str
    quantity: str
    estimate: float
    low: float
    high: float


def sketched_rows(
    runs: Sequence[Run], names: Sequence[str], groups: Mapping[str, str], kept: KeptProducts | None = None
) -> list[SketchedEstimate]:
    """Estimate what exact tables say of gradients that are kept whole.

    Args:
        runs: recorded runs of one model.
        names: of the runs.
        groups: parameter -> group.
        kept: numbers of earlier reports; by default all is read.

    Returns:
        Norms, cosines to the first gradient and of task vectors to minus the first gradient, and cosines between
        gradients of two runs, of the whole model and of each group; nothing of runs that keep whole gradients.
    """
    members: dict[str, list[str]] = {}
    for name, group in groups.items():
        members.setdefault(group, []).append(name)
    width = {name: KeptGradients(run.info.get("keep_gradients", ALL_GRADIENTS)).width for run, name in _of(runs, names)}
    rows = [row for run, name in _of(runs, names) if width[name] for row in _of_one(run, name, members, kept)]
    for (one, left), (two, right) in combinations(_of(runs, names), 2):
        wide = width[left] or width[right]
        if wide is None or {width[left], width[right]} - {None, wide}:  # whole gradients, or two projections
            continue
        for epoch in sorted(_full(one) & _full(two)):
            found = _between(one, two, epoch, wide, members, kept)
            rows += [_row(left, right, epoch, group, "cos_gradients", made) for group, made in found.items()]
    # The whole model first, then from input to output, as the other tables have it.
    place = {group: number for number, group in enumerate([ALL, *members])}
    return sorted(rows, key=lambda row: place[row.group])


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
    return {*run.having("gradient"), *run.having(GRADIENT)}


def _of_one(run: Run, name: str, groups: Groups, kept: KeptProducts | None) -> Iterator[SketchedEstimate]:
    full, summed = run.having(GRADIENT), run.having(SUM)
    first = run.gradient_sketch(0) if 0 in full else None
    # The sum over an epoch belongs to the epoch that begins before it; by step there are no epochs.
    summed = [epoch for epoch in summed if run.unit == "epoch"]
    first_sum = run.gradient_sketch(1, "epoch_gradient") if 1 in summed else None
    for epoch in sorted({*full, *(one - 1 for one in summed), *run.epochs}):
        made: dict[str, dict[str, Estimate]] = {}
        if epoch in full:
            here = run.gradient_sketch(epoch)
            made["gradient_norm"] = norms(here, groups)
            if first is not None:
                made["cos_gradient_first"] = cosines(here, first, groups)
        if epoch + 1 in summed:
            total = run.gradient_sketch(epoch + 1, "epoch_gradient")
            made["epoch_gradient_norm"] = norms(total, groups)
            if first_sum is not None:
                made["cos_epoch_gradient_first"] = cosines(total, first_sum, groups)
        if epoch and epoch in run.epochs and 0 in run.epochs:
            known = {} if first is None else {"cos_task_vector_descent": (first, GRADIENT, 0)}
            known |= {} if first_sum is None else {"cos_task_vector_epoch_descent": (first_sum, SUM, 1)}
            made |= _of_task_vector(run, epoch, known, groups, kept)
        for quantity, found in made.items():
            for group, one in found.items():
                yield _row(name, "", epoch, group, quantity, one)


def _of_task_vector(
    run: Run, epoch: int, known: Mapping[str, tuple[Sketch, str, int]], groups: Groups, kept: KeptProducts | None
) -> dict[str, dict[str, Estimate]]:
    """Quantity -> group -> cosine of a task vector to what was sketched in the run, turned around."""
    made: dict[str, dict[str, Estimate]] = {}
    moved: list[Sketch] = []  # made once, where it is not told from an earlier report

    for quantity, (gradient, kind, number) in known.items():

        def compute(gradient: Sketch = gradient) -> list[Estimate]:
            if not moved:
                moved.append(task_vector_sketch(run, epoch, gradient.width))
            return list(map(turned, cosines(moved[0], gradient, groups).values()))

        places = [(run, "weights", epoch), (run, "weights", 0), (run, kind, number)]
        found = kept_estimates(kept, places, ["task vector"], groups, compute)
        made[quantity] = dict(zip([ALL, *groups], found, strict=False))
    return made


def _between(
    one: Run, two: Run, epoch: int, width: int, groups: Groups, kept: KeptProducts | None
) -> dict[str, Estimate]:
    """Group -> cosine between the gradients of two runs."""

    def compute() -> list[Estimate]:
        left, right = (sketch_at(run, "gradient", epoch, width) for run in (one, two))
        return list(cosines(left, right, groups).values())

    places = [(run, GRADIENT if GRADIENT in run.point(epoch).files else "gradient", epoch) for run in (one, two)]
    found = kept_estimates(kept, places, ["gradients", repr(width)], groups, compute)
    return dict(zip([ALL, *groups], found, strict=False))


def _row(run: str, other: str, epoch: int, group: str, quantity: str, made: Estimate) -> SketchedEstimate:
    return SketchedEstimate(run, other, epoch, group, quantity, made.value, made.low, made.high)
