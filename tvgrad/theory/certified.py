"""Certified errors: upper bounds on the second-order error of a recorded run, where a certificate exists."""

from __future__ import annotations

import copy
import math

import torch

from tvgrad.bounds import FeedForward, NoCertificate
from tvgrad.errors import TvgradError
from tvgrad.recipe import Recipe
from tvgrad.record.run import Run
from tvgrad.update_rules import LinearRule

__all__ = ["bounds_of_run", "feed_forward_of"]

OUTWARD = 1 + 1e-9  # covers the few float64 operations that put a bound together here


def feed_forward_of(recipe: Recipe, weights: dict[str, torch.Tensor] | None = None) -> FeedForward:
    """Read a recipe's model, loss and training samples as the bounds see them.

    Args:
        recipe: the task.
        weights: a complete state for the model; by default its own.

    Returns:
        The network with its data, in float64.

    Raises:
        TvgradError: the recipe goes through its own forward or count, for which no bounds are known, or the network,
            the loss or the data is not one that the bounds know.
    """
    if recipe.forward is not None or recipe.count is not None or recipe.loss is None:
        raise TvgradError(
            f"there are no bounds for {recipe.name}: its own forward or count is not known to them; use (inputs, "
            "targets) with a loss of torch.nn"
        )
    batch = recipe.train.batch(0, len(recipe.train))
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TvgradError(f"there are no bounds for {recipe.name}: its batches are not (inputs, targets)")
    model = copy.deepcopy(recipe.model)
    if weights is not None:
        # Widened first: a float32 module would round the weights of a float64 run.
        model = model.double()
        model.load_state_dict(weights)
    loss = recipe.loss if isinstance(recipe.loss, torch.nn.Module) else getattr(recipe.loss, "__name__", "")
    return FeedForward(model, batch[0], batch[1], loss)


def bounds_of_run(run: Run, recipe: Recipe) -> tuple[dict[int, float], str | None]:
    """Bound `||tau_k + S_k g_0||` of recorded weights, for every epoch for which a certificate exists.

    With theta~ the iterates of exact arithmetic, a tube round the recorded weights bounds the error of theta~_k, and
    how far theta_k is from it; the recorded error is at most their sum, plus S_k times the error of the float64
    gradient that it is measured with.

    Args:
        run: a run by epochs, one full-batch step each.
        recipe: its recipe.

    Returns:
        Epoch -> upper bound, and the sentence that says why there are no (more) bounds, or None.
    """
    rule = run.rule
    if not isinstance(rule, LinearRule) or rule.coupled_decay or rule.decoupled_decay:
        return {}, "no bound: certificates of runs are for linear update rules without weight decay"
    last = _unbroken(run)
    if last < 1:
        return {}, "no bound: it needs the weights of every epoch, each one full-batch step"
    try:
        problem = feed_forward_of(recipe, run.complete(0))
        names = problem.network.names
        if set(names) != set(run.parameters):
            return {}, "no bound: the network's trainable parameters are not those of the run"
        path = [
            torch.cat([weights[name].double().flatten() for name in names])
            for weights in map(run.weights, range(last + 1))
        ]
        gradient = problem.gradient
    except TvgradError as error:
        return {}, f"no bound: {error}"
    found: dict[int, float] = {}
    strays = math.nan
    for epoch in range(1, last + 1):
        # A certificate from theta_0 .. theta_k says how far theta_k strays; the next one bounds the error after k.
        try:
            before = problem.certificate_from_run(rule, path[:epoch])
            strays = problem.certificate_from_run(rule, path[: epoch + 1]).rounding
        except NoCertificate as error:
            return found, f"no bound from epoch {epoch} on: {error}"
        weight = rule.first_order_weight(epoch)
        found[epoch] = (before.error_bound + strays + 2 * weight * gradient.error) * OUTWARD
    return found, None


def _unbroken(run: Run) -> int:
    """The last epoch up to which all weights were kept and every epoch was one step."""
    last = -1
    if run.unit == "epoch" and run.info.get("consumes_recorded_gradient"):
        for point in run.points:
            if point.number != last + 1 or point.steps != point.number or "weights" not in point.files:
                break
            last = point.number
    return last
