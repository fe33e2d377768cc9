"""Evaluations: how often an objective went over its data."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace


@dataclass
class Evaluations:
    """How often an objective went over its data, counted so that costs can be asserted and told beforehand."""

    values: int = 0
    gradients: int = 0
    hvps: int = 0
    jvps: int = 0
    sample_gradients: int = 0

    def __add__(self, other: Evaluations) -> Evaluations:
        return self._with(other, 1)

    def __sub__(self, other: Evaluations) -> Evaluations:
        return self._with(other, -1)

    def _with(self, other: Evaluations, sign: int) -> Evaluations:
        return Evaluations(*(mine + sign * theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def copy(self) -> Evaluations:
        """The counts so far, which go on no more."""
        return replace(self)
