"""SilencedDropout: dropout that is off for a probe, whose look at weights its noise would hide."""

from __future__ import annotations

from typing import Any

from torch import nn


class SilencedDropout:
    """Dropout modules of a model, whose probability is 0 until it is given back."""

    def __init__(self) -> None:
        """Silence none."""
        self._silenced: list[tuple[Any, float]] = []

    def silence(self, model: nn.Module) -> None:
        """Turn dropout off.

        Args:
            model: whose.
        """
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                self._silenced.append((module, module.p))
                module.p = 0.0

    def give_back(self) -> None:
        """Let it be what it was."""
        for module, probability in self._silenced:
            module.p = probability
        self._silenced = []
