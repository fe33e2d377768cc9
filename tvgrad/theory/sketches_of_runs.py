"""Sketches of runs: of gradients that were kept as sketches or whole, and of task vectors, and what groups tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TypeAlias

import torch

from tvgrad.sketching.estimate import Estimate
from tvgrad.sketching.sketches import Sketch, sketch_of
from tvgrad.store.gradient_sketches import PROJECTION, SPLIT
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.run import Run
from tvgrad.streaming.blocks import tensor_blocks
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.vectors.parameters import ALL

Groups: TypeAlias = Mapping[str, Sequence[str]]
"""Group -> names of its parameters."""

Place: TypeAlias = tuple[Run, str, int]
"""A file of a run: what it holds, and of which point."""


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


def norms(one: Sketch, groups: Groups) -> dict[str, Estimate]:
    """Estimate norms.

    Args:
        one: the sketch.
        groups: the groups.

    Returns:
        Group, the whole model first -> estimate; no groups where single tensors were not sketched.
    """
    split = one.split
    found = {} if split is None else {group: split.estimated_norm(names) for group, names in groups.items()}
    return {ALL: one.estimated_norm(), **found}


def cosines(one: Sketch, other: Sketch, groups: Groups) -> dict[str, Estimate]:
    """Estimate cosines.

    Args:
        one: a sketch.
        other: another, of the same model and width.
        groups: the groups.

    Returns:
        Group, the whole model first -> estimate; no groups where single tensors of one were not sketched.
    """
    left, right, whole = one.split, other.split, one.cosine(other)
    if left is None or right is None:
        return {ALL: whole}
    return {ALL: whole, **{group: left.cosine(right, names) for group, names in groups.items()}}


def kept_estimates(
    kept: KeptProducts | None,
    places: Sequence[Place],
    about: Sequence[str],
    groups: Groups,
    compute: Callable[[], Sequence[Estimate]],
) -> list[Estimate]:
    """Take estimates from an earlier report, or make and keep them.

    Args:
        kept: numbers of earlier reports; None makes them.
        places: the files that they are made of.
        about: all that they depend on beside files and groups.
        groups: the groups.
        compute: reads the files and makes them.

    Returns:
        The estimates, with the bits that `compute` gives them.
    """
    if kept is None:
        return list(compute())
    facts = ["sketches", repr([PROJECTION, SPLIT]), repr([(group, list(names)) for group, names in groups.items()])]

    def numbers() -> list[float]:
        return [number for one in compute() for number in (one.value, one.low, one.high)]

    with ExitStack() as stack:
        files = [stack.enter_context(closing(run.file(kind, number))) for run, kind, number in places]
        found = kept.numbers(files, [*facts, *about], numbers)
    return [Estimate(*found[start : start + 3]) for start in range(0, len(found), 3)]


def _sketch_of_files(run: Run, places: Sequence[tuple[str, int]], width: int) -> Sketch:
    """Sketch the tensors of a file, minus those of a second where there is one."""
    with ExitStack() as stack:
        files = [stack.enter_context(run.file(*place)) for place in places]

        def blocks(name: str) -> Iterator[torch.Tensor]:
            for block, *minus in tensor_blocks(files, name):
                yield block.double() - minus[0].double() if minus else block

        sizes = {name: math.prod(one.shape) for name, one in run.parameters.items()}
        return sketch_of(sizes, blocks, width, split=True)
