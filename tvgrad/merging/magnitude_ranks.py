"""Magnitudes by rank: from which magnitude on an entry is among the largest, without a tensor in memory in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.merging.stack import Stack
from tvgrad.merging.workers import in_order
from tvgrad.vectors.parameters import all_finite

READ = 1 << 16
"""Coordinates of one task that are ranked at once."""
FEW = 16
"""Share of a block, one in so many, that may be kept in float64 because float32 does not hold it."""
NONE = np.empty(0)
IN_TURN = 1 << 25
"""Elements of a tensor from which on tasks are ranked one after another, for the memory's sake."""

Found = TypeVar("Found")


def of_tasks(stack: Stack, name: str, find: Callable[..., Found]) -> tuple[Found, ...]:
    """Look at a tensor of every task: side by side, or for large tensors one after another.

    Args:
        stack: the task vectors.
        name: the tensor.
        find: called with a task, and in the second case with what calls a function for each block side by side.

    Returns:
        What was found for each.
    """
    every = range(stack.tasks)
    if stack.numel(name) >= IN_TURN:  # the magnitudes of one task at a time
        return tuple(find(task, in_order) for task in every)
    return tuple(in_order(find, every))


def smallest_kept_of(
    stack: Stack, task: int, name: str, density: float, mapped: Callable[..., Iterable[Any]] = map
) -> float:
    """Find the magnitude that `smallest_kept` finds, without the tensor in memory in float64.

    Args:
        stack: the task vectors.
        task: which one.
        name: the tensor.
        density: share of the entries that are among the largest.
        mapped: calls a function for each block, in the order of `map`.

    Returns:
        The smallest of their magnitudes; 0 where they are all.

    Raises:
        TvgradError: a value is an infinity or a NaN.
    """  # noqa: DOC502 - raised by magnitudes_of_ranks
    return magnitudes_of_ranks(stack, task, name, [max(1, int(density * stack.numel(name)))], mapped)[0]


def magnitudes_of_ranks(
    stack: Stack, task: int, name: str, ranks: Sequence[int], mapped: Callable[..., Iterable[Any]] = map
) -> list[float]:
    """Find the magnitudes of some ranks of a tensor's entries, without the tensor in memory in float64.

    Magnitudes are kept in float32. Rounding keeps their order, so that the value looked for is one of those that round
    to the float32 number of its rank; magnitudes that were rounded are kept where they are few, or read again.

    Args:
        stack: the task vectors.
        task: which one.
        name: the tensor.
        ranks: 1 is the largest magnitude, 2 the next.
        mapped: calls a function for each block, in the order of `map`.

    Returns:
        The magnitude of each rank; 0 for a rank that is the last, or behind it.

    Raises:
        TvgradError: a value is an infinity or a NaN.
    """
    numel = stack.numel(name)
    inner = sorted({numel - rank for rank in ranks if rank < numel})
    if not inner:
        return [0.0] * len(ranks)
    narrow = np.empty(numel, dtype=np.float32)

    def magnitudes(start: int) -> NDArray[np.float64]:
        block = torch.empty(min(READ, numel - start), dtype=torch.float64)
        stack.read_row(task, name, start, block)
        if not all_finite(block):
            raise TvgradError(f"{name!r} of {stack.labels[task]} holds a NaN or an infinity: leave that model out")
        return block.abs_().numpy()

    def narrowed(start: int) -> NDArray[np.float64] | None:
        block = magnitudes(start)
        part = narrow[start : start + block.size]
        with np.errstate(over="ignore"):
            part[:] = block
        if np.array_equal(part, block):  # differences of bfloat16 numbers, most often
            return NONE
        rounded: NDArray[np.float64] = block[part != block]
        return rounded if rounded.size <= block.size // FEW else None

    rounded = list(mapped(narrowed, range(0, numel, READ)))
    begin = 0  # one place at a time, for which numpy has vector code; an order of magnitude quicker than torch.kthvalue
    for place in inner:
        narrow[begin:].partition(place - begin)
        begin = place + 1
    edges = {float(narrow[place]) for place in inner}

    def close_to(start: int) -> NDArray[np.float64]:
        block = magnitudes(start)
        with np.errstate(over="ignore"):
            near: NDArray[np.float64] = block[np.isin(block.astype(np.float32), [*edges])]
        return near

    exact = not any(block is None for block in rounded)
    again = rounded if exact else mapped(close_to, range(0, numel, READ))
    few = np.concatenate([block for block in again if block is not None])
    found = {numel: 0.0}
    for place in inner:
        edge = narrow[place]
        with np.errstate(over="ignore"):
            close = few[few.astype(np.float32) == edge]
        if exact and not close.size:  # all that are as large are float32 numbers
            found[numel - place] = float(edge)
            continue
        if exact:
            same = int((narrow == edge).sum()) - close.size
            close = np.concatenate([close, np.full(same, edge, dtype=np.float64)])
        larger = int((narrow[place:] > edge).sum())
        found[numel - place] = float(np.sort(close)[larger - (numel - place)])
    return [found[min(rank, numel)] for rank in ranks]


def smallest_kept(tensor: torch.Tensor, density: float) -> float:
    """Find the magnitude from which on entries are among the largest.

    Args:
        tensor: any shape, on the CPU.
        density: share of the entries that are among them, rounded down to a number of entries but to no less than one.

    Returns:
        The smallest of their magnitudes; 0 where they are all.
    """
    count = max(1, int(density * tensor.numel()))
    if count >= tensor.numel():
        return 0.0
    magnitudes = np.abs(tensor.reshape(-1).numpy())
    place = magnitudes.size - count
    magnitudes.partition(place)  # an order of magnitude quicker than torch.kthvalue
    return float(magnitudes[place])


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Mark the entries of largest magnitude.

    Args:
        tensor: any shape.
        density: share of the entries to mark, rounded down to a number of entries but to no less than one. Entries as
            large as the smallest of these are marked too, so that the choice never depends on the order of a sort.

    Returns:
        A boolean tensor of the same shape.
    """
    return tensor.abs() >= smallest_kept(tensor, density)
