"""What of an error budget can be computed, and what fits into the time that is given."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Evaluations, Objective
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import batch_view
from tvgrad.theory.training_steps import Schedule, missing_for_replay, recorded_steps


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
        consumed: where the consumed gradients come from: `records`, `replay`, or None where they are left out.
        batches: compute every recorded batch's gradient at theta_0.
        curvature: multiply H_0 with the weighted displacement.
        remainder: multiply every batch's Hessian with the displacement of its step.
        reason: why the consumed gradients are left out, as half a sentence.
        sentences: what is left out, and why.
    """

    consumed: str | None
    batches: bool
    curvature: bool
    remainder: bool
    reason: str
    sentences: tuple[str, ...]

    def without_replay(self, sentence: str) -> BudgetPlan:
        """Leave out what needs the consumed gradients.

        Args:
            sentence: why.

        Returns:
            The reduced plan.
        """
        return replace(self, consumed=None, remainder=False, sentences=(*self.sentences, sentence))


def measured_costs(objective: Objective) -> Costs:
    """Time one chunk's gradient and Hessian-vector product, and scale them to the whole data.

    Args:
        objective: model, loss and data; its counts of evaluations stay as they are.

    Returns:
        Estimated seconds of a pass.
    """
    chunk = min(objective.chunk_size, len(objective.samples))
    view = batch_view(objective, range(chunk), Evaluations())
    vector = view.gradient()  # the first call pays for what is set up once
    begin = time.perf_counter()
    view.gradient()
    middle = time.perf_counter()
    view.hvp(vector)
    end = time.perf_counter()
    chunks = len(objective.samples) / chunk
    return Costs(gradient=(middle - begin) * chunks, hvp=(end - middle) * chunks)


def plan_budget(
    run: Run, objective: Objective, schedule: Schedule, targets: int, seconds: float | None, remainder: bool
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
    """
    if seconds is not None and not seconds > 0:
        raise TvgradError(f"the time for an error budget must be above 0 seconds, not {seconds}")
    costs = None if seconds is None else measured_costs(objective)
    left = float("inf") if seconds is None else seconds
    epochs, steps = len(schedule.ends) - 1, schedule.ends[-1]
    said: list[str] = []

    def affords(what: str, gradients: float, hvps: float = 0.0) -> bool:
        nonlocal left
        needed = 0.0 if costs is None else gradients * costs.gradient + hvps * costs.hvp
        if needed <= left:
            left -= needed
            return True
        said.append(f"{what} is left out: it takes about {needed:.2g} s and {max(left, 0.0):.2g} s are left")
        return False

    known = schedule.full and run.info.get("consumes_recorded_gradient") and 0 in run.having("gradient")
    left -= 0.0 if known or costs is None else costs.gradient
    consumed, reason = None, ""
    if recorded_steps(run, schedule) is not None:
        consumed = "records"
    else:
        missing = (
            "its gradients or weights were not kept (--keep all keeps them)"
            if schedule.full
            else missing_for_replay(run, schedule)
        )
        if missing is not None:
            reason = missing
            said.append(f"what needs the consumed gradients is left out: {missing}")
        elif affords("what needs the consumed gradients", epochs):
            consumed = "replay"
        else:
            reason = "replaying its batches does not fit into the time given (give it more)"
    batches = schedule.batches is not None and affords("the effect of batch order and sizes", epochs)
    if schedule.batches is None and not schedule.full:
        why = "for the same reason" if reason == schedule.unknown else schedule.unknown
        said.append(f"batch order, batch sizes and curvature are one row: {why}")
    curvature = (batches or schedule.full) and affords("the curvature term", 0.0, targets)
    split = False
    if batches and curvature and consumed is not None and (remainder or seconds is not None):
        split = affords("the split of remainder and batch curvature", 0.0, epochs)
    elif batches and curvature and consumed is not None:
        said.append(
            f"remainder and batch curvature are one row: to split them takes {steps - 1} Hessian-vector products of a "
            "batch (give a time, or ask for the remainder)"
        )
    return BudgetPlan(consumed, batches, curvature, split, reason, tuple(said))
