"""Replay: compute a run's recorded gradients again, from its recipe, and compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.results import Result
from tvgrad.store.run import Run
from tvgrad.theory.chunk_rounding import ROOM, ChunkRounding, chunk_rounding, other_size
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm

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
        chunks: the first of them in chunks of another size; None where that says nothing.
    """

    agrees: bool
    gradients: int
    recorded_error: float
    replayed_error: float
    sentence: str
    chunks: ChunkRounding | None = None


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
    here = objective_of(run, recipe)
    exact = cache(lambda: objective_of(run, recipe, torch.float64))  # a model that names a format has none
    wide = all(tensor.dtype == torch.float64 for tensor in here.initial.values())
    coarse, scale = (objective_of(run, recipe, torch.float32), FLOAT32_TO_64) if wide else (here, 1.0)
    recorded_error = replayed_error = 0.0
    different = []
    chunks = None
    with suppress(UnsupportedModel):
        chunks = _other_chunks(run, recipe, epochs[0], (here, coarse, exact), scale)
    for epoch in epochs:
        weights, recorded = run.weights(epoch), run.gradient(epoch)
        replayed = {name: tensor.cpu() for name, tensor in here.gradient(weights).items()}
        if all(torch.equal(recorded[name], replayed[name]) for name in recorded):
            continue
        different.append(epoch)
        truth = exact().gradient(weights)
        recorded_error = max(recorded_error, _distance(recorded, truth))
        if wide:
            replayed = coarse.gradient(weights)
        replayed_error = max(replayed_error, scale * _distance(replayed, truth))
    if not different:
        return Replay(True, len(epochs), 0.0, 0.0, f"all {len(epochs)} gradients have the same bits", chunks)
    agrees = recorded_error <= ROOM * replayed_error
    sentence = (
        f"{len(different)} of {len(epochs)} gradients differ in bits; they are off the float64 gradient by "
        f"{recorded_error:.2g} of its norm as recorded and {replayed_error:.2g} as computed here: "
        + ("rounding of the same size" if agrees else "more than rounding")
    )
    return Replay(agrees, len(epochs), recorded_error, replayed_error, sentence, chunks)


def _other_chunks(
    run: Run, recipe: Recipe, epoch: int, objectives: tuple[Objective, Objective, Callable[[], Objective]], scale: float
) -> ChunkRounding | None:
    """The gradient of an epoch in chunks of another size, beside those in the run's dtype, a coarse one and float64."""
    here, coarse, exact = objectives
    other = other_size(here)
    if other is None:
        return None
    weights = run.weights(epoch)
    truth, own = exact().gradient(weights), here.gradient(weights)
    error = scale * _distance(own if coarse is here else coarse.gradient(weights), truth)
    cut = objective_of(run, recipe, chunk_size=other).gradient(weights)
    return chunk_rounding((min(here.chunk_size, len(here.samples)), other), (own, cut), truth, error, epoch)


def _distance(vector: Weights, truth: Weights) -> float:
    length = norm(truth)
    return norm(difference(vector, truth)) / length if length else math.nan
