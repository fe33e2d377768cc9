"""Exchange: batches that have exchanged samples, so that a pass over the same data has other batches.

A mean that is weighted as it should be is the same whichever batches its samples come in. One that is not (where rare
targets weigh otherwise by code of the script's own, say) is another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tvgrad.record.batch_items import DEPTH, items_of, tensors_of


class Exchange:
    """What a pass over a loader returns: each batch with every second sample of the next, the last with the first's.

    Attributes:
        left: batches that may be exchanged still; the last of them closes the round, so that no sample is left out.
            Those of a pass that was left before its end (a look at one batch, say) are none.
    """

    def __init__(self, left: int) -> None:
        """Start before the first batch.

        Args:
            left: so many batches are exchanged, of all passes over the loader.
        """
        self.left = left

    def parts(self) -> Callable[[Callable[[], Any]], Any]:
        """Begin a pass over the loader.

        Returns:
            Gets a function that fetches the loader's next batch, and returns what the script is to have.
        """
        return _Round(self)


class _Round:
    """One pass over a loader."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._left = exchange, exchange.left
        self._held: list[Any] = []
        self._ended = False

    def __call__(self, fetch: Callable[[], Any]) -> Any:
        if self._ended:
            raise StopIteration
        batch = self._held.pop() if self._held else fetch()
        self._left -= 1
        if self._left < 1:  # the last one, or one of a later epoch
            self._exchange.left = 0
            return batch
        try:
            following = fetch()
        except StopIteration:
            self._ended, self._exchange.left = True, self._left
            return batch
        given, held = exchanged(batch, following) or (batch, following)
        self._held.append(held)
        return given


def exchanged_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Go through a loader whose batches have exchanged samples.

    Args:
        loader: it, or a list of batches.

    Yields:
        Batches, as many of them, with the same samples.
    """
    batches = iter(loader)
    held = next(batches, None)
    for following in batches:
        given, held = exchanged(held, following) or (held, following)
        yield given
    if held is not None:
        yield held


def exchanged(one: Any, other: Any) -> tuple[Any, Any] | None:
    """Exchange every second sample of two batches, which keep their places.

    Args:
        one: what a loader returned.
        other: what it returned next, perhaps with fewer samples.

    Returns:
        Both with the other's samples; None where they differ in anything else than in samples, as in their length.
    """
    sizes = items_of(one, tokens=False).samples, items_of(other, tokens=False).samples
    if min(sizes) < 1 or not tensors_of(one)[0].ndim:
        return None
    rows = list(range(min(1, min(sizes) - 1), min(sizes), 2))  # the only one of a batch of one, too
    try:
        return _exchanged(one, other, rows, sizes)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError):
        return None


def _exchanged(one: Any, other: Any, rows: list[int], sizes: tuple[int, int], depth: int = DEPTH) -> tuple[Any, Any]:
    """The same of a part of two batches; raises ValueError where it differs in anything else."""
    if type(one) is not type(other):
        raise ValueError("of another type")
    if isinstance(one, torch.Tensor):
        if one.ndim and (len(one), len(other)) == sizes:
            return _rows_exchanged(one, other, rows)
        if not torch.equal(one, other):
            raise ValueError("other values for the whole batch")
        return one, other
    if depth and isinstance(one, Mapping):
        if list(one) != list(other):
            raise ValueError("other names")
        both = copy.copy(one), copy.copy(other)
        for key in one:
            both[0][key], both[1][key] = _exchanged(one[key], other[key], rows, sizes, depth - 1)  # type: ignore[index]
        return both
    if depth and isinstance(one, Sequence) and not isinstance(one, (str, bytes)):
        return _of_sequences(one, other, rows, sizes, depth)
    if one is not other and one != other:
        raise ValueError("other values for the whole batch")
    return one, other


def _rows_exchanged(one: torch.Tensor, other: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
        raise ValueError("samples of another shape")
    first, second = one.clone(), other.clone()
    first[rows], second[rows] = other[rows], one[rows]
    return first, second


def _of_sequences(one: Any, other: Any, rows: list[int], sizes: tuple[int, int], depth: int) -> tuple[Any, Any]:
    if (len(one), len(other)) == sizes and not tensors_of(one):  # names, say
        both = list(one), list(other)
        for row in rows:
            both[0][row], both[1][row] = other[row], one[row]
    else:
        if len(one) != len(other):
            raise ValueError("other parts")
        pairs = [_exchanged(*pair, rows, sizes, depth - 1) for pair in zip(one, other, strict=True)]
        both = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if hasattr(one, "_fields"):
        return type(one)(*both[0]), type(one)(*both[1])
    return type(one)(both[0]), type(one)(both[1])
