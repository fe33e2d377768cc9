"""OptimizerOptions: an optimizer's options but the rate, and the steps at which they differ from the first."""

from __future__ import annotations

from typing import Any

import torch

NAMES = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "amsgrad", "alpha", "maximize")


class OptimizerOptions:
    """The options of an optimizer's parameter groups at its first step.

    Attributes:
        first: one mapping a group, of plain values.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Read the present options.

        Args:
            optimizer: before its first step.
        """
        groups = optimizer.param_groups
        self.first = [_plain(group) for group in groups]
        self._given = _given(groups)
        self._mutable = any(isinstance(value, (list, torch.Tensor)) for group in self._given for value in group)

    def row(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Describe a step.

        Args:
            optimizer: which takes it.

        Returns:
            The rates, and each other option that is not what it was at the first step.
        """
        groups = optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        several = len(set(rates)) > 1
        row: dict[str, Any] = {"lr": float("nan") if several else rates[0], "skipped": 0}
        if several:
            row |= {f"lr_{index}": rate for index, rate in enumerate(rates)}
        if not self._mutable and _given(groups) == self._given:
            return row
        for index, group in enumerate(groups):
            then = self.first[index] if index < len(self.first) else {}
            for name, value in _plain(group).items():
                if name not in then or then[name] != value:
                    row[f"{name}_{index}" if len(groups) > 1 else name] = value
        return row


def _given(groups: list[dict[str, Any]]) -> list[list[Any]]:
    """The options as they are: a look at every step must be quick."""
    return [[group.get(name) for name in NAMES] for group in groups]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's options as plain values."""
    found: dict[str, Any] = {}
    for name in NAMES:
        value = group.get(name)
        if name == "betas" and value is not None:
            found |= {f"beta{index}": float(beta) for index, beta in enumerate(value, start=1)}
        elif value is not None:
            found[name] = value if isinstance(value, (bool, int)) else float(value)
    return found
