"""What explaining a run takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvgrad.cost import Cost, held_bytes
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.store.run import Run
from tvgrad.theory.budget_plan import Source, measured_costs, plan_budget
from tvgrad.theory.error_budget import epochs_with_task_vector
from tvgrad.theory.explain import VECTORS_AN_EPOCH, budget_epochs
from tvgrad.theory.kinks import kinks_of
from tvgrad.theory.training_steps import Schedule, records_first_gradient, schedule_of
from tvgrad.update_rules.linear import LinearRule

VECTORS = 6
"""Float64 vectors that the predictions hold: theta_0, the expansion's and the path's."""


def explain_cost(run: Run, objective: Objective, epochs: Sequence[int] | None, *, remainder: bool) -> Cost:
    """Tell what `explain` takes without a limit of time, bounds apart.

    Time: the passes over the data, each as long as one of its chunks now, times the number of chunks. Memory: what the
    process holds after these chunks, eight float64 vectors for each epoch whose budget is made, and six for the
    predictions.

    Args:
        run: a recorded run.
        objective: of its recipe.
        epochs: whose budgets are made; None for the default.
        remainder: whether the remainder is split.

    Returns:
        The cost.
    """
    counts, wanted = planned_evaluations(run, objective, epochs, remainder=remainder)
    costs = measured_costs(objective)
    size = sum(math.prod(parameter.shape) for parameter in run.parameters.values())
    return Cost(
        f"{run.name}, {counts.gradients} gradients and {counts.hvps} Hessian-vector products over the data",
        counts.gradients * costs.gradient + counts.hvps * costs.hvp,
        held_bytes() + (VECTORS_AN_EPOCH * wanted + VECTORS) * 8 * size,
        0,
        "tables in the run",
    )


def planned_evaluations(
    run: Run, objective: Objective, epochs: Sequence[int] | None, *, remainder: bool
) -> tuple[Evaluations, int]:
    """Count what `explain` will compute.

    Args:
        run: a recorded run.
        objective: of its recipe.
        epochs: whose budgets are made; None for the default.
        remainder: whether the remainder is split.

    Returns:
        Passes over the data, batches of an epoch counted as one, and the number of budgets.
    """
    kept = epochs_with_task_vector(run)
    schedule = schedule_of(run, kept[-1])
    passes = len(schedule.ends) - 1
    counts = _predictions(run, schedule, passes)
    if isinstance(schedule.rule, LinearRule) and kinks_of(objective):
        counts += Evaluations(gradients=1, hvps=1)
    wanted = len(budget_epochs(run, kept, [])) if epochs is None else len(epochs)
    plan = plan_budget(run, objective, schedule, targets=wanted, seconds=None, remainder=remainder)
    counts += Evaluations(
        gradients=(not (schedule.full and records_first_gradient(run)))
        + passes * (plan.batches + (plan.source is Source.REPLAY)),
        hvps=wanted * plan.curvature + passes * plan.remainder,
    )
    return counts, wanted


def _predictions(run: Run, schedule: Schedule, passes: int) -> Evaluations:
    """What the second-order predictions compute."""
    if not isinstance(schedule.rule, LinearRule):
        return Evaluations()
    if schedule.batches is not None:
        return Evaluations(gradients=passes, hvps=2 * passes)
    products = (2 if schedule.rule.decoupled_decay else 1) + (max(0, passes - 2) if schedule.full else 0)
    return Evaluations(gradients=0 if records_first_gradient(run) else 1, hvps=products)
