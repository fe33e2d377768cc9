"""RunningCosine: the cosine of the task vector to minus the first gradient, for the display of progress."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tvgrad.errors import DamagedRun
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import BLOCK, cosine_from


class RunningCosine:
    """Follows the weights of a training that is recorded."""

    def __init__(self, run: Run, parameters: Mapping[str, torch.Tensor]) -> None:
        """Read where the training began.

        Args:
            run: the run, with its first point.
            parameters: name -> parameter that is trained.
        """
        self._parameters = parameters
        self._files = [run.file(kind, 0) for kind in ("weights", "gradient")] if 0 in run.having("gradient") else []

    def value(self) -> float:
        """Compute it at the present weights.

        Returns:
            A number in [-1, 1]; NaN without a first gradient, and from when on its files cannot be read any more: what
            is shown for progress alone does not end a training.
        """
        if not self._files:
            return math.nan
        try:
            return self._computed()
        except DamagedRun:
            self._files = []
            return math.nan

    def _computed(self) -> float:
        moved = along = length = 0.0
        for name, tensor in self._parameters.items():  # in blocks: neither start nor gradient are held in memory
            flat = tensor.detach().reshape(-1)
            for start in range(0, len(flat), BLOCK):
                here = flat[start : start + BLOCK].double()
                first, gradient = (
                    file.read_into(name, start, torch.empty(len(here), dtype=file.places[name].dtype)).to(here)
                    for file in self._files
                )
                step, down = here - first, -gradient
                moved, length = math.hypot(moved, float(step.norm())), math.hypot(length, float(down.norm()))
                along += float(torch.dot(step, down))
        for file in self._files:
            file.close()
        return cosine_from(along, moved * length)
