"""Weighing: how the gradients of batches add up to the full batch's. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
        tokens: whether tokens weigh the batch and its parts as well as samples do, which were taken.
    """

    weighing: Weighing = Weighing.MEAN
    counter: int = 0
    confirmed: bool = False
    reason: str = ""
    noise: bool | None = None
    redrawn: bool | None = None
    tokens: bool = False
