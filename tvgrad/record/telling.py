"""Telling: by which counters the parts of a batch must weigh differently, so that it tells which of them is right.

The first batch that is looked at may have samples of one kind only, of which several counters weigh the parts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvgrad.record.batch_items import items_of, targets_of
from tvgrad.record.batch_weights import split
from tvgrad.record.exchange import exchanged
from tvgrad.record.spread_batch import mixed_batch
from tvgrad.record.weighing import CLASS_WEIGHTS

Pieces = tuple[Any, Any]


@dataclass(frozen=True)
class Telling:
    """Counters that are to be told apart.

    Attributes:
        counters: positions in `COUNTERS`: of the one that weighs, then of those that weigh otherwise.
        apart: values of targets that the loss ignores, or that weigh otherwise than most.
    """

    counters: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()

    @property
    def wanted(self) -> int:
        """How many counters a batch is to tell from the first."""
        return len(self.counters[1:])

    def counts(self, batch: Any) -> list[float]:
        """Count a batch, before a loss has seen it.

        Args:
            batch: what a loader returned.

        Returns:
            For each of the counters; of class weights, so many targets as weigh what most do.
        """
        found = list(items_of(batch).counts)
        target = targets_of(batch) if self.apart and CLASS_WEIGHTS in self.counters else None
        if target is not None:
            found[CLASS_WEIGHTS] = float(target.numel() - sum(int((target == one).sum()) for one in self.apart))
        return [found[one] for one in self.counters]

    def told(self, pieces: Pieces | None) -> float:
        """Tell how many counters weigh the parts of a batch otherwise than the first of them.

        Args:
            pieces: the parts.

        Returns:
            So many; by half those where a part is nothing by a counter: the loss may be 0/0 of it.
        """
        if pieces is None or not self.counters:
            return 0.0
        (base, *first), (base_of_second, *second) = map(self.counts, pieces)
        pairs = [pair for pair in zip(first, second, strict=True) if pair[0] * base_of_second != pair[1] * base]
        return sum(1.0 if all((base, base_of_second, *pair)) else 0.5 for pair in pairs)

    def parts(self, loader: Any, batch: Any, fetch: Callable[[], Any]) -> tuple[Any, Pieces | None, float]:
        """Find a batch that tells most counters apart: of samples from all over the data, or a later one of the loader.

        Args:
            loader: that the pass goes over.
            batch: its first one.
            fetch: fetches its next one; raises StopIteration.

        Returns:
            The batch; its parts; how many counters they tell from the first.
        """
        best, found = -1.0, (batch, split(batch))
        for whole in self._candidates(loader, batch, fetch):
            rows = range(items_of(whole, tokens=False).samples)
            for pieces in (split(whole), split(whole, rows), split(whole, [*rows[::2], *rows[1::2]])):
                told = self.told(pieces)
                if told > best:
                    best, found = told, (whole, pieces)
            if best >= self.wanted:
                break
        return *found, best

    def _candidates(self, loader: Any, batch: Any, fetch: Callable[[], Any]) -> Iterator[Any]:
        mixed = mixed_batch(loader, batch, self.counts)
        if mixed is not None:
            yield mixed
        yield batch
        while True:
            try:
                other = fetch()
            except StopIteration:
                return
            yield other
            both = exchanged(batch, other)
            if both is not None:
                yield both[0]  # every second sample is of the other batch
