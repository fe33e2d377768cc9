"""spread_batch: a batch of samples from all over a data set, by which the weights of batches are found out.

A first batch may be one of a kind: of one class, where a file is sorted by class, or of rows of one length. Then
samples, tokens and class weights weigh its parts alike, and what would tell them apart comes in later batches.
"""

from __future__ import annotations

import itertools
from typing import Any

from tvgrad.record.batch_items import items_of, tensors_of

MOST = 1_000_000
"""So many samples of a loader's order are looked at: more of them would take memory that grows with the data."""
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
    wanted = items_of(batch, tokens=False).samples
    sampler: Any = getattr(loader, "batch_sampler", None)
    if wanted < 2 or type(sampler).__module__.split(".")[0] not in LIBRARIES:
        return batch
    try:
        order = list(itertools.islice(itertools.chain.from_iterable(sampler), MOST))
        if len(order) <= wanted:
            return batch
        numbers = [order[place * (len(order) - 1) // (wanted - 1)] for place in range(wanted)]
        data = loader.dataset
        several = getattr(data, "__getitems__", None)
        made = loader.collate_fn(several(numbers) if several else [data[number] for number in numbers])
    except Exception:  # noqa: BLE001 - the user's data set and collation may refuse in any way
        return batch
    alike = [tensor.ndim for tensor in tensors_of(made)] == [tensor.ndim for tensor in tensors_of(batch)]
    return made if alike and items_of(made, tokens=False).samples == wanted else batch
