"""Trajectory: the weights that a rule reaches in float64 on gradients that the caller supplies."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import State
from tvgrad.update_rules.grouped import AnyRule, rule_of
from tvgrad.vectors.algebra import zeros_like
from tvgrad.vectors.parameters import same_names_and_shapes


class Trajectory:
    """A rule followed step by step: it holds the task vector and the rule's own buffers, and nothing of past steps.

    Attributes:
        task_vector: the weights reached minus theta_0, in float64 on theta_0's devices; moved in place by each step.
    """

    def __init__(self, rule: AnyRule, theta0: Mapping[str, torch.Tensor]) -> None:
        """Start at theta_0.

        Args:
            rule: the update rule, or one for each group of parameters.
            theta0: the weights before the first step.
        """
        self.task_vector = zeros_like(theta0)
        self._rule = rule
        self._theta0 = theta0
        self._states: dict[str, State] = {}
        self._steps = 0

    def step(self, gradient: Mapping[str, torch.Tensor], theta: Mapping[str, torch.Tensor] | None = None) -> None:
        """Perform the rule's next step.

        Args:
            gradient: the gradient that the step consumes.
            theta: the weights of which decay takes its part; by default those that the trajectory has reached.

        Raises:
            TvgradError: names or shapes are not theta_0's, or the rule's schedule ends before this step.
        """
        for what, given in (("gradient", gradient), ("weights", theta)):
            misfit = None if given is None else same_names_and_shapes(self._theta0, given)
            if misfit is not None:
                raise TvgradError(
                    f"the {what} of step {self._steps} and theta0 differ ({misfit}): record both from one model"
                )
        for name, moved in self.task_vector.items():
            rule = rule_of(self._rule, name)
            if rule is None:
                continue
            rate = rule.rate(self._steps)
            used = gradient[name].detach().to(moved)
            shrunk = torch.zeros(())
            if rule.decays:
                reached = self._theta0[name].detach().to(moved) + moved
                at = reached if theta is None else theta[name].detach().to(moved)
                used = used + rule.coupled_decay * at
                shrunk = rule.decoupled_decay * at
            direction, self._states[name] = rule.direction(used, self._states.get(name), self._steps)
            moved.sub_(direction, alpha=rate)
            if rule.decoupled_decay:
                moved.sub_(shrunk, alpha=rate)
        self._steps += 1
