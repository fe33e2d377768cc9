"""RunningCosine: the cosine of the task vector to minus the first gradient, for the display of progress."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights, cosine_from


class RunningCosine:
    """Follows the weights of a training that is recorded."""

    def __init__(self, run: Run, parameters: Mapping[str, torch.Tensor]) -> None:
        """Read where the training began.

        Args:
            run: the run, with its first point.
            parameters: name -> parameter that is trained.
        """
        self._parameters = parameters
        device = next(iter(parameters.values())).device
        self._start: Weights = {}
        self._gradient: Weights = {}
        if 0 in run.having("gradient"):
            self._start = {name: tensor.to(device) for name, tensor in run.weights(0).items()}
            self._gradient = {name: tensor.to(device) for name, tensor in run.gradient(0).items()}

    def value(self) -> float:
        """Compute it at the present weights.

        Returns:
            A number in [-1, 1]; NaN without a first gradient.
        """
        if not self._gradient:
            return math.nan
        moved = along = length = 0.0
        for name, tensor in self._parameters.items():  # one at a time: float64 copies of a large model need not fit
            step, down = tensor.detach().double() - self._start[name].double(), -self._gradient[name].double()
            moved, length = math.hypot(moved, float(step.norm())), math.hypot(length, float(down.norm()))
            along += float(torch.dot(step.flatten(), down.flatten()))
        return cosine_from(along, moved * length)
