"""StepFacts: what is known of a step besides its optimizers: batches, backward passes, clipping, loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tvgrad.integrations.script.clipping import Clipping, clip_facts
from tvgrad.integrations.script.epochs import Epochs
from tvgrad.record.batch_items import BatchItems, sum_of_fingerprints
from tvgrad.vectors.spread import own_part


class StepFacts:
    """Gathers facts from one step to the next; several optimizers may take a step together.

    Attributes:
        clips: calls that clipped gradients, since the last step.
        unscaled: whether a gradient scaler has taken the loss scale out of the gradients.
        scale: the loss scale of the step that a gradient scaler takes; None where there is none.
    """

    def __init__(self, epochs: Epochs) -> None:
        """Start before the first step.

        Args:
            epochs: which counts backward passes and batches.
        """
        self.clips: list[Clipping] = []
        self.unscaled = False
        self.scale: float | None = None
        self._epochs = epochs
        self._items: list[BatchItems] = []
        self._samples = self._backwards = self._noted = 0

    def so_far(self, held: Mapping[int, torch.Tensor]) -> dict[str, Any]:
        """Describe the step as far as it has come.

        Args:
            held: id -> parameter, those that the optimizers move.

        Returns:
            accumulated, batch_size, batch_fingerprint, loss_scale and what `clip_facts` says, where they are known.
        """
        self._items += self._epochs.items
        self._samples += self._epochs.samples
        self._backwards = max(self._backwards, self._epochs.backwards)
        facts: dict[str, Any] = {"accumulated": self._backwards}
        if self._samples:
            facts["batch_size"] = self._samples
        fingerprint = sum_of_fingerprints([items.fingerprint for items in self._items])
        if fingerprint is not None:
            facts["batch_fingerprint"] = fingerprint
        facts |= clip_facts(self.clips, held, self.scale is not None)
        if self.scale is not None:
            facts["loss_scale"] = self.scale
        self._noted = len(self.clips)
        return facts

    def begin_step(self) -> None:
        """The step that was described is over; what was clipped since belongs to the next."""
        self.clips = self.clips[self._noted :]
        self._items, self._samples, self._backwards, self._noted = [], 0, 0, 0


def only_makes_state(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a step, before which no backward pass ran, is none of a training's.

    So torch.distributed.checkpoint has an optimizer make its state before that is read or loaded: with gradients of
    zeros at a rate of 0. A first step of a warm-up, whose gradients are made by a closure or by hand, is another thing.

    Args:
        optimizer: that is about to step.

    Returns:
        Whether all its rates are 0, and all gradients are there and zero.
    """
    if any(float(group.get("lr", 1)) for group in optimizer.param_groups):
        return False
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.requires_grad]
    return not any(tensor.grad is None or bool(own_part(tensor.grad).any()) for tensor in tensors)
