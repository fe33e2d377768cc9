"""OptimizerOptions: the options of optimizers but the rate, and the steps at which they differ from the first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

NAMES = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "amsgrad", "alpha", "maximize")


class OptimizerOptions:
    """The options of the parameter groups of one model's optimizers at its first step.

    Attributes:
        first: one mapping a group, of plain values; the groups of all optimizers in their order.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], first: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Read the present options.

        Args:
            optimizers: before their first step.
            first: what the options were at the first step of a training that is resumed.
        """
        self._optimizers = list(optimizers)
        groups = self._groups()
        self.first = [_plain(group) for group in groups] if first is None else list(first)
        self._given = _given(groups)
        self._mutable = first is not None or any(
            isinstance(value, (list, torch.Tensor)) for group in self._given for value in group
        )

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Add an optimizer that the training has made later.

        Args:
            optimizer: it.
        """
        self._optimizers.append(optimizer)
        self.first += [_plain(group) for group in optimizer.param_groups]
        self._given += _given(optimizer.param_groups)

    def row(self, stepping: Collection[torch.optim.Optimizer]) -> dict[str, Any]:
        """Describe a step.

        Args:
            stepping: the optimizers that take it.

        Returns:
            The rates, one for all groups or that of each group that is moved, and each other option that is not what it
            was at the first step.
        """
        groups = self._groups()
        moved = [one in stepping for one in self._optimizers for _ in one.param_groups]
        rates = [float(group["lr"]) for group in groups]
        several = len(set(rates)) > 1 or not all(moved)
        row: dict[str, Any] = {"lr": float("nan") if several else rates[0]}
        if several:
            row |= {f"lr_{index}": rate for index, rate in enumerate(rates) if moved[index]}
        if not self._mutable and _given(groups) == self._given:
            return row
        for index, group in enumerate(groups):
            then = self.first[index] if index < len(self.first) else {}
            for name, value in _plain(group).items():
                if name not in then or then[name] != value:
                    row[f"{name}_{index}" if len(groups) > 1 else name] = float(value)
        return row

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def _given(groups: list[dict[str, Any]]) -> list[list[Any]]:
    """The options as they are: a look at every step must be quick."""
    return [[group.get(name) for name in NAMES] for group in groups]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's options as plain values; of several numbers (betas, two tolerances) each has its own name."""
    found: dict[str, Any] = {}
    for name in NAMES:
        value = group.get(name)
        if isinstance(value, (tuple, list)):
            one = "beta" if name == "betas" else name
            found |= {f"{one}{index}": float(part) for index, part in enumerate(value, start=1) if part is not None}
        elif value is not None:
            found[name] = value if isinstance(value, (bool, int)) else float(value)
    return found
