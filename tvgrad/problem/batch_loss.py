"""BatchLoss: the mean loss of one batch as a function of a model's weights, and that batch's weight in the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.samples import Batch, map_tensors, tensors_in

NARROW_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32}
PREFIX = "model."
"""Of the user's model's names, in a batch loss."""

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class BatchLoss(nn.Module):
    """Model, loss and the way a batch goes through them, as one module whose output is a scalar.

    Being a module, it can be called with other weights (`torch.func.functional_call`) without touching the model, and
    a user's own `forward` sees a model that already has those weights.

    Attributes:
        spread: whether each process may hold a part of the parameters only.
    """

    spread = False

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        count: Callable[[Batch], float | torch.Tensor] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: the module that is tuned.
            loss: callable(output, target) -> mean loss over the batch; None when `forward` returns the loss itself.
            forward: callable(model, batch) -> output (or the loss, when `loss` is None); by default the model is
                called with the inputs of an (inputs, target) batch, or with the entries of a mapping as keywords.
            count: callable(batch) -> weight of the batch in the mean (unignored tokens, class weights); by default
                the number of samples.
        """
        super().__init__()
        self.model = model
        self.loss = loss
        self.run = forward
        self.count = count

    def forward(
        self,
        batch: Batch,
        then: Callable[[torch.Tensor], Any] | None = None,
        of_output: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Compute the mean loss of a batch.

        Args:
            batch: as the collate function made it.
            then: called with the loss before `forward` returns. Derivatives are taken in it: checkpointed activations
                are recomputed while a gradient is, and under `functional_call` the module has the weights in question
                only as long as its forward runs.
            of_output: called with the model's output instead; there is no loss then.

        Returns:
            A scalar tensor, or what `then` makes of it, or what `of_output` makes of the output.

        Raises:
            TvgradError: the loss is not a scalar.
        """
        output = self.output(batch)
        if of_output is not None:
            return of_output(output)
        value = output if self.loss is None else self._loss(output, _index(target_of(batch)))
        if self.loss is None and not isinstance(value, torch.Tensor):
            value = getattr(output, "loss", None)
        if not isinstance(value, torch.Tensor) or value.ndim != 0:
            what = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            )
            raise TvgradError(f"the loss is {what}: it must be one number, the mean over the batch (reduction='mean')")
        return value if then is None else then(value)

    def _loss(self, output: Any, target: Any) -> Any:
        """The loss, its floating-point buffers (class weights) cast to the output's dtype and moved to its device."""
        assert self.loss is not None
        if isinstance(self.loss, nn.Module) and isinstance(output, torch.Tensor) and output.is_floating_point():
            cast = {
                name: buffer.to(output)
                for name, buffer in self.loss.named_buffers()
                if buffer.is_floating_point() and (buffer.dtype, buffer.device) != (output.dtype, output.device)
            }
            if cast:
                return torch.func.functional_call(self.loss, cast, (output, target))
        return self.loss(output, target)

    def parts(self) -> dict[str, torch.Tensor]:
        """What this process holds of each parameter.

        Returns:
            Name -> detached tensor, in the model's own memory.
        """
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def derivative(
        self, state: Mapping[str, torch.Tensor], names: Sequence[str], batch: Batch
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the mean loss of a batch and its gradient at other weights.

        Args:
            state: parameters, as `parts` has them, and buffers, which may be changed.
            names: parameters whose gradients are wanted.
            batch: as the collate function made it.

        Returns:
            The loss, and a whole gradient for each name; zeros where the loss does not depend on it.
        """
        wanted = set(names)  # of thousands, in which looking one by one takes longer than the loss
        moved = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in state.items()}

        def differentiate(value: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            points = [moved[name] for name in names]
            return value.detach(), list(torch.autograd.grad(value, points, materialize_grads=True))

        found: tuple[torch.Tensor, list[torch.Tensor]] = torch.func.functional_call(
            self, moved, (batch,), {"then": differentiate}
        )
        return found

    def output(self, batch: Batch) -> Any:
        """Compute the model's output for a batch.

        Args:
            batch: as the collate function made it.

        Returns:
            Whatever the model, or the user's `forward`, returns.

        Raises:
            TvgradError: the batch has more than two parts, and no `forward` says what they are for.
        """
        if self.run is not None:
            return self.run(self.model, batch)
        if isinstance(batch, Mapping):
            given = {key: value for key, value in batch.items() if self.loss is None or key not in TARGET_KEYS}
            return self.model(**given)
        if isinstance(batch, (tuple, list)) and len(batch) > 2:
            raise TvgradError(
                f"a batch has {len(batch)} parts: only (input, target) goes through a model by itself; "
                "pass forward(model, batch)"
            )
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)

    def weight(self, batch: Batch) -> float:
        """Weigh a batch in the mean over the data set.

        Args:
            batch: as the collate function made it.

        Returns:
            The number of samples, or what `count` says.

        Raises:
            TvgradError: the count fails, or is negative or not finite.
        """
        if self.count is None:
            return float(size_of(batch))
        weight = self._counted(batch)
        if not 0 <= weight < float("inf"):
            raise TvgradError(f"count(batch) returned {weight}: the weight of a batch in the mean cannot be that")
        return weight

    def _counted(self, batch: Batch) -> float:
        """What `count` says of a batch; on the CPU where it keeps tensors of its own there (class weights, say)."""
        assert self.count is not None
        try:
            return float(self.count(batch))
        except RuntimeError as error:
            places = {str(tensor.device) for tensor in tensors_in(batch)} - {"cpu"}
            if not places:
                raise
            try:
                return float(self.count(map_tensors(batch, torch.Tensor.cpu)))
            except RuntimeError:
                raise TvgradError(
                    f"count(batch) fails on a batch that lies on {min(places)} ({str(error).splitlines()[0]}): "
                    "move what it keeps to the batch's device"
                ) from error


def _index(target: Any) -> Any:
    """Whole numbers in int64, the only type that PyTorch's losses take for classes."""
    if isinstance(target, torch.Tensor) and target.dtype in NARROW_INTEGERS:
        return target.long()
    return target


def target_of(batch: Batch) -> Any:
    """Find the target in a batch.

    Args:
        batch: (inputs, target) or a mapping with an entry called labels, label, targets, target or y.

    Returns:
        The target.

    Raises:
        TvgradError: there is none.
    """
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                return batch[key]
        raise TvgradError(
            f"the batch has no entry called {', '.join(TARGET_KEYS)} (it has {', '.join(map(str, batch))}): "
            "give loss=None and a forward(model, batch) that returns the loss"
        )
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[-1]
    raise TvgradError("a batch has no target: let the data give (input, target), or pass loss=None and a forward")


def size_of(batch: Batch) -> int:
    """Count the samples of a batch: the length of its first tensor.

    Args:
        batch: as the collate function made it.

    Returns:
        Number of samples.

    Raises:
        TvgradError: the batch holds no tensor with a first dimension.
    """
    if isinstance(batch, torch.Tensor) and batch.ndim:
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    for part in parts:
        try:
            return size_of(part)
        except TvgradError:
            continue
    raise TvgradError("cannot count the samples of a batch without tensors: pass count=")
