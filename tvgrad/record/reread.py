"""reread: whether the samples of a loader are the same when they are read again.

A script that augments by a generator of its own, which it seeds, draws the same numbers in every start: two passes in
the same order agree to the bit. Samples that one process reads twice do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from tvgrad.record.batch_items import tensors_of

MOST = 64
"""At most so many samples are read twice: of an augmentation that changes one in ten, all are the same once in 10^6."""
LOOKED_AT = 100_000
"""So far into a loader's order they are spread."""


def reads_differ(loader: Any) -> bool | None:
    """Read samples from all over a data set twice, and collate them as the loader does.

    Args:
        loader: a DataLoader.

    Returns:
        Whether the second reading gave others; None where the data set has no numbered samples (a stream), or they
        cannot be read here.
    """
    try:
        read = _reader(loader)
        first, second = ([], []) if read is None else (tensors_of(read()), tensors_of(read()))
        return not _same(first, second) if first or second else None
    except Exception:  # noqa: BLE001 - the user's data set and collation may refuse in any way
        return None


def _reader(loader: Any) -> Callable[[], Any] | None:
    """What reads and collates some samples, always the same numbers."""
    data, batches = loader.dataset, getattr(loader, "batch_sampler", None)
    if isinstance(data, torch.utils.data.IterableDataset):
        return None
    if batches is None:
        chosen = _spread(loader.sampler)
        return lambda: [loader.collate_fn(data[number]) for number in chosen]
    chosen = _spread(itertools.chain.from_iterable(batches))
    several = getattr(data, "__getitems__", None)
    return lambda: loader.collate_fn(several(chosen) if several else [data[number] for number in chosen])


def _spread(order: Iterable[Any]) -> list[Any]:
    numbers = list(itertools.islice(order, LOOKED_AT))
    return numbers[:: max(1, -(-len(numbers) // MOST))]


def _same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(_equal, first, second))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same, numbers that are none included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
