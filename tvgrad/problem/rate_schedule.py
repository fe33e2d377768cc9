"""RateSchedule: how a learning rate rises and falls over a training, as people tune transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvgrad.errors import TvgradError
from tvgrad.wording import near

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class RateSchedule:
    """A warm-up, then a rate that stays, or falls to zero at the end; as `get_scheduler` of transformers has them.

    Attributes:
        shape: constant, linear or cosine: how the rate goes on after the warm-up.
        warmup: share of the steps, rounded up to a number of them, in which the rate rises from 0 in equal parts; the
            first step has rate 0.

    Raises:
        TvgradError: there is no such shape, or the share is not at least 0 and below 1.

    Example:
        >>> from tvgrad.problem.rate_schedule import RateSchedule
        >>> RateSchedule("linear", warmup=0.4).rates(1.0, 5)
        [0.0, 0.5, 1.0, 0.6666666666666666, 0.3333333333333333]
    """

    shape: str = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise TvgradError(
                f"unknown schedule {self.shape!r}: choose from {', '.join(SHAPES)}{near(self.shape, SHAPES)}"
            )
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, (int, float)) or not 0 <= self.warmup < 1:
            raise TvgradError(f"warmup is a share of the steps, at least 0 and below 1, not {self.warmup!r}")

    def rates(self, lr: float, steps: int) -> list[float]:
        """List the rates of a training.

        Args:
            lr: the highest rate.
            steps: of the whole training.

        Returns:
            One rate for each step.
        """
        rising = math.ceil(steps * self.warmup)
        return [lr * self._share(step, rising, steps) for step in range(steps)]

    def _share(self, step: int, rising: int, steps: int) -> float:
        if step < rising:
            return step / rising
        gone = (step - rising) / max(1, steps - rising)
        return {"constant": 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1.0 + math.cos(math.pi * gone))}[self.shape]
