"""StepPlan: which sums over the steps of a training explain it.

What they mean is said in `tvgrad.theory.error_budget`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

from tvgrad.update_rules.base import Array
from tvgrad.update_rules.grouped import AnyRule, Coefficient, coefficients_by_name
from tvgrad.update_rules.rules import rule_from_dict


class ScriptSum(str, Enum):
    """What is summed."""

    RULE = "rule"
    """The rule in float64 on the consumed gradients, its decay at the script's weights."""
    WITHOUT_DECAY = "without_decay"
    """The same without decay."""
    CONSUMED = "consumed"
    """`sum c_s G_s`, gradients as consumed."""
    UNCLIPPED = "unclipped"
    """The same before clipping."""
    AFTER = "after"
    """The weights that were reached."""
    DISPLACEMENT = "displacement"
    """`sum c_s (theta_s - theta_0)`."""
    BATCH_GRADIENT = "batch_gradient"
    """`sum c_s g_s`, gradients of the same batches at theta_0."""
    EQUAL_BATCHES = "equal_batches"
    """The same, each step of an epoch weighed alike."""
    BATCHES_BY_SIZE = "batches_by_size"
    """The same, each weighed by its part of the data."""


@dataclass(frozen=True)
class StepPlan:
    """What is wanted.

    Attributes:
        rule: the update rule with the rate of each step, as plain values.
        ends: steps done at the end of epochs 0, 1, 2 ...
        clips: the factor by which each step's gradient was clipped.
        weights: epoch that is explained -> c_s of each step until its end; where the rule has groups of parameters,
            one such sequence for each.
        curvature: whether displacements are wanted.
    """

    rule: dict[str, Any]
    ends: tuple[int, ...]
    clips: tuple[float, ...]
    weights: dict[int, list[Any]]
    curvature: bool = True

    def to_json(self) -> str:
        """Render the plan."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StepPlan:
        """Read what `to_json` rendered.

        Args:
            text: the plan.

        Returns:
            It.
        """
        content = json.loads(text)
        weights = {int(epoch): list(values) for epoch, values in content["weights"].items()}
        return cls(content["rule"], tuple(content["ends"]), tuple(content["clips"]), weights, content["curvature"])

    @cached_property
    def _weights(self) -> dict[int, Array]:
        return {epoch: np.asarray(values, dtype=np.float64) for epoch, values in self.weights.items()}

    @cached_property
    def _rule(self) -> AnyRule:
        return rule_from_dict(self.rule)

    def of_steps(self, epoch: int, begin: int, end: int) -> Coefficient:
        """Add the weights of some steps up.

        Args:
            epoch: that is explained.
            begin: the first step, from 0.
            end: the first that does not count.

        Returns:
            The sum of their c_s, of each parameter where the rule has groups.
        """
        return coefficients_by_name(self._rule, self._weights[epoch][..., begin:end].sum(axis=-1))

    def total(self, epoch: int) -> float:
        """Add all weights up, of the group whose sum is the largest.

        Args:
            epoch: that is explained.

        Returns:
            The sum.
        """
        return float(self._weights[epoch].sum(axis=-1).max())

    def of_epoch(self, epoch: int, number: int) -> Coefficient:
        """Add the weights of an epoch up.

        Args:
            epoch: that is explained.
            number: of the epoch whose steps count, from 1.

        Returns:
            S_E, of each parameter where the rule has groups.
        """
        return self.of_steps(epoch, self.ends[number - 1], self.ends[number])
