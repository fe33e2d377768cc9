"""Replay: compute a run's recorded gradients again, from its recipe, and compare."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.objective import Objective
from tvgrad.parameters import Weights, norm
from tvgrad.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.run import Run
from tvgrad.results import Result

__all__ = ["Replay", "objective_of", "recipe_of", "replay_gradients"]

ROOM = 10.0
FLOAT32_TO_64 = 2.0**-29  # ratio of the unit roundoffs


@dataclass(frozen=True)
class Replay(Result):
    """How recorded full-batch gradients compare with gradients computed again.

    Attributes:
        agrees: the same bits, or rounding of the same size.
        gradients: how many were compared.
        recorded_error: largest relative distance of a recorded gradient to the same gradient in float64.
        replayed_error: the same for the gradient computed again in the run's dtype.
        sentence: the outcome in words.
    """

    agrees: bool
    gradients: int
    recorded_error: float
    replayed_error: float
    sentence: str


def recipe_of(run: Run, target: str) -> Recipe:
    """Find the recipe of a run's task.

    Args:
        run: the run.
        target: a TARGET, as on the command line.

    Returns:
        The recipe, checked against the run's parameters.

    Raises:
        TvgradError: the target has no such task, or its model or data is not what was recorded.
    """
    recipes = load_recipes(target)
    task = (run.info.get("recipe") or {}).get("task", run.name)
    found = recipes[0] if len(recipes) == 1 else next((one for one in recipes if one.name == task), None)
    if found is None:
        raise TvgradError(f"{target} has no task called {task!r}, which {run.root} records")
    shapes = {name: tuple(p.shape) for name, p in found.model.named_parameters() if p.requires_grad}
    if shapes != {name: parameter.shape for name, parameter in run.parameters.items()}:
        raise TvgradError(f"the model of {target} has other parameters than {run.root}: give the recipe that made it")
    return found


def objective_of(run: Run, recipe: Recipe, dtype: torch.dtype | None = None, device: str = "auto") -> Objective:
    """Build the objective whose gradients a run recorded.

    Args:
        run: the run.
        recipe: its recipe.
        dtype: by default the run's own.
        device: where to compute.

    Returns:
        The objective, at the run's pretrained weights.

    Raises:
        TvgradError: the recipe's data is not what the run was recorded on.
    """
    own = getattr(torch, str(run.info.get("dtype", "float32")))
    recorded = run.info.get("fingerprint")
    samples = recipe.train if _fits(recipe.train.fingerprint(), recorded) else recipe.train.with_dtype(own)
    if not _fits(samples.fingerprint(), recorded):
        raise TvgradError(f"the recipe's training data is not what {run.root} was recorded on: its fingerprint differs")
    model = copy.deepcopy(recipe.model).to(own)
    try:
        model.load_state_dict(run.complete(0))
    except RuntimeError:
        raise TvgradError(
            f"the recipe's model holds other frozen parameters or buffers than {run.root}: give the recipe that made it"
        ) from None
    wanted = dtype or own
    return Objective(
        model.to(wanted),
        recipe.loss,
        samples.with_dtype(wanted),
        run.info.get("chunk_size"),
        device,
        recipe.count,
        recipe.forward,
        allow=run.info.get("allowed", ()),
    )


def replay_gradients(run: Run, target: str) -> Replay:
    """Compute every recorded full-batch gradient again.

    On the machine and library that recorded them the bits agree. Elsewhere rounding differs, and how much is allowed
    is not guessed: both are held against the gradient in float64, and the recorded one may be off by ten times the
    error of the one computed here. Where the run itself is in float64, that error is the one of the same gradient in
    float32, scaled by the ratio of the two unit roundoffs.

    Args:
        run: the run.
        target: the TARGET of its recipe.

    Returns:
        The comparison.

    Raises:
        TvgradError: the recipe does not fit the run, or no gradients were recorded.
    """
    recipe = recipe_of(run, target)
    epochs = [epoch for epoch in run.having("gradient") if epoch in run.epochs]
    if not epochs:
        raise TvgradError(f"{run.root} records no full-batch gradients to compute again")
    here, exact = objective_of(run, recipe), objective_of(run, recipe, torch.float64)
    wide = run.info.get("dtype") == "float64"
    coarse, scale = (objective_of(run, recipe, torch.float32), FLOAT32_TO_64) if wide else (here, 1.0)
    recorded_error = replayed_error = 0.0
    different = []
    for epoch in epochs:
        weights, recorded = run.weights(epoch), run.gradient(epoch)
        replayed = {name: tensor.cpu() for name, tensor in here.gradient(weights).items()}
        if all(torch.equal(recorded[name], replayed[name]) for name in recorded):
            continue
        different.append(epoch)
        truth = {name: tensor.cpu() for name, tensor in exact.gradient(weights).items()}
        recorded_error = max(recorded_error, _distance(recorded, truth))
        if wide:
            replayed = {name: tensor.cpu() for name, tensor in coarse.gradient(weights).items()}
        replayed_error = max(replayed_error, scale * _distance(replayed, truth))
    if not different:
        return Replay(True, len(epochs), 0.0, 0.0, f"all {len(epochs)} gradients have the same bits")
    agrees = recorded_error <= ROOM * replayed_error
    sentence = (
        f"{len(different)} of {len(epochs)} gradients differ in bits; they are off the float64 gradient by "
        f"{recorded_error:.2g} of its norm as recorded and {replayed_error:.2g} as computed here: "
        + ("rounding of the same size" if agrees else "more than rounding")
    )
    return Replay(agrees, len(epochs), recorded_error, replayed_error, sentence)


def _fits(found: str, recorded: str | None) -> bool:
    return recorded is None or found == recorded


def _distance(vector: Weights, truth: Weights) -> float:
    length = norm(truth)
    difference = {name: tensor.double() - truth[name].double() for name, tensor in vector.items()}
    return norm(difference) / length if length else math.nan
