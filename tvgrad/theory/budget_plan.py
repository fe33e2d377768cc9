"""What of an error budget can be computed, and what fits into the time that is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import batch_view
from tvgrad.theory.training_steps import Schedule, missing_for_replay, recorded_steps, records_first_gradient
from tvgrad.update_rules.grouped import UNLIKE, weighs_alike

NOT_REPRODUCED = (
    "the replay of its batches does not reproduce the recorded weights (another machine, another recipe or script: "
    "replay it on the machine that recorded it, with the recipe that made it)"
)


SHORT = 1.0  # seconds: what takes less is done twice, as the first call pays for what is set up once


class Source(Enum):
    """Where the consumed gradients come from."""

    RECORDS = "the run's files"
    REPLAY = "its recorded batches, gone through again"


@dataclass(frozen=True)
class Costs:
    """Seconds of one pass over the data, measured on one chunk.

    Attributes:
        gradient: a full-batch gradient.
        hvp: a full-batch Hessian-vector product.
    """

    gradient: float
    hvp: float


@dataclass(frozen=True)
class BudgetPlan:
    """What will be computed.

    Attributes:
        source: where the consumed gradients come from; None where they are left out.
        batches: compute every recorded batch's gradient at theta_0.
        curvature: multiply H_0 with the weighted displacement.
        remainder: multiply every batch's Hessian with the displacement of its step.
        reason: why the consumed gradients are left out, as half a sentence.
        sentences: what is left out, and why.
    """

    source: Source | None
    batches: bool
    curvature: bool
    remainder: bool
    reason: str
    sentences: tuple[str, ...]

    def without_replay(self) -> BudgetPlan:
        """Leave out what needs the consumed gradients, because the replay is another trajectory.

        Returns:
            The reduced plan.
        """
        sentences = (*self.sentences, f"what needs the consumed gradients is left out: {NOT_REPRODUCED}")
        return replace(self, source=None, remainder=False, reason=NOT_REPRODUCED, sentences=sentences)


def measured_costs(objective: Objective) -> Costs:
    """Time one chunk's gradient and Hessian-vector product, and scale them to the whole data.

    Args:
        objective: model, loss and data; its counts of evaluations stay as they are.

    Returns:
        Estimated seconds of a pass.
    """
    chunk = min(objective.chunk_size, len(objective.samples))
    view = batch_view(objective, range(chunk))
    vector = view.gradient()  # the first call pays for what is set up once
    gradient, product = _seconds(view.gradient), _seconds(lambda: view.hvp(vector))
    if product < SHORT:
        product = min(product, _seconds(lambda: view.hvp(vector)))
    chunks = len(objective.samples) / chunk
    return Costs(gradient=gradient * chunks, hvp=product * chunks)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def gradient_seconds(objective: Objective) -> float:
    """Time one chunk's gradient, and scale it to the whole data.

    Args:
        objective: model, loss and data; its counts of evaluations stay as they are.

    Returns:
        Estimated seconds of a full-batch gradient.
    """
    chunk = min(objective.chunk_size, len(objective.samples))
    view = batch_view(objective, range(chunk))
    view.gradient()  # the first call pays for what is set up once
    begin = time.perf_counter()
    view.gradient()
    return (time.perf_counter() - begin) * len(objective.samples) / chunk


class _TimeLeft:
    """The time that is left, and sentences on what did not fit into it."""

    def __init__(self, objective: Objective, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise TvgradError(f"the time for an error budget must be above 0 seconds, not {seconds}")
        self.costs = Costs(0.0, 0.0) if seconds is None else measured_costs(objective)
        self.left = math.inf if seconds is None else seconds
        self.sentences: list[str] = []

    def spend(self, what: str, gradients: int = 0, hvps: int = 0) -> bool:
        """Set time aside for passes over the data; where there is too little, say what is left out."""
        needed = gradients * self.costs.gradient + hvps * self.costs.hvp
        if needed > self.left:
            left = max(self.left, 0.0)
            self.sentences.append(f"{what} is left out: it takes about {needed:.2g} s and {left:.2g} s are left")
            return False
        self.left -= needed
        return True


def plan_budget(
    run: Run, objective: Objective, schedule: Schedule, *, targets: int, seconds: float | None, remainder: bool
) -> BudgetPlan:
    """Decide what to compute.

    Args:
        run: the run.
        objective: of its recipe.
        schedule: of its steps.
        targets: how many epochs are to be explained.
        seconds: the time there is; None leaves nothing out for lack of it.
        remainder: whether batch Hessian-vector products are wanted when no time is set.

    Returns:
        The plan.

    Raises:
        TvgradError: the time is not a positive number.
    """  # noqa: DOC502 - raised by _TimeLeft
    time_left = _TimeLeft(objective, seconds)
    said, epochs = time_left.sentences, len(schedule.ends) - 1
    if not (schedule.full and records_first_gradient(run)):
        time_left.left -= time_left.costs.gradient  # g_0 is needed whatever else is left out
    source, reason = _source(run, schedule, time_left)
    batches = schedule.batches is not None and time_left.spend("the effect of batch order and sizes", gradients=epochs)
    if schedule.batches is None and not schedule.full:
        why = "for the same reason" if reason == schedule.unknown else schedule.unknown
        said.append(f"batch order, batch sizes and curvature are one row: {why}")
    alike = weighs_alike(schedule.rule, schedule.ends[-1])
    said += [] if alike else [UNLIKE]
    curvature = alike and (batches or schedule.full) and time_left.spend("the curvature term", hvps=targets)
    can_split = batches and curvature and source is not None
    if can_split and not remainder and seconds is None:
        said.append(
            f"remainder and batch curvature are one row: to split them takes {schedule.ends[-1] - 1} Hessian-vector "
            "products of a batch (give a time, or ask for the remainder)"
        )
        can_split = False
    split = can_split and time_left.spend("the split of remainder and batch curvature", hvps=epochs)
    return BudgetPlan(source, batches, curvature, split, reason, tuple(said))


def _source(run: Run, schedule: Schedule, time_left: _TimeLeft) -> tuple[Source | None, str]:
    """Where the consumed gradients come from, or why they are left out."""
    if recorded_steps(run, schedule) is not None:
        return Source.RECORDS, ""
    if schedule.full:
        missing: str | None = "its gradients or weights were not kept (--keep all keeps them)"
    else:
        missing = missing_for_replay(run, schedule)
    if missing is not None:
        time_left.sentences.append(f"what needs the consumed gradients is left out: {missing}")
        return None, missing
    if time_left.spend("what needs the consumed gradients", gradients=len(schedule.ends) - 1):
        return Source.REPLAY, ""
    return None, "replaying its batches does not fit into the time given (give it more)"
