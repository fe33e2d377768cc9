"""Weighing: how the gradients of batches add up to the full batch's. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

CLASS_WEIGHTS = 4
"""Place in `tvgrad.record.batch_items.COUNTERS` of what a watched loss of torch has divided by."""


class Weighing(str, Enum):
    """What the gradient of one backward pass is, and so how gradients add up to the full batch's."""

    MEAN = "mean"
    """A mean over the batch's items, times a constant: weighted by the items."""
    STEP = "step"
    """A sum over the batch's items, over the items of the optimizer step: steps are weighted by their items."""
    SUM = "sum"
    """A sum over the batch's items: added."""


@dataclass(frozen=True)
class BatchWeights:
    """How the batches of a script are weighted.

    Attributes:
        weighing: of what kind.
        counter: position in `tvgrad.record.batch_items.COUNTERS`.
        confirmed: whether a batch was the weighted mean of its two unequal parts.
        reason: why that is not known; empty where it is.
        noise: whether the same batch gave another gradient another time (dropout, say); None where that is not known.
        redrawn: whether samples that were read again were others (augmentation, say); None where that is not known.
        others: the counters that fitted as well as this one; batches of a pass may tell them apart.
        shared: whether a batch weighs otherwise where other processes have larger ones at the same time.
        likely: the one of them by which a pass weighs; None for `counter`.
    """

    weighing: Weighing = Weighing.MEAN
    counter: int = 0
    confirmed: bool = False
    reason: str = ""
    noise: bool | None = None
    redrawn: bool | None = None
    others: tuple[int, ...] = ()
    shared: bool = False
    likely: int | None = None

    @property
    def fitting(self) -> tuple[int, ...]:
        """All counters that fitted, with the one first that is named where they weigh alike."""
        return (self.counter, *self.others)

    @property
    def used(self) -> int:
        """The counter by which a pass weighs."""
        return self.counter if self.likely is None or self.likely not in self.others else self.likely

    def by(self, right: Sequence[int]) -> BatchWeights:
        """Keep to some of the counters that fitted.

        Args:
            right: which.

        Returns:
            Weights by those.
        """
        counter, *others = (one for one in self.fitting if one in right)
        return replace(self, counter=counter, others=tuple(others))
