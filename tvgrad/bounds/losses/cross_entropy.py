"""Cross-entropy as a function of the logits, with everything PyTorch's loss can add to it."""

from __future__ import annotations

import torch

from tvgrad.bounds.losses.base import (
    LocalLoss,
    Loss,
    LossBounds,
    UnknownLoss,
    check_finite,
    check_shape,
    checked_weights,
    choice,
    outward,
    row_norms,
)
from tvgrad.bounds.losses.softmax import (
    HALVINGS,
    SQRT_2,
    THIRD,
    largest_curvature,
    widened_curvature,
    widened_gradient,
)
from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up


class CrossEntropy(Loss):
    """Cross-entropy of softmax, with label smoothing, class weights, ignored samples, or probabilities as targets.

    With smoothing e, weights w and the target distribution t (a unit vector for a class index), PyTorch's loss is
    `-sum_c q_c log p_c`, `q_c = w_c ((1 - e) t_c + e / C)`. Let m = sum_c q_c. Gradient m p - q, Hessian
    m (diag p - p p'), third derivative m times that of log-sum-exp (module softmax). The gradient's norm is convex in
    p, so its largest value is at a corner of the simplex: `sqrt(m^2 - 2 m min q + ||q||^2)`, sqrt 2 for a hard label.
    Divisor: the sum of the target classes' weights; for probabilities the number of samples.

    Args:
        weight: class weights (C,), or None.
        label_smoothing: e in [0, 1].
        ignore_index: the class index whose samples do not count.
        reduction: "mean" or "sum".
    """

    name = "cross_entropy"

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        self.reduction = choice(self.name, "reduction", reduction)
        self.weight = checked_weights(self.name, weight)
        self.ignore_index = ignore_index
        self.label_smoothing = float(label_smoothing)
        if not 0 <= self.label_smoothing <= 1:
            raise UnknownLoss(f"{self.name}: label_smoothing {label_smoothing} is not between 0 and 1.")

    def check(self, targets: torch.Tensor, samples: int, outputs: int) -> torch.Tensor:
        """See `Loss.check`: class indices (n,), or probabilities (n, C)."""
        if self.weight is not None and self.weight.numel() != outputs:
            raise UnknownLoss(f"{self.name}: {self.weight.numel()} class weights for {outputs} outputs.")
        if targets.is_floating_point():
            check_shape(self.name, targets, (samples, outputs))
            if not bool(((targets >= 0) & (targets <= 1)).all()):
                raise UnknownLoss(f"{self.name}: target probabilities must lie between 0 and 1.")
            return targets.detach().double()
        check_shape(self.name, targets, (samples,))
        if targets.dtype in {torch.bool, torch.complex64, torch.complex128}:
            raise UnknownLoss(f"{self.name}: targets are class indices or probabilities, not {targets.dtype}.")
        labels = targets.detach().long()
        used = labels[labels != self.ignore_index]
        if used.numel() == 0:
            raise UnknownLoss(f"{self.name}: every target is ignore_index {self.ignore_index}, so no sample counts.")
        if int(used.min()) < 0 or int(used.max()) >= outputs:
            raise UnknownLoss(
                f"{self.name}: class indices reach from {int(used.min())} to {int(used.max())}, but there are "
                f"{outputs} outputs."
            )
        return labels

    def divisor(self, targets: torch.Tensor) -> float:
        """See `Loss.divisor`."""
        if self.reduction == "sum" or targets.is_floating_point():
            return super().divisor(targets)
        used = targets[targets != self.ignore_index]
        if self.weight is None:
            return float(used.numel())
        total = float(self.weight[used].sum()) * (1 - (used.numel() + 4) * UNIT_ROUNDOFF)
        if total <= 0:
            raise UnknownLoss(f"{self.name}: the class weights of all targets are zero, so their mean does not exist.")
        return total

    def residual(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Loss.residual`."""
        # The residual's error: p_i = e^(-t_i) / Z with t_i = max f - f_i has relative error (C + 20 + t_i) u, and
        # sum p_i t_i <= C/e because Z >= 1; forming m p - q adds a few u of each.
        outputs = logits.shape[1]
        wanted, mass = self._distribution(targets, outputs)
        return mass[:, None] * torch.softmax(logits, dim=1) - wanted, mass * ((4 * outputs + 64) * UNIT_ROUNDOFF)

    def curvature(self, logits: torch.Tensor, targets: torch.Tensor, rough: bool = False) -> torch.Tensor:
        """See `Loss.curvature`: of log-sum-exp, which the mass of the target multiplies."""
        return largest_curvature(torch.softmax(logits, dim=1), 0 if rough else HALVINGS)

    def local(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        radius: torch.Tensor | float = 0.0,
        curvature: torch.Tensor | None = None,
    ) -> LocalLoss:
        """See `Loss.local`."""
        check_finite(self.name, logits)
        outputs = logits.shape[1]
        wanted, mass = self._distribution(targets, outputs)
        residual, error = self.residual(logits, targets)
        norm = outward(row_norms(residual) + error)
        moved = torch.as_tensor(radius, dtype=torch.float64)
        if curvature is None:
            curvature = self.curvature(logits, targets)
        widened = widened_curvature(curvature, moved)
        third = (SQRT_2 * widened).clamp(max=THIRD)
        gradient = torch.minimum(norm + mass * widened_gradient(curvature, moved), self._steepest(wanted, mass))
        return LocalLoss(
            gradient=outward(gradient),
            hessian=outward(mass * widened),
            third=outward(mass * third),
            residual=residual,
            residual_norm=norm,
            residual_error=error,
        )

    def uniform(self, targets: torch.Tensor, outputs: int, logit_norms: torch.Tensor | float) -> LossBounds:
        """See `Loss.uniform`; the logits' norms do not matter."""
        wanted, mass = self._distribution(targets, outputs)
        return LossBounds(self._steepest(wanted, mass), outward(mass * 0.5), outward(mass * THIRD))

    def fourth(self, hessian: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """See `Loss.fourth`: that of log-sum-exp is at most 1/2, as is its Hessian, and twice the Hessian."""
        return outward(torch.minimum(largest, 2 * hessian))

    def worst(self, outputs: int, logit_norm: float, target_norm: float = 0.0) -> tuple[float, float, float]:
        """See `Loss.worst`."""
        # For class indices the mean's mass is at most the largest `1 - e + e mean(w) / w_c`; for probabilities w_c.
        mass = 1.0
        if self.weight is not None:
            if self.reduction == "mean" and float(self.weight.min()) <= 0:
                raise UnknownLoss(f"{self.name}: a class weight is zero, so bounds need the targets; pass targets.")
            ratio = float(self.weight.mean() / self.weight.min())
            smoothed = 1 - self.label_smoothing + self.label_smoothing * ratio if self.reduction == "mean" else 0.0
            mass = round_up(max(float(self.weight.max()), smoothed), (outputs + 8) * UNIT_ROUNDOFF)
        return outward(SQRT_2 * mass), outward(mass / 2), outward(mass * THIRD)

    def _distribution(self, targets: torch.Tensor, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors q, (n, C), and upper bounds on their sums m, (n,), tight to rounding."""
        if targets.is_floating_point():
            wanted = targets
        else:
            counted = targets != self.ignore_index
            wanted = torch.nn.functional.one_hot(torch.where(counted, targets, 0), outputs).double()
        wanted = (1 - self.label_smoothing) * wanted + self.label_smoothing / outputs
        if self.weight is not None:
            wanted = wanted * self.weight
        if not targets.is_floating_point():
            wanted = wanted * counted[:, None]
        hard = self.label_smoothing == 0 and self.weight is None and not targets.is_floating_point()
        return wanted, round_up(wanted.sum(dim=1), 0.0 if hard else (outputs + 8) * UNIT_ROUNDOFF)

    def _steepest(self, wanted: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """The largest gradient norm over all logits."""
        outputs = wanted.shape[1]
        square = mass**2 - 2 * mass * wanted.amin(dim=1) + (wanted**2).sum(dim=1)
        # the difference may cancel: its rounding is relative to its terms, at most 4 m^2
        return outward((square.clamp(min=0) + (4 * outputs + 64) * UNIT_ROUNDOFF * mass**2).sqrt())
