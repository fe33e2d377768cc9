"""SpilledSum: a weighted sum of vectors that is held in float32, and emptied into a float64 file every so often."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from tvgrad.record.gradient_sum import FOLD
from tvgrad.update_rules.grouped import Coefficient
from tvgrad.vectors.algebra import BLOCK


class SpilledSum(Mapping[str, torch.Tensor]):
    """A sum of multiples of vectors, for a process with no memory to spare: half of what a float64 sum takes.

    Sixteen terms are summed in float32, with the rounding of the gradients that they are; then they are added to
    float64 sums in a file, of which a block at a time is in memory. Sums of float64 vectors are float64 throughout.
    """

    def __init__(self, like: Mapping[str, torch.Tensor], path: Path) -> None:
        """Start at zero.

        Args:
            like: name -> tensor, for shapes, dtypes and devices.
            path: of the file, which is made when it is needed.
        """
        wide = {name: one.dtype if one.dtype == torch.float64 else torch.float32 for name, one in like.items()}
        self._near = {name: torch.zeros_like(one, dtype=wide[name], requires_grad=False) for name, one in like.items()}
        self._path = path
        self._places: dict[str, int] = {}
        self._terms = 0
        self._spilled = False
        place = 0
        for name, one in like.items():
            self._places[name] = place
            place += one.numel()

    @torch.no_grad()
    def add(self, vector: Mapping[str, torch.Tensor], weight: Coefficient) -> None:
        """Add a multiple of a vector.

        Args:
            vector: name -> tensor.
            weight: times this; a number, or name -> number, 0 for names that it lacks.
        """
        if self._terms == FOLD:
            self._spill()
        for name, near in self._near.items():
            factor = weight.get(name, 0.0) if isinstance(weight, Mapping) else weight
            near.add_(vector[name].to(near.dtype), alpha=factor)
        self._terms += 1

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor of the sum.

        Args:
            name: of the parameter.

        Returns:
            A new float64 tensor, on the vectors' device.
        """
        total = self._near[name].double() if self._near[name].dtype != torch.float64 else self._near[name].clone()
        if not self._spilled:
            return total
        far = np.fromfile(self._path, np.float64, count=total.numel(), offset=8 * self._places[name])
        return total.add_(torch.from_numpy(far).reshape(total.shape).to(total.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._near)

    def __len__(self) -> int:
        return len(self._near)

    def _spill(self) -> None:
        with self._path.open("r+b" if self._spilled else "w+b") as file:
            for name, near in self._near.items():
                flat = near.reshape(-1)
                for start in range(0, math.prod(near.shape), BLOCK):
                    block = flat[start : start + BLOCK].double().cpu().numpy()
                    offset = 8 * (self._places[name] + start)
                    if self._spilled:
                        file.seek(offset)
                        block = block + np.fromfile(file, np.float64, count=len(block))
                    file.seek(offset)
                    block.tofile(file)
                near.zero_()
        self._spilled, self._terms = True, 0
