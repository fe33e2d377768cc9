"""CountRatios: whether several ways of counting batches weigh them alike, so that it is no matter which is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvgrad.record.batch_items import COUNTERS

SAME = 1e-9
"""Ratios of counts are whole numbers' or sums' of class weights, in float64."""


class CountRatios:
    """The least and the largest ratio, over batches, of each count to the one that weighs them.

    Attributes:
        ranges: for each of `COUNTERS`.
    """

    def __init__(self, counter: int) -> None:
        """Start before the first batch.

        Args:
            counter: position in `COUNTERS` of the count that weighs.
        """
        self._counter = counter
        self.ranges: list[tuple[float, float]] = [(math.inf, -math.inf)] * len(COUNTERS)

    def add(self, counts: Sequence[float]) -> None:
        """Look at a batch.

        Args:
            counts: of it, in the order of `COUNTERS`.
        """
        weight = counts[self._counter]
        ratios = [count / weight if weight else math.inf if count else None for count in counts]
        self._widen([(math.inf, -math.inf) if ratio is None else (ratio, ratio) for ratio in ratios])

    def join(self, others: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Look at the batches of other processes.

        Args:
            others: the `ranges` of each.
        """
        for ranges in others:
            self._widen(ranges)

    @property
    def unlike(self) -> list[int]:
        """The counters that weigh the batches otherwise than the one that was used."""
        return [
            place
            for place, (least, most) in enumerate(self.ranges)
            if least <= most and not (most < math.inf and most - least <= SAME * most)
        ]

    def _widen(self, ranges: Sequence[tuple[float, float]]) -> None:
        both = zip(self.ranges, ranges, strict=True)
        self.ranges = [(min(low, least), max(high, most)) for (low, high), (least, most) in both]
