"""PointWeights: the weights of a run's point, or beside it along a vector, that do not stay in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from tvgrad.errors import DamagedRun
from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import same_names_and_shapes


class PointWeights(Mapping[str, torch.Tensor]):
    """Weights that are read anew, a tensor at a time, beside a training that needs the memory.

    Attributes:
        number: of the point.
        shapes: name -> shape, in the run's order.
    """

    def __init__(self, run: Run, number: int, shift: Path | None = None, along: float = 1.0) -> None:
        """Check the file.

        Args:
            run: the run.
            number: of its point.
            shift: a file with a vector that is added, or None.
            along: times this.

        Raises:
            DamagedRun: the weights are not there, or not the run's.
        """
        self.number = number
        self.shapes = {name: torch.Size(one.shape) for name, one in run.parameters.items()}
        with run.file("weights", number) as file:  # compares the checksums at its end
            places = {name: torch.empty(place.shape, device="meta") for name, place in file.places.items()}
            wanted = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
            misfit = same_names_and_shapes(wanted, places)
            if misfit is not None:
                raise DamagedRun(f"{file.path} does not fit the run: {misfit}; restore it or trace the run again")
            for name in self.shapes:
                file.read(name)
            self._weights = LazyWeights(file.path)
        self._shift = None if shift is None else LazyWeights(shift)
        self._along = along

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            name: of the parameter.

        Returns:
            A new CPU tensor, as stored; moved in float64 where there is a shift.
        """
        tensor = self._weights[name]
        if self._shift is None:
            return tensor
        return (tensor.double() + self._along * self._shift[name].double()).to(tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
