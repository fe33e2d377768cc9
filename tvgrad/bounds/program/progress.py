"""Progress: how much of a certificate's work is done, and a warning before long work."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Protocol

import torch

from tvgrad.bounds.program.point import PointBounds, Told
from tvgrad.numerics.double_double import DoubleDouble

LONG = 300.0
"""Seconds from which a certificate warns."""

Shown = Callable[[int, int], None]


class Counting(Protocol):
    """A loss that tells when samples are measured."""

    @property
    def flat(self) -> torch.Tensor:
        """Theta_0, one vector."""

    @property
    def samples(self) -> int:
        """How many there are."""

    def measure(self, theta: DoubleDouble, radius: float, *, told: Told, positions: torch.Tensor | None) -> PointBounds:
        """Bound gradient and Hessian.

        Args:
            theta: the centre of a ball.
            radius: of the ball.
            told: called with the number of samples after each chunk.
            positions: of the samples of a mini-batch; None: all samples.

        Returns:
            The bounds.
        """


class MeasuringProgress:
    """A loss whose measurements are counted."""

    def __init__(self, problem: Counting, points: int, shown: Shown | None) -> None:
        """Begin.

        Args:
            problem: the loss.
            points: measurements that are expected.
            shown: called with how many samples are measured, and how many there are at all points together.
        """
        self._problem, self._points, self._shown = problem, points, shown
        self._done, self._start, self._warned = 0, time.perf_counter(), False

    @property
    def flat(self) -> torch.Tensor:
        """Theta_0, one vector."""
        return self._problem.flat

    def measure(self, theta: DoubleDouble, radius: float, *, positions: torch.Tensor | None = None) -> PointBounds:
        """Bound gradient and Hessian.

        Args:
            theta: the centre of a ball.
            radius: of the ball.
            positions: of the samples of a mini-batch; None: all samples.

        Returns:
            As the loss itself says.
        """
        return self._problem.measure(theta, radius, told=self._count, positions=positions)

    def _count(self, samples: int) -> None:
        self._done += samples
        total = self._problem.samples * self._points
        if self._shown is not None:
            self._shown(min(self._done, total), total)
        each = (time.perf_counter() - self._start) / self._done
        if each * total > LONG and not self._warned:
            self._warned = True
            warnings.warn(
                f"this certificate takes about {each * total / 60:.2g} minutes, {each:.2g} s for each of "
                f"{self._problem.samples} samples at each of {self._points} points: take fewer samples, or epochs",
                stacklevel=2,
            )
