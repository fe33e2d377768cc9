"""spread_batch: a batch of samples from all over a data set, by which the weights of batches are found out.

A first batch may be one of a kind: of one class, where a file is sorted by class, or of rows of one length. Then
samples, tokens and class weights weigh its parts alike, and what would tell them apart comes in later batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tvgrad.record.batch_items import items_of, tensors_of

LOOKED_AT = 64
"""Samples whose whole numbers are compared: two of them that differ most go into the batch."""
MOST = 1_000_000
"""So many samples of a loader's order are looked at: more of them would take memory that grows with the data."""
MOST_READ = 100_000
"""So many are read in search of such as tell counts apart."""
FAR = 0.02
"""A difference of shares with which that search is content; gradients of float32 tell it."""
LIBRARIES = ("torch", "accelerate")
"""Batches of their samplers are cut from an order of samples; those of others may belong together."""


def spread_batch(loader: Any, batch: Any) -> Any:
    """Collate samples that are spread evenly over the order in which a loader goes through its data set.

    Args:
        loader: it.
        batch: one that it returned.

    Returns:
        A batch of as many samples; `batch` itself where the loader does not collate samples of a data set by their
        numbers, or cannot collate these.
    """

    def chosen(order: list[Any], wanted: int) -> list[Any]:
        numbers = _spread(order, wanted)
        ends = _most_apart(loader, _spread(order, min(LOOKED_AT, len(order))))
        if ends is not None:  # one in each part: the first rows are the smaller one
            numbers[0], numbers[-1] = ends
        return numbers

    made = _made(loader, batch, chosen)
    return batch if made is None else made


def mixed_batch(loader: Any, batch: Any, counts: Callable[[Any], Sequence[float]]) -> Any:
    """Collate samples of which some counts are in other proportions than of others, these at the end.

    Args:
        loader: as for `spread_batch`.
        batch: one that it returned.
        counts: of a batch: several counts.

    Returns:
        A batch of as many samples; None where the loader has no such samples, or cannot collate them.
    """

    def chosen(order: list[Any], wanted: int) -> list[Any]:
        most, fewest = _out_of_proportion(lambda number: counts(_collated(loader, [number])), order[:MOST_READ])
        numbers, last = _spread(order, wanted), list(dict.fromkeys(fewest))[: wanted - max(1, wanted // 3)]
        return [most[0], *numbers[1 : wanted - len(last)], *last]

    return _made(loader, batch, chosen)


def _made(loader: Any, batch: Any, chosen: Callable[[list[Any], int], list[Any]]) -> Any:
    """Collate some samples of a loader's order; None where that cannot be."""
    wanted = items_of(batch, tokens=False).samples
    sampler: Any = getattr(loader, "batch_sampler", None)
    if wanted < 2 or type(sampler).__module__.split(".")[0] not in LIBRARIES:
        return None
    try:
        order = list(itertools.islice(itertools.chain.from_iterable(sampler), MOST))
        if len(order) <= wanted:
            return None
        made = _collated(loader, chosen(order, wanted))
    except Exception:  # noqa: BLE001 - the user's data set and collation may refuse in any way
        return None
    alike = [tensor.ndim for tensor in tensors_of(made)] == [tensor.ndim for tensor in tensors_of(batch)]
    return made if alike and items_of(made, tokens=False).samples == wanted else None


def _out_of_proportion(counts: Callable[[Any], Sequence[float]], order: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """For each count but the first, two samples that have it in other proportions to it: with more, and with less."""
    lowest: dict[int, tuple[float, float, Any]] = {}
    highest: dict[int, tuple[float, float, Any]] = {}
    for number in order:
        first, *others = counts(number)
        for place, count in enumerate(others):
            one = (count / (first + count) if first + count else 0.0, first + count, number)
            if one[0] < lowest.setdefault(place, one)[0]:
                lowest[place] = one
            if one[0] > highest.setdefault(place, one)[0]:
                highest[place] = one
        if all(highest[place][0] - low[0] > FAR for place, low in lowest.items()):
            break
    pairs = [(highest[place], low) for place, low in lowest.items() if highest[place][0] > low[0]]
    if not pairs:
        raise ValueError("all samples have their counts in the same proportions")
    sizes = [(max(pair, key=lambda one: one[1]), min(pair, key=lambda one: one[1])) for pair in pairs]
    return [more[2] for more, _ in sizes], [less[2] for _, less in sizes]


def _spread(order: list[Any], wanted: int) -> list[Any]:
    """Some of an order, from its first to its last."""
    return [order[place * (len(order) - 1) // (wanted - 1)] for place in range(wanted)]


def _collated(loader: Any, numbers: list[Any]) -> Any:
    data = loader.dataset
    several = getattr(data, "__getitems__", None)
    return loader.collate_fn(several(numbers) if several else [data[number] for number in numbers])


def _most_apart(loader: Any, numbers: list[Any]) -> tuple[Any, Any] | None:
    """Two samples that differ most in a whole number: of another class, or with another number of masked tokens."""
    # What a loss divides by hangs on such numbers, and samples that have them in common tell nothing of it.
    rows: list[list[torch.Tensor]] = []
    try:
        for number in numbers:
            whole = [tensor for tensor in tensors_of(_collated(loader, [number])) if not tensor.is_floating_point()]
            rows.append([tensor.flatten() for tensor in whole if tensor.ndim and len(tensor) == 1])
    except Exception:  # noqa: BLE001 - a collation may refuse a single sample
        return None
    for place in reversed(range(min(map(len, rows), default=0))):  # targets come last
        column = [row[place] for row in rows]
        apart = _by_class(column) if all(len(one) == 1 for one in column) else _by_counts(column)
        if apart is not None:
            return numbers[apart[0]], numbers[apart[1]]
    return None


def _by_class(column: list[torch.Tensor]) -> tuple[int, int] | None:
    values = [float(one) for one in column]
    low, high = values.index(min(values)), values.index(max(values))
    return None if values[low] == values[high] else (low, high)


def _by_counts(column: list[torch.Tensor]) -> tuple[int, int] | None:
    """Where some value, as that of masked tokens is, comes most often and most seldom."""
    counts: dict[float, list[int]] = {}
    for place, one in enumerate(column):
        values, times = one.unique(return_counts=True)
        for value, often in zip(values.tolist(), times.tolist(), strict=True):
            counts.setdefault(value, [0] * len(column))[place] = often
    best = max(counts.values(), key=lambda found: max(found) - min(found), default=[0])
    return None if max(best) == min(best) else (best.index(max(best)), best.index(min(best)))
