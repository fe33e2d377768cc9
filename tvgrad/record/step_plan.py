"""StepPlan and StepSums: the sums over the steps of a training that explain it, formed where its gradients are.

A script's steps are not recorded one by one. Started again, it forms the sums that an error budget needs, with one
buffer each: those of the training itself, and those of its batches at theta_0. What they mean is said in
`tvgrad.theory.error_budget`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tvgrad.update_rules.base import Array
from tvgrad.update_rules.grouped import AnyRule, Coefficient, coefficients_by_name
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights


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
    """

    rule: dict[str, Any]
    ends: tuple[int, ...]
    clips: tuple[float, ...]
    weights: dict[int, list[Any]]

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
        return cls(content["rule"], tuple(content["ends"]), tuple(content["clips"]), weights)

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


class StepSums:
    """The sums of one start of a script.

    Attributes:
        sums: epoch that is explained -> what -> the sum, float64.
        steps: steps that were added.
    """

    def __init__(self, plan: StepPlan, start: Mapping[str, torch.Tensor]) -> None:
        """Start before the first step.

        Args:
            plan: what is wanted.
            start: name -> theta_0.
        """
        self.plan = plan
        self.sums: dict[int, dict[ScriptSum, Weights]] = {epoch: {} for epoch in plan.weights}
        self.steps = 0
        self._start = {name: tensor.detach().clone() for name, tensor in start.items()}
        rule = rule_from_dict(plan.rule)
        self._full = self._without_decay = Trajectory(rule, self._start)
        if rule.decays:
            self._without_decay = Trajectory(rule.without_decay(), self._start)

    @property
    def complete(self) -> bool:
        """Whether no step is wanted any more."""
        return self.steps >= self.plan.ends[-1]

    def add_training_step(self, consumed: Mapping[str, torch.Tensor], theta: Mapping[str, torch.Tensor]) -> None:
        """Add a step of the training, before it is taken.

        Args:
            consumed: name -> gradient; none is zero.
            theta: name -> weights.
        """
        gradient = self._whole(consumed)
        self._full.step(gradient, theta)
        if self._without_decay is not self._full:
            self._without_decay.step(gradient)
        clip = self.plan.clips[self.steps]
        moved = {name: theta[name].double() - tensor.double() for name, tensor in self._start.items()}
        for epoch in self._wanted():
            weight = self.plan.of_steps(epoch, self.steps, self.steps + 1)
            self._add(epoch, ScriptSum.CONSUMED, gradient, weight)
            self._add(epoch, ScriptSum.UNCLIPPED, gradient, _times(weight, 1 / clip))
            self._add(epoch, ScriptSum.DISPLACEMENT, moved, weight)
        self.steps += 1

    def end_training_step(self, after: Mapping[str, torch.Tensor]) -> None:
        """A step of the training was taken.

        Args:
            after: name -> weights.
        """
        for epoch, sums in self.sums.items():
            if self.steps == self.plan.ends[epoch]:
                sums[ScriptSum.RULE] = combination((1.0, self._full.task_vector))
                sums[ScriptSum.WITHOUT_DECAY] = combination((1.0, self._without_decay.task_vector))
                sums[ScriptSum.AFTER] = {name: tensor.detach().clone() for name, tensor in after.items()}

    def add_batch(self, gradient: Mapping[str, torch.Tensor]) -> bool:
        """Add a step's batches at theta_0.

        Args:
            gradient: name -> gradient before clipping; none is zero.

        Returns:
            Whether an epoch has ended with it.
        """
        whole, ends = self._whole(gradient), self.plan.ends
        place = next(index for index, end in enumerate(ends) if end > self.steps)
        for epoch in self._wanted():
            weight = self.plan.of_steps(epoch, self.steps, self.steps + 1)
            alike = _times(self.plan.of_epoch(epoch, place), 1 / (ends[place] - ends[place - 1]))
            self._add(epoch, ScriptSum.BATCH_GRADIENT, whole, weight)
            self._add(epoch, ScriptSum.EQUAL_BATCHES, whole, alike)
        self.steps += 1
        return self.steps == ends[place]

    def add_epoch(self, mean: Mapping[str, torch.Tensor]) -> None:
        """Add an epoch at theta_0 that has just ended.

        Args:
            mean: name -> its gradient, batches weighted by their part of the data.
        """
        number = self.plan.ends.index(self.steps)
        for epoch in self.sums:
            if epoch >= number:
                self._add(epoch, ScriptSum.BATCHES_BY_SIZE, self._whole(mean), self.plan.of_epoch(epoch, number))

    def _wanted(self) -> Sequence[int]:
        return [epoch for epoch in self.sums if self.plan.ends[epoch] > self.steps]

    def _whole(self, gradient: Mapping[str, torch.Tensor]) -> Weights:
        return {
            name: gradient[name].double() if name in gradient else torch.zeros_like(tensor, dtype=torch.float64)
            for name, tensor in self._start.items()
        }

    def _add(self, epoch: int, what: ScriptSum, vector: Weights, weight: Coefficient) -> None:
        sums = self.sums[epoch]
        if what in sums:
            add_scaled(sums[what], vector, weight)
        else:
            sums[what] = combination((weight, vector))


def _times(weight: Coefficient, factor: float) -> Coefficient:
    if isinstance(weight, Mapping):
        return {name: factor * value for name, value in weight.items()}
    return factor * weight
