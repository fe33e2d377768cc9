"""PassOptions: what one pass at recorded weights does, as the process that runs the script is told."""

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
        counter: position in `tvgrad.integrations.script.batch_items.COUNTERS`.
        confirmed: whether a batch was the weighted mean of its two unequal parts.
        reason: why that is not known; empty where it is.
        noise: whether the same batch gave another gradient another time (dropout, say); None where that is not known.
    """

    weighing: Weighing = Weighing.MEAN
    counter: int = 0
    confirmed: bool = False
    reason: str = ""
    noise: bool | None = None


@dataclass(frozen=True)
class PassOptions:
    """One start of the command.

    Attributes:
        run: the run directory, absolute.
        number: whose weights are put in.
        parent: the process that waits for this one.
        model: the recorded model's name, where several have its parameters.
        weighing: see `BatchWeights`; of no use to a probe.
        counter: see `BatchWeights`.
        probe: find the weights out instead of measuring.
        reseed: for other random numbers than the script's own; None leaves those.
        coefficients: a file with a `tvgrad.record.step_plan.StepPlan`, where sums over steps are wanted, or None.
        train: train as the script does, instead of staying at the weights.
        shift: a file with a vector that is added to the weights, or None.
    """

    run: str
    number: int
    parent: int
    model: str | None = None
    weighing: str = Weighing.MEAN.value
    counter: int = 0
    probe: bool = False
    reseed: int | None = None
    coefficients: str | None = None
    train: bool = False
    shift: str | None = None
