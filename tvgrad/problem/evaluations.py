"""Evaluations: how often an objective went over its data."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass
class Evaluations:
    """How often an objective went over its data, counted so that costs can be asserted and told beforehand."""

    values: int = 0
    gradients: int = 0
    hvps: int = 0

    def __add__(self, other: Evaluations) -> Evaluations:
        return Evaluations(self.values + other.values, self.gradients + other.gradients, self.hvps + other.hvps)

    def __sub__(self, other: Evaluations) -> Evaluations:
        return Evaluations(self.values - other.values, self.gradients - other.gradients, self.hvps - other.hvps)

    def copy(self) -> Evaluations:
        """The counts so far, which go on no more."""
        return replace(self)
