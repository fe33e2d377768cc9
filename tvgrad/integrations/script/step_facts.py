"""StepFacts: what is known of a step besides its optimizers: batches, backward passes, clipping, loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tvgrad.integrations.script.clipping import Clipping, clip_facts
from tvgrad.integrations.script.epochs import Epochs
from tvgrad.record.batch_items import BatchItems, sum_of_fingerprints


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


def stands_still(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a step can move no weight.

    Args:
        optimizer: that is about to step.

    Returns:
        Whether all its rates are 0.
    """
    return not any(float(group.get("lr", 1)) for group in optimizer.param_groups)
