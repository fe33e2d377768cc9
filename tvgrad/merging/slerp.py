r"""SLERP: two task vectors interpolated along the arc between them (Shoemake 1985), tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, checked_number, unit

STRAIGHT = 0.9995
"""From this absolute cosine on, mergekit interpolates on the line, and so does this."""


@dataclass(frozen=True)
class Slerp(Method):
    r"""$\frac{\sin((1-t)\Omega)}{\sin\Omega} \tau_1 + \frac{\sin(t\Omega)}{\sin\Omega} \tau_2$, t the way `toward` 2.

    $\Omega$ is the angle between both tensors, as in mergekit, which interpolates weights, however, not task vectors.
    Nearly parallel or opposed ones, and such as are zero, are interpolated on the line.
    """

    toward: float = 0.5

    name: ClassVar[str] = "slerp"
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "toward", checked_number(self.toward, "toward", least=0, most=1))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        first, second = rows
        units = [unit(row) for row in rows]
        cosine = float(units[0] @ units[1]) if all(bool(one.any()) for one in units) else 1.0
        if abs(cosine) > STRAIGHT:
            return torch.lerp(first, second, self.toward)
        angle = math.acos(cosine)
        merged: torch.Tensor = math.sin((1 - self.toward) * angle) * first + math.sin(self.toward * angle) * second
        return merged / math.sin(angle)
