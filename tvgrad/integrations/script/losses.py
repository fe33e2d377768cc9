"""Losses: the mean over an epoch's steps of the loss that each of them was taken for, without a wait for a device."""

from __future__ import annotations

from typing import Any

import torch


class Losses:
    """Adds the losses up that backward passes begin at.

    A step's loss is the sum over its backward passes, because its gradient is the sum of theirs: where gradients are
    accumulated, scripts divide each loss by the number of batches.

    Attributes:
        scale: of the loss, while a gradient scaler takes a step.
    """

    def __init__(self) -> None:
        """Start before the first step."""
        self._step: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None
        self._count = 0
        self.scale: float | None = None

    @torch.no_grad()
    def begin_backward(self, tensors: Any, gradients: Any) -> None:
        """A backward pass begins.

        Args:
            tensors: what `torch.autograd.backward` was given.
            gradients: its second argument.
        """
        listed = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors or ())
        self._last = None
        if len(listed) != 1 or gradients is not None or listed[0].numel() != 1 or _capturing(listed[0]):
            return
        loss = listed[0].detach().reshape(())
        # A copy, because a script may change it in place.
        self._last = loss.to(torch.float64 if loss.device.type == "cpu" else torch.float32, copy=True)

    @torch.no_grad()
    def end_backward(self, counts: bool) -> None:
        """The backward pass has ended.

        Args:
            counts: whether it is of the model that is recorded.
        """
        if self._last is not None and counts:
            self._step = self._last if self._step is None else self._step + self._last
        self._last = None

    @torch.no_grad()
    def end_step(self, skipped: bool = False) -> None:
        """A step was taken, or skipped.

        Args:
            skipped: whether its gradients overflowed.
        """
        loss, self._step = self._step, None
        if loss is None or skipped:
            return
        loss = loss / (self.scale or 1.0)
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def forget_step(self) -> None:
        """The backward passes so far were another model's."""
        self._step = None

    def metrics(self) -> dict[str, float]:
        """Read the mean over the steps since `clear`.

        Returns:
            train_loss; nothing where no loss was seen.
        """
        return {} if self._sum is None else {"train_loss": float(self._sum) / self._count}

    def clear(self) -> None:
        """Begin with the next epoch."""
        self._sum, self._count = None, 0


def _capturing(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
