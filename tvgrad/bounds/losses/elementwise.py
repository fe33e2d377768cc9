"""Losses that are sums over the outputs: binary cross-entropy and squared error, as functions of the logits."""

from __future__ import annotations

import torch

from tvgrad.bounds.losses.base import (
    LocalLoss,
    Loss,
    LossBounds,
    UnknownLoss,
    check_finite,
    checked_weights,
    choice,
    columns,
    outward,
    row_norms,
)
from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up

_BCE_THIRD = 0.09622504486493764  # 1 / (6 sqrt 3), rounded up
_BCE_TURN = 1.3169578969248166  # log(2 + sqrt 3), where |sigmoid''| is largest and flat
_TINY = 1e-300


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy with logits: a mean or a sum over the outputs, with positive weights and output weights.

    Output by output `w ((1 - y) f + a softplus(-f))` with `a = 1 - y + v y`, v the weight of positives. Gradient
    `w ((1 - y) sigmoid(f) - v y sigmoid(-f))`, between -w v y and w (1 - y); the Hessian is diagonal with
    w a sigmoid', the third derivative with w a sigmoid''. On an interval sigmoid' is largest where |f| is least, 1/4
    at zero; |sigmoid''| rises up to |f| = log(2 + sqrt 3), where it is 1/(6 sqrt 3), and falls beyond.

    Args:
        outputs: "mean" (PyTorch's: divide by the number of outputs too) or "sum".
        weight: weights of the outputs (C,) or (1,), or None.
        pos_weight: weights v of the positives (C,) or (1,), or None.
        reduction: "mean" or "sum".
    """

    name = "bce"

    def __init__(
        self,
        outputs: str = "mean",
        weight: torch.Tensor | None = None,
        pos_weight: torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        self.reduction = choice(self.name, "reduction", reduction)
        self.outputs = choice(self.name, "outputs", outputs)
        self.weight = checked_weights(self.name, weight)
        self.pos_weight = checked_weights(self.name, pos_weight)

    def check(self, targets: torch.Tensor, samples: int, outputs: int) -> torch.Tensor:
        """See `Loss.check`: numbers from 0 to 1, (n, C), or (n,) for one output."""
        for weight in (self.weight, self.pos_weight):
            if weight is not None and weight.numel() not in {1, outputs}:
                raise UnknownLoss(f"{self.name}: {weight.numel()} weights for {outputs} outputs.")
        targets = columns(self.name, targets, samples, outputs)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise UnknownLoss(f"{self.name}: targets must lie between 0 and 1.")
        return targets

    def residual(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Loss.residual`."""
        up, down = self._slopes(targets)
        # each sigmoid is within 8 u; two products, one difference
        error = torch.linalg.vector_norm(up + down, dim=1) * ((logits.shape[1] + 32) * UNIT_ROUNDOFF)
        return up * torch.sigmoid(logits) - down * torch.sigmoid(-logits), error

    def curvature(self, logits: torch.Tensor, targets: torch.Tensor, rough: bool = False) -> torch.Tensor:
        """See `Loss.curvature`: the bound that holds everywhere, which `local` has no use for."""
        return self.uniform(targets, logits.shape[1], 0.0).hessian

    def local(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        radius: torch.Tensor | float = 0.0,
        curvature: torch.Tensor | None = None,
    ) -> LocalLoss:
        """See `Loss.local`."""
        check_finite(self.name, logits)
        up, down = self._slopes(targets)
        moved = torch.as_tensor(radius, dtype=torch.float64).reshape(-1, 1)
        residual, error = self.residual(logits, targets)
        norm = outward(row_norms(residual) + error)
        size = logits.abs()
        nearest = (size - moved).clamp(min=0) * (1 - 4 * UNIT_ROUNDOFF)
        farthest = round_up(size + moved, 4 * UNIT_ROUNDOFF)
        # sigmoid'(f) and sigmoid''(f) underflow to zero, the bounds must not
        slope = outward(torch.sigmoid(-nearest) * torch.sigmoid(nearest)) + _TINY
        hessian = ((up + down) * slope.clamp(max=0.25)).amax(dim=1)
        turn = torch.maximum(nearest, torch.full_like(nearest, _BCE_TURN)).minimum(farthest)
        bent = outward(torch.sigmoid(-turn) * torch.sigmoid(turn) * torch.tanh(turn / 2)) + _TINY
        third = ((up + down) * bent.clamp(max=_BCE_THIRD)).amax(dim=1)
        # either every output moves to its own worst place, or the gradient moves by the curvature times the distance
        rise = up * torch.sigmoid(logits + moved) - down * torch.sigmoid(-logits - moved)
        fall = up * torch.sigmoid(logits - moved) - down * torch.sigmoid(moved - logits)
        corner = row_norms(torch.maximum(rise.abs(), fall.abs())) + error
        # logits +- moved are rounded: both sums move by u of their size, so the slope by a quarter of that
        corner = corner + (up + down).sum(dim=1) * (size + moved).amax(dim=1) * UNIT_ROUNDOFF
        gradient = torch.minimum(corner, norm + hessian * moved[:, 0])
        return LocalLoss(
            gradient=outward(gradient),
            hessian=outward(hessian),
            third=outward(third),
            residual=residual,
            residual_norm=norm,
            residual_error=error,
        )

    def uniform(self, targets: torch.Tensor, outputs: int, logit_norms: torch.Tensor | float) -> LossBounds:
        """See `Loss.uniform`; the logits' norms do not matter."""
        up, down = self._slopes(targets)
        steepest = row_norms(torch.maximum(up, down))
        bend = (up + down).amax(dim=1)
        return LossBounds(outward(steepest), outward(bend / 4), outward(bend * _BCE_THIRD))

    def fourth(self, hessian: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """See `Loss.fourth`: |sigmoid'''| is at most 1/8, half of what sigmoid' can be."""
        return outward(largest / 2)

    def worst(self, outputs: int, logit_norm: float, target_norm: float = 0.0) -> tuple[float, float, float]:
        """See `Loss.worst`."""
        # The bounds are convex in each target, so a target of 0 or 1 is worst: w max(1, v).
        corners = torch.stack([torch.zeros(outputs, dtype=torch.float64), torch.ones(outputs, dtype=torch.float64)])
        up, down = self._slopes(corners)
        largest = torch.maximum(up, down).amax(dim=0)
        gradient = outward(float(row_norms(largest[None])))
        bend = outward(float(largest.max()))
        return gradient, bend / 4, bend * _BCE_THIRD

    def _slopes(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slopes w (1 - y) and w v y towards which the gradient tends, (n, C)."""
        scale = 1.0 / targets.shape[1] if self.outputs == "mean" and self.reduction == "mean" else 1.0
        up, down = scale * (1 - targets), scale * targets
        if self.pos_weight is not None:
            down = down * self.pos_weight
        if self.weight is not None:
            up, down = up * self.weight, down * self.weight
        return up, down


class SquaredError(Loss):
    """Squared error: `c/2 ||f - y||^2` with c = 2/C (PyTorch's mean over outputs), 2 (its sum) or 1 (half).

    Gradient c (f - y), Hessian c times the identity, no third derivative.

    Args:
        half: 1/2 ||f - y||^2 for each sample, rather than PyTorch's loss.
        reduction: "mean" or "sum".
        broadcasts: it is PyTorch's own loss, which compares (n, 1) logits with (n,) targets pair by pair, all n^2 of
            them; such targets are refused then.
    """

    name = "mse"

    def __init__(self, half: bool = False, reduction: str = "mean", broadcasts: bool = False) -> None:
        self.reduction = choice(self.name, "reduction", reduction)
        self.half = half
        self.broadcasts = broadcasts

    def check(self, targets: torch.Tensor, samples: int, outputs: int) -> torch.Tensor:
        """See `Loss.check`: numbers (n, C), or (n,) for one output."""
        if outputs == 1 and targets.dim() == 1 and self.broadcasts and samples > 1:
            raise UnknownLoss(
                f"{self.name}: PyTorch compares every one of {samples} logits with every one of {targets.numel()} "
                "targets here: give targets of shape (samples, 1)"
            )
        return columns(self.name, targets, samples, outputs)

    def residual(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Loss.residual`."""
        residual = self._scale(logits.shape[1]) * (logits - targets)
        return residual, torch.linalg.vector_norm(residual, dim=1) * (8 * UNIT_ROUNDOFF)

    def curvature(self, logits: torch.Tensor, targets: torch.Tensor, rough: bool = False) -> torch.Tensor:
        """See `Loss.curvature`: a constant."""
        return torch.full((len(logits),), outward(self._scale(logits.shape[1])), dtype=torch.float64)

    def local(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        radius: torch.Tensor | float = 0.0,
        curvature: torch.Tensor | None = None,
    ) -> LocalLoss:
        """See `Loss.local`; both differ by rounding only from the exact values."""
        check_finite(self.name, logits)
        residual, error = self.residual(logits, targets)
        norm = row_norms(residual, 16)
        curvature = self.curvature(logits, targets)
        moved = torch.as_tensor(radius, dtype=torch.float64)
        return LocalLoss(
            gradient=outward(norm + curvature * moved),
            hessian=curvature,
            third=torch.zeros_like(norm),
            residual=residual,
            residual_norm=norm,
            residual_error=error,
        )

    def uniform(self, targets: torch.Tensor, outputs: int, logit_norms: torch.Tensor | float) -> LossBounds:
        """See `Loss.uniform`."""
        scale = self._scale(outputs)
        norms = row_norms(targets)
        curvature = torch.full_like(norms, outward(scale))
        return LossBounds(outward(curvature * (norms + logit_norms)), curvature, torch.zeros_like(norms))

    def fourth(self, hessian: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """See `Loss.fourth`: there is none."""
        return torch.zeros_like(hessian)

    def worst(self, outputs: int, logit_norm: float, target_norm: float = 0.0) -> tuple[float, float, float]:
        """See `Loss.worst`."""
        scale = outward(self._scale(outputs))
        return outward(scale * (logit_norm + target_norm)), scale, 0.0

    def _scale(self, outputs: int) -> float:
        if self.half:
            return 1.0
        return 2.0 / outputs if self.reduction == "mean" else 2.0
