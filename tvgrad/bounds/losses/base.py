"""Losses as functions of the logits: bounds on gradient, Hessian and third derivative, sample by sample.

A mean loss is `sum_i l_i(f_i) / divisor`, where l_i carries the sample's class weights, its 1 over the number of
outputs and so on, and the divisor belongs to the whole data set: a chunk of samples is summed first and divided once.
Bounds here are of l_i. They hold in exact arithmetic for the logits given and are rounded outward; that the logits
themselves were rounded is for the caller to add to the radius.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import UNIT_ROUNDOFF, Number, own_copy, round_up, upper_norm


class UnknownLoss(TvgradError):
    """No bounds are known for this loss, or its options or targets do not fit it."""


@dataclass(frozen=True)
class LossBounds:
    """Bounds of l_i, one entry a sample, not divided by the divisor.

    Attributes:
        gradient: upper bounds on the gradient's Euclidean norm, (n,).
        hessian: upper bounds on the Hessian's spectral norm, (n,).
        third: upper bounds on the norm of the third derivative as a trilinear form, (n,).
    """

    gradient: torch.Tensor
    hessian: torch.Tensor
    third: torch.Tensor


@dataclass(frozen=True)
class LocalLoss(LossBounds):
    """Bounds of l_i over all logits within a distance of given ones.

    Attributes:
        residual: the computed gradient of l_i at the given logits, (n, C).
        residual_norm: upper bounds on the norm of the exact gradient there, (n,).
        residual_error: upper bounds on the norm of computed minus exact gradient there, (n,).
    """

    residual: torch.Tensor
    residual_norm: torch.Tensor
    residual_error: torch.Tensor


class Loss(ABC):
    """A loss whose derivatives in the logits are bounded.

    Attributes:
        name: as messages print it.
        reduction: "mean", or "sum" (whose divisor is 1).

    Example:
        >>> from tvgrad.bounds import loss_of
        >>> loss_of("mse").reduction
        'mean'
    """

    name: str
    reduction: str

    @abstractmethod
    def check(self, targets: torch.Tensor, samples: int, outputs: int) -> torch.Tensor:
        """Targets in the form that the other methods take.

        Args:
            targets: as the loss takes them.
            samples: how many there have to be.
            outputs: the number of logits C.

        Returns:
            The targets, float64 or class indices.

        Raises:
            UnknownLoss: shape, type or values do not fit.
        """

    def divisor(self, targets: torch.Tensor) -> float:
        """What the sum of the l_i is divided by.

        Args:
            targets: of the whole data set, checked.

        Returns:
            A lower bound on the divisor, tight to rounding.
        """
        return 1.0 if self.reduction == "sum" else float(targets.shape[0])

    @abstractmethod
    def residual(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of l_i in the logits.

        Args:
            logits: (n, C) float64, finite.
            targets: of these samples, checked.

        Returns:
            The gradient as computed, (n, C), and upper bounds of its distance to the exact one, (n,).
        """

    @abstractmethod
    def curvature(self, logits: torch.Tensor, targets: torch.Tensor, rough: bool = False) -> torch.Tensor:
        """What `local` can use again for the same logits and other radii.

        Args:
            logits: (n, C) float64, finite.
            targets: of these samples, checked.
            rough: a bound that may be several times larger, and costs nothing.

        Returns:
            Upper bounds on the curvature at the logits, (n,), in the units of the loss.
        """

    @abstractmethod
    def local(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        radius: torch.Tensor | float = 0.0,
        curvature: torch.Tensor | None = None,
    ) -> LocalLoss:
        """Bounds over all logits near the given ones.

        Args:
            logits: (n, C) float64.
            targets: of these samples, checked.
            radius: how far, in Euclidean norm, the logits may lie from the given ones: (n,) or a number.
            curvature: of `Loss.curvature` at these logits, if known.

        Returns:
            The bounds, with the gradient at the logits themselves.
        """

    @abstractmethod
    def uniform(self, targets: torch.Tensor, outputs: int, logit_norms: torch.Tensor | float) -> LossBounds:
        """Bounds over all logits of at most a norm.

        Args:
            targets: checked.
            outputs: the number of logits C.
            logit_norms: upper bounds on the norms of the logits, (n,) or a number; only a quadratic loss needs them.

        Returns:
            The bounds.
        """

    @abstractmethod
    def fourth(self, hessian: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """Bounds on the fourth derivative of l_i as a form in four directions, by which the third one changes.

        Args:
            hessian: upper bounds on the Hessian's norm wherever the bound has to hold, (n,).
            largest: those of `Loss.uniform`, (n,).

        Returns:
            Upper bounds, (n,).
        """

    @abstractmethod
    def worst(self, outputs: int, logit_norm: float, target_norm: float = 0.0) -> tuple[float, float, float]:
        """Bounds of the mean loss for any data, the division included.

        Args:
            outputs: the number of logits C.
            logit_norm: upper bound on the norm of any sample's logits; only a quadratic loss needs it.
            target_norm: upper bound on the norm of any sample's targets, likewise.

        Returns:
            Gradient, Hessian and third derivative.
        """


def outward(bound: Number) -> Number:
    """Round up what a closing formula gives: it takes fewer than 30 roundings beside those that are counted."""
    return round_up(bound, 64 * UNIT_ROUNDOFF)


def row_norms(rows: torch.Tensor, roundings: int = 8) -> torch.Tensor:
    """Upper bounds on the Euclidean norms of rows, (n, C) -> (n,), whose numbers carry a few roundings."""
    return upper_norm(rows, (rows.shape[1] + roundings) * UNIT_ROUNDOFF)


def choice(name: str, option: str, value: str) -> str:
    """Return the reduction if it makes one number of the loss."""
    if value not in {"mean", "sum"}:
        raise UnknownLoss(f"{name}: {option} {value!r} is neither 'mean' nor 'sum', so the loss is not one number.")
    return value


def checked_weights(name: str, weight: torch.Tensor | None) -> torch.Tensor | None:
    """Weights in float64, after a check."""
    if weight is None:
        return None
    weight = own_copy(weight)
    if weight.dim() > 1 or not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise UnknownLoss(f"{name}: weights must be one finite number, at least zero, for each output.")
    return weight.reshape(-1)


def check_shape(name: str, targets: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuse targets of another shape."""
    if tuple(targets.shape) != shape:
        raise UnknownLoss(f"{name}: targets of shape {tuple(targets.shape)} do not fit; give {shape}.")
    if targets.numel() == 0:
        raise UnknownLoss(f"{name}: there are no targets, so there is no mean loss.")


def columns(name: str, targets: torch.Tensor, samples: int, outputs: int) -> torch.Tensor:
    """Targets as float64 (n, C)."""
    if outputs == 1 and targets.dim() == 1:
        targets = targets[:, None]
    check_shape(name, targets, (samples, outputs))
    targets = targets.detach().double()
    check_finite(name, targets, "targets")
    return targets


def check_finite(name: str, values: torch.Tensor, what: str = "logits") -> None:
    """Refuse NaN and infinities."""
    if not bool(torch.isfinite(values).all()):
        raise UnknownLoss(f"{name}: the {what} contain NaN or infinity.")
