"""PassOptions: what one pass at recorded weights does, as the process that runs the script is told."""

from __future__ import annotations

from dataclasses import dataclass

from tvgrad.record.weighing import Weighing


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
        tell: counters that a probe's batch must tell from the first of them.
        apart: values of targets that the loss ignores, or that weigh otherwise than most, by which it is looked for.
        exchange: so many batches of each process exchange samples with the next; empty for none.
        reseed: for other random numbers than the script's own; None leaves those.
        coefficients: a file with a `tvgrad.record.step_plan.StepPlan`, where sums over steps are wanted, or None.
        train: train as the script does, instead of staying at the weights.
        shift: a file with a vector that is added to the weights, or None.
        along: times this.
        trial: so many steps, before the pretrained weights were put back, are no part of the training.
    """

    run: str
    number: int
    parent: int
    model: str | None = None
    weighing: str = Weighing.MEAN.value
    counter: int = 0
    probe: bool = False
    tell: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    exchange: tuple[int, ...] = ()
    reseed: int | None = None
    coefficients: str | None = None
    train: bool = False
    shift: str | None = None
    along: float = 1.0
    trial: int = 0
