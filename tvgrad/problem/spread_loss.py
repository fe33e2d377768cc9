"""SpreadLoss: the mean loss of a batch where several processes hold the model's parameters in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tvgrad.problem.batch_loss import PREFIX, BatchLoss
from tvgrad.problem.fully_sharded import FullySharded
from tvgrad.problem.samples import Batch
from tvgrad.vectors.spread import own_part, spread_like, whole_tensor


class SpreadLoss(BatchLoss):
    """Model and loss, where `fully_shard` has spread the model.

    A forward or backward pass is one of all processes, each with a batch of its own: what a module needs is gathered
    while it works. So weights are put into the model instead of being passed to it, and gradients are those that its
    own backward pass leaves.

    Attributes:
        sharded: the model.
    """

    spread = True

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        count: Callable[[Batch], float | torch.Tensor] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: after `fully_shard`.
            loss: as that of BatchLoss.
            forward: likewise.
            count: likewise.

        Raises:
            TvgradError: the model is spread in a way that is not read, or in a narrower format.
        """  # noqa: DOC502 - raised by FullySharded
        super().__init__(model, loss, forward, count)
        self.sharded = FullySharded(model)

    def parts(self) -> dict[str, torch.Tensor]:
        """What this process holds of each parameter.

        Returns:
            Name -> detached tensor, in the model's own memory.
        """
        return {PREFIX + name: part for name, part in self.sharded.parts().items()}

    def evaluated(self, batch: Batch, then: Callable[[torch.Tensor], Any]) -> Any:
        """Compute the mean loss of a batch at the weights that the model has; of every process.

        Args:
            batch: of this process.
            then: called with the loss.

        Returns:
            What it made of the loss.
        """
        # Buffers go in as copies, so that nothing is mutated.
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return torch.func.functional_call(self, buffers, (batch,), {"then": then})

    def backward(self, batch: Batch, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Differentiate a weighted sum of the processes' losses at the weights that the model has; of every process.

        Args:
            batch: of this process.
            share: the weight of its loss.

        Returns:
            The loss of this process's batch, and name (in the model) -> this process's part of the gradient.
        """
        scale = share * self.sharded.divisor

        def differentiate(loss: torch.Tensor) -> torch.Tensor:
            (loss * scale).backward()
            return loss.detach()

        with self.sharded.gradients():
            loss = self.evaluated(batch, differentiate)
            parts = {}
            for name, parameter in self.sharded.parameters().items():
                if parameter.requires_grad:
                    gradient = parameter.grad
                    parts[name] = own_part(torch.zeros_like(parameter) if gradient is None else gradient).detach()
        return loss, parts

    def derivative(
        self, state: Mapping[str, torch.Tensor], names: Sequence[str], batch: Batch
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the mean loss of a batch and its gradient at other weights; of every process, with the same batch.

        Args:
            state: parameters, as `parts` has them, and buffers.
            names: parameters whose gradients are wanted.
            batch: as the collate function made it.

        Returns:
            The loss, and a whole gradient for each name; zeros where the loss does not depend on it.
        """
        parameters = self.sharded.parameters()
        with self.sharded.holding({name: state[PREFIX + name] for name in parameters}):
            loss, parts = self.backward(batch, 1 / self.sharded.count)
        wanted = [name.removeprefix(PREFIX) for name in names]
        return loss, [whole_tensor(spread_like(parts[name], parameters[name])) for name in wanted]
