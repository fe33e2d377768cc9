"""Replay: compute a run's recorded gradients again, from its recipe, and compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.results import Result
from tvgrad.store.run import Run
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm

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


def replay_gradients(run: Run, target: str) -> Replay:
    """Compute every recorded full-batch gradient again.

    On the machine and library that recorded them the bits agree. Elsewhere rounding differs, and how much is allowed
    is not guessed: both are compared with the gradient in float64, and the recorded one may be off by ten times the
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
        truth = exact.gradient(weights)
        recorded_error = max(recorded_error, _distance(recorded, truth))
        if wide:
            replayed = coarse.gradient(weights)
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


def _distance(vector: Weights, truth: Weights) -> float:
    length = norm(truth)
    return norm(difference(vector, truth)) / length if length else math.nan
