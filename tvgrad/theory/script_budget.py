"""The error budget of a script's run, from sums that the script has formed when it was started again.

Nodes and rows are those of `tvgrad.theory.error_budget`. Remainder and batch curvature are one row, which a recipe
tells apart. Curvature is a row of its own where the product of the full-batch Hessian with the weighted displacement is
given: an estimate, for a script has no such products but by differences of its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.store.measured import as_estimate, error_bar
from tvgrad.store.run import Run
from tvgrad.theory.budget_rows import EpochBudget, Row, rows_between
from tvgrad.theory.error_budget import MOST_MISMATCH, ErrorBudget, epochs_with_task_vector
from tvgrad.theory.training_steps import schedule_of
from tvgrad.update_rules.grouped import is_linear
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.vectors.parameters import inner_product, norm
from tvgrad.wording import percent

Vector = Mapping[str, torch.Tensor]
Sums = Mapping[int, Mapping[ScriptSum, Vector]]


def step_plan(run: Run, epochs: Sequence[int], curvature: bool = True) -> StepPlan:
    """Say which sums over the steps of a script explain its task vectors.

    Args:
        run: a script's run, recorded by epoch, with a known update rule.
        epochs: after which its task vector is explained.
        curvature: whether a row of its own is wanted.

    Returns:
        The plan.

    Raises:
        TvgradError: the run cannot be explained, or an epoch was not kept.
    """  # noqa: DOC502 - also raised by schedule_of
    kept = epochs_with_task_vector(run)
    wanted = sorted(set(epochs))
    missing = [number for number in wanted if number not in kept]
    if missing or not wanted:
        raise TvgradError(f"{run.root} keeps no weights after {run.unit} {missing or 'any'}: choose from {kept}")
    schedule = schedule_of(run, wanted[-1])
    if any(clip == 0 or not math.isfinite(clip) for clip in schedule.clips):
        raise TvgradError(f"{run.root} has a clip factor that is 0 or not finite in its table of steps")
    weights = {epoch: schedule.rule_until(epoch).momentum_weights(schedule.ends[epoch]).tolist() for epoch in wanted}
    return StepPlan(schedule.rule_until(wanted[-1]).to_dict(), schedule.ends, schedule.clips, weights, curvature)


def followed_epochs(run: Run, trained: Sums, same_batches: bool) -> list[int]:
    """List the epochs that a script, started again, trained as the run says.

    Args:
        run: the run.
        trained: sums of the script's training, done again.
        same_batches: whether it went through the batches of the run.

    Returns:
        The epochs, of those that are explained.
    """
    if not same_batches:
        return []
    return [epoch for epoch, sums in trained.items() if _mismatch(run, epoch, sums[ScriptSum.AFTER]) <= MOST_MISMATCH]


def script_budget(
    run: Run,
    plan: StepPlan,
    trained: Sums,
    at_start: Sums,
    same_batches: bool,
    *,
    products: Mapping[int, Vector] | None = None,
    said: Sequence[str] = (),
) -> ErrorBudget:
    """Cut the residual of a script's task vectors into rows.

    Args:
        run: the run, with the full-batch gradient at theta_0.
        plan: what was asked for.
        trained: sums of the script's training, done again.
        at_start: sums of a pass at theta_0.
        same_batches: whether both went through the batches of the run.
        products: epoch -> the full-batch Hessian at theta_0 times the sum of weighted displacements, an estimate.
        said: sentences on those.

    Returns:
        The budgets.

    Raises:
        TvgradError: the rule has a preconditioner, and the training done again is another one.
    """
    products = products or {}
    joined = "remainder and batch curvature" if products else "remainder, batch curvature and curvature"
    followed = followed_epochs(run, trained, same_batches)
    split = f"{joined} are one row: to split them takes Hessian-vector products of batches (--recipe)"
    sentences = [*([split] if followed else []), *said]
    bar = error_bar(run, 0)
    if bar is not None:
        sentences.append(f"g_0 is {as_estimate(bar)}: so is every row with it")
    budgets: dict[int, EpochBudget] = {}
    for epoch in plan.weights:
        off = _mismatch(run, epoch, trained[epoch][ScriptSum.AFTER])
        if epoch not in followed:
            sentences.append(
                f"the command, started again, trained on other batches or to other weights (epoch {epoch}: "
                f"{percent(off)} of the task vector away), so that only coverage has a row: a script that seeds its "
                "random numbers trains the same way again"
            )
        elif off:
            sentences.append(f"the training done again ended {percent(off)} away in epoch {epoch}: a row of its own")
        product = products.get(epoch)
        sums = trained[epoch], at_start[epoch]
        budgets[epoch] = _epoch_budget(run, epoch, plan, *sums, followed=epoch in followed, product=product)
    sentences.append("shares depend on the order of the terms")
    return ErrorBudget(
        tuple(row for budget in budgets.values() for row in budget.rows),
        {epoch: budget.residual_norm for epoch, budget in budgets.items()},
        {epoch: budget.relative_residual for epoch, budget in budgets.items()},
        max(budget.gap for budget in budgets.values()),
        Evaluations(),
        Evaluations(),
        tuple(sentences),
    )


def _epoch_budget(
    run: Run,
    epoch: int,
    plan: StepPlan,
    trained: Mapping[ScriptSum, Vector],
    at_start: Mapping[ScriptSum, Vector],
    *,
    followed: bool,
    product: Vector | None,
) -> EpochBudget:
    rule, clipped = rule_from_dict(plan.rule), any(clip != 1 for clip in plan.clips[: plan.ends[epoch]])
    linear = is_linear(rule)
    if not linear and not followed:
        raise TvgradError(
            f"{run.root} was trained by {rule.name}, whose preconditioner is known from the consumed gradients alone, "
            "and the command, started again, trains another way: fix its seeds, and give those it was recorded with"
        )
    kappa, nodes = 1.0, dict[Row, Vector]()
    unknown = _clips_unknown(run, plan.ends[epoch])
    absent = {Row.REPLAY_MISMATCH} | (set() if clipped or unknown else {Row.CLIPPING})
    absent |= (set() if rule.decays else {Row.WEIGHT_DECAY}) | ({Row.PRECONDITIONER} if linear else set())
    if followed:
        nodes[Row.UPDATE_ROUNDING] = trained[ScriptSum.RULE]
        nodes[Row.WEIGHT_DECAY] = trained[ScriptSum.WITHOUT_DECAY if rule.decays else ScriptSum.RULE]
        if _mismatch(run, epoch, trained[ScriptSum.AFTER]):
            absent -= {Row.REPLAY_MISMATCH}
            nodes[Row.REPLAY_MISMATCH] = LazyCombination((1.0, trained[ScriptSum.AFTER]), (-1.0, run.weights(0)))
        if not linear:
            kappa = _nearest_multiple(nodes[Row.WEIGHT_DECAY], trained[ScriptSum.CONSUMED])
        nodes[Row.PRECONDITIONER] = LazyCombination((-kappa, trained[ScriptSum.CONSUMED]))
        if clipped and not unknown:
            nodes[Row.CLIPPING] = LazyCombination((-kappa, trained[ScriptSum.UNCLIPPED]))
        nodes[Row.CURVATURE] = LazyCombination((-kappa, at_start[ScriptSum.BATCH_GRADIENT]))
        if product is not None:
            nodes[Row.BATCH_CURVATURE] = LazyCombination((1.0, nodes[Row.CURVATURE]), (-kappa, product))
        nodes[Row.BATCH_ORDER] = LazyCombination((-kappa, at_start[ScriptSum.EQUAL_BATCHES]))
    nodes[Row.UNEQUAL_BATCHES] = LazyCombination((-kappa, at_start[ScriptSum.BATCHES_BY_SIZE]))
    summed = LazyCombination((plan.of_steps(epoch, 0, plan.ends[epoch]), run.gradient(0)))
    nodes[Row.COVERAGE] = LazyCombination((-kappa, summed))
    terms = {} if str(run.info.get("dtype")) == "float64" else {Row.REMAINDER: "remainder and gradient rounding"}
    if product is not None:
        terms |= {Row.BATCH_CURVATURE: "batch curvature (estimate)", Row.CURVATURE: "curvature (estimate)"}
    return rows_between(run, epoch, nodes, absent=absent, terms=terms, unexplained=not followed)


def _clips_unknown(run: Run, steps: int) -> bool:
    """Whether a step was clipped by more than one factor: then clipping is part of the next row."""
    table = run.steps().iloc[:steps]
    return "clipped_in_parts" in table and bool(table["clipped_in_parts"].notna().any())


def _nearest_multiple(moved: Vector, consumed: Vector) -> float:
    """Kappa: which multiple of minus the consumed sum lies nearest to what the rule did."""
    size = inner_product(consumed, consumed)
    return -inner_product(moved, consumed) / size if size else 1.0


def _mismatch(run: Run, epoch: int, after: Vector) -> float:
    """How far a training done again is from the recorded one, relative to the task vector; 0 for the same bits."""
    recorded = run.weights(epoch)
    if all(torch.equal(tensor, after[name]) for name, tensor in recorded.items()):
        return 0.0
    length = norm(LazyCombination((1.0, recorded), (-1.0, run.weights(0))))
    return norm(LazyCombination((1.0, recorded), (-1.0, after))) / length if length else math.inf
