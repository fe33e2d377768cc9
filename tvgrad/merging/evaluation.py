"""How good merged weights are: a task's metric at any weights, and the search for alpha on validation samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy import stats

from tvgrad.errors import TvgradError
from tvgrad.problem.batch_loss import target_of
from tvgrad.problem.metric import metric_value
from tvgrad.problem.recipe import Recipe, accuracy
from tvgrad.problem.samples import Samples, map_tensors
from tvgrad.vectors.parameters import Weights, trainable_parameters
from tvgrad.wording import loading_error

ALPHAS = tuple(step / 20 for step in range(21))
"""The published grid: 0, 0.05 .. 1."""

CHUNK = 512
SPLIT_SEED = 20250607


class Scorer:
    """A task's metric, with the task's own frozen head, at any weights of the shared encoder."""

    def __init__(
        self,
        recipe: Recipe,
        state: Mapping[str, torch.Tensor] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Copy the recipe's model.

        Args:
            recipe: the task.
            state: frozen parameters and buffers to use instead of the recipe's; names that the model has not are left
                out.
            device: where scores are computed; None is where the recipe's model lies.

        Raises:
            TvgradError: the recipe has no metric or no test samples, or its model does not take the tensors.
        """
        if recipe.metric is None or recipe.test is None:
            raise TvgradError(f"task {recipe.name!r} has no metric or no test samples: give its recipe both")
        self.name, self.metric, self.test = recipe.name, recipe.metric, recipe.test
        self._model = copy.deepcopy(recipe.model).eval()
        if state is not None:
            # Casts the model to the run's own type, too: assigned tensors keep theirs.
            try:
                self._model.load_state_dict(dict(state), strict=False, assign=True)
            except RuntimeError as error:
                raise TvgradError(
                    f"the recipe's model of task {recipe.name!r} does not take the run's tensors "
                    f"({loading_error(error)}): give the recipe that made the run"
                ) from None
        if device is not None:
            self._model.to(device)
        self._parameters = trainable_parameters(self._model)
        self._loss = recipe.batch_loss(self._model)

    @torch.no_grad()
    def score(self, weights: Mapping[str, torch.Tensor], samples: Samples | None = None) -> float:
        """Evaluate the metric.

        Args:
            weights: name -> tensor, cast to the model's types.
            samples: on what; by default the test samples.

        Returns:
            The metric's mean over the samples.
        """
        total, count = 0.0, 0
        for output, target, size in self._outputs(weights, samples):
            total += metric_value(self.metric, output, target) * size
            count += size
        return total / count

    @torch.no_grad()
    def sample_scores(self, weights: Mapping[str, torch.Tensor], samples: Samples | None = None) -> list[float]:
        """Evaluate the metric on each sample by itself.

        Args:
            weights: name -> tensor, cast to the model's types.
            samples: on what; by default the test samples.

        Returns:
            One number a sample; their mean is `score`.
        """
        found: list[float] = []
        for output, target, size in self._outputs(weights, samples):
            if self.metric is accuracy:
                found += (output.argmax(dim=-1) == target).double().tolist()
            else:
                found += [metric_value(self.metric, *_one_sample((output, target), place)) for place in range(size)]
        return found

    def _outputs(self, weights: Mapping[str, torch.Tensor], samples: Samples | None) -> Iterator[tuple[Any, Any, int]]:
        """Outputs and targets of one batch after the other, and how many samples it has."""
        first = next(iter(self._parameters.values()))
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
        data = (self.test if samples is None else samples).with_dtype(first.dtype)
        for start in range(0, len(data), CHUNK):
            batch = map_tensors(data.batch(start, start + CHUNK), lambda tensor: tensor.to(first.device))
            yield self._loss.output(batch), target_of(batch), min(CHUNK, len(data) - start)


def _one_sample(tensors: Any, place: int) -> Any:
    return map_tensors(tensors, lambda tensor: tensor[place : place + 1])


def halves(samples: Samples) -> tuple[Samples, Samples]:
    """Cut samples into two disjoint halves, always the same: one to search alpha on, one to report on.

    Args:
        samples: at least two.

    Returns:
        Validation samples and test samples.

    Raises:
        TvgradError: there are fewer than two samples.
    """
    if len(samples) < 2:
        raise TvgradError("alpha cannot be searched with fewer than two test samples: give alpha as a number")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SPLIT_SEED))
    middle = len(samples) // 2
    return samples.subset(order[:middle]), samples.subset(order[middle:])


def shifted(base: Mapping[str, torch.Tensor], vector: Mapping[str, torch.Tensor], alpha: float) -> Weights:
    """Add a multiple of a vector to weights.

    Args:
        base: name -> weights.
        vector: name -> tensor, for every name of the base.
        alpha: the factor.

    Returns:
        base + alpha vector, computed in float64 and rounded once to the base's types.
    """
    return {
        name: torch.add(tensor.double(), vector[name].double(), alpha=alpha).to(tensor.dtype)
        for name, tensor in base.items()
    }


def search_alpha(score: Callable[[float], float], alphas: Sequence[float] = ALPHAS) -> tuple[float, float]:
    """Find the best coefficient.

    Args:
        score: alpha -> how good, higher is better; on validation samples, never on those that are reported.
        alphas: what to try.

    Returns:
        The best alpha, the smallest among equals, and its score.

    Raises:
        TvgradError: there is nothing to try, or no score is finite.
    """
    if not alphas:
        raise TvgradError("there is no alpha to try: give at least one")
    scores = [score(alpha) for alpha in alphas]
    finite = [place for place, one in enumerate(scores) if math.isfinite(one)]
    if not finite:
        raise TvgradError("no coefficient has a finite score: check the recipe's metric and its samples")
    best = max(finite, key=lambda place: (scores[place], -alphas[place]))
    return alphas[best], scores[best]


def accuracy_interval(score: float, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound an accuracy over all data by that on so many samples: the exact interval of Clopper and Pearson (1934).

    Args:
        score: share of the samples that are right.
        samples: how many there are.
        confidence: how often such an interval holds the true share, at least.

    Returns:
        Its ends; NaN where the score is no share of so many samples, as another metric than accuracy is not.
    """
    right = round(score * samples) if math.isfinite(score) else -1
    if not 0 <= right <= samples or abs(right - score * samples) > 1e-6 * samples:
        return math.nan, math.nan
    ends = stats.binomtest(right, samples).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)
