"""Certified errors: upper bounds on the second-order error of a recorded run, where a certificate exists.

The recorded error is `||tau_k + S_k g||` with the recorded weights and the gradient g that the prediction uses. With
theta~ the iterates of exact arithmetic on the recipe's data and g~ their first gradient,

    ||tau_k + S_k g|| <= ||tau~_k + S_k g~|| + ||theta_k - theta~_k|| + S_k ||g - g~||,

where a tube round the recorded weights (with mini-batches round the path that float64 takes through the recorded
batches) bounds the first two terms, and the third is computed.
"""

from __future__ import annotations

import time

import torch

from tvgrad.bounds.certificates.batches import Batches
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.bounds.certificates.tubes import StepBound, certify_steps
from tvgrad.bounds.feedforward import FeedForward
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.store.run import Run
from tvgrad.theory.training_steps import schedule_of
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import linear_rule
from tvgrad.vectors.parameters import Weights


def bounds_of_run(
    run: Run, recipe: Recipe, objective: Objective, *, seconds: float | None = None
) -> tuple[dict[int, float], str | None]:
    """Bound `||tau_k + S_k g_0||` of recorded weights, for every epoch for which a certificate exists.

    Args:
        run: a run by epochs, each one full-batch step, or of batches that were recorded.
        recipe: its recipe.
        objective: of the same recipe, whose gradient the prediction uses where the run recorded none.
        seconds: leave out the later epochs where theirs are estimated not to fit into this time; None bounds all.

    Returns:
        Epoch -> upper bound, and the sentence that says why there are no (more) bounds, or None.
    """
    rule = run.rule
    if not isinstance(rule, LinearRule) or rule.coupled_decay or rule.decoupled_decay:
        return (
            {},
            "no bound: certificates of runs are for linear update rules without weight decay, one for all",
        )
    last = _unbroken(run)
    if last < 1:
        return {}, "no bound: it needs the weights of every epoch, each one full-batch step or of recorded batches"
    try:
        schedule = schedule_of(run, last)
        if not schedule.full and schedule.batches is None:
            return {}, f"no bound: not every epoch is known to be one full-batch step, and {schedule.unknown}"
        scheduled = linear_rule(schedule.rule)
        problem = FeedForward.of_recipe(recipe, run.complete(0))
        names = problem.network.names
        if set(names) != set(run.parameters):
            return {}, "no bound: the network's trainable parameters are not those of the run"
        path = [_flat(run.weights(number), names) for number in range(last + 1)]
        batches = None if schedule.full else schedule.batches
        steps, reason = _steps_within(seconds, problem, scheduled, path, batches)
    except TvgradError as error:
        return {}, f"no bound: {error}"
    consumed = run.info.get("consumes_recorded_gradient") and 0 in run.having("gradient")
    used = _flat(run.gradient(0) if consumed else objective.gradient(run.weights(0)), names)
    first = problem.gradient
    size = round_up(float(used.norm()))
    apart = round_up(float((used - first.value).norm())) + first.error
    coefficients = coefficients_of(scheduled, schedule.ends[-1])
    found: dict[int, float] = {}
    for epoch, step in enumerate(steps, start=1):
        weight = float(coefficients.totals[schedule.ends[epoch]])
        # the recorded error's own arithmetic: a difference of weights, S_k g, their sum and its norm, in float64
        length = round_up(float(path[epoch].norm() + path[0].norm()))
        rounding = 4 * UNIT_ROUNDOFF * length + (coefficients.rounding + 4 * UNIT_ROUNDOFF) * weight * size
        found[epoch] = round_up(step.error + step.deviation + weight * apart + rounding)
    return found, f"no bound from epoch {len(found) + 1} on: {reason}" if reason else None


def _steps_within(
    seconds: float | None,
    problem: FeedForward,
    rule: LinearRule,
    path: list[torch.Tensor],
    batches: Batches | None,
) -> tuple[list[StepBound], str]:
    """The bounds of all epochs, or of two where all are estimated to take longer than there is time."""
    epochs = len(path) - 1
    if seconds is None or epochs <= 2:
        return certify_steps(problem, rule, path, batches=batches)
    begin = time.perf_counter()
    first, reason = certify_steps(problem, rule, path[:3], batches=None if batches is None else batches[:2])
    taken = time.perf_counter() - begin
    # The second epoch sets up what the later ones share, so that each of these takes less than it did.
    needed, left = taken * (epochs - 1), seconds - taken
    if needed > left:
        return first, reason or f"the later ones take up to about {needed:.2g} s, and {max(left, 0.0):.2g} s are left"
    return certify_steps(problem, rule, path, batches=batches)


def _flat(weights: Weights, names: tuple[str, ...]) -> torch.Tensor:
    return torch.cat([weights[name].detach().cpu().double().flatten() for name in names])


def _unbroken(run: Run) -> int:
    """The last epoch up to which all weights were kept."""
    last = -1
    if run.unit == "epoch":
        for point in run.points:
            if point.number != last + 1 or "weights" not in point.files:
                break
            last = point.number
    return last
