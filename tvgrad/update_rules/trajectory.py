"""Trajectory: the weights that a rule reaches in float64 on gradients that the caller supplies."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import State, UpdateRule
from tvgrad.update_rules.grouped import AnyRule, rule_of
from tvgrad.vectors.algebra import blocks_of, zeros_like
from tvgrad.vectors.parameters import same_names_and_shapes

BLOCK = 1 << 18
"""Elements of a tensor in one go: what a step computes on the way stays in the cache, and takes no memory worth its
name beside the tensor."""


class Trajectory:
    """A rule followed step by step: it holds the task vector and the rule's own buffers, and nothing of past steps.

    Attributes:
        task_vector: the weights reached minus theta_0, in float64 on theta_0's devices; moved in place by each step.
    """

    def __init__(self, rule: AnyRule, theta0: Mapping[str, torch.Tensor]) -> None:
        """Start at theta_0.

        Args:
            rule: the update rule, or one for each group of parameters.
            theta0: the weights before the first step; only for shapes and devices, where each step is given weights.
        """
        self.task_vector = zeros_like(theta0)
        self._rule = rule
        self._theta0 = theta0
        self._states: dict[tuple[str, int], State] = {}
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: Mapping[str, torch.Tensor], theta: Mapping[str, torch.Tensor] | None = None) -> None:
        """Perform the rule's next step.

        Args:
            gradient: the gradient that the step consumes.
            theta: the weights of which decay takes its part; by default those that the trajectory has reached.

        Raises:
            TvgradError: names or shapes are not theta_0's, or the rule's schedule ends before this step.
        """
        for what, given in (("gradient", gradient), ("weights", theta)):
            misfit = None if given is None else same_names_and_shapes(self.task_vector, given)
            if misfit is not None:
                raise TvgradError(
                    f"the {what} of step {self._steps} and theta0 differ ({misfit}): record both from one model"
                )
        for name, moved in self.task_vector.items():
            rule = rule_of(self._rule, name)
            if rule is None:
                continue
            parts = [moved, gradient[name]]
            if rule.decays:
                parts.append((self._theta0 if theta is None else theta)[name])
            for number, (here, used, *weights) in enumerate(blocks_of(parts, BLOCK)):
                at = None
                if weights:
                    at = weights[0].to(here)
                    at = at + here if theta is None else at
                self._move((name, number), rule, here, used, at)
        self._steps += 1

    def _move(
        self,
        key: tuple[str, int],
        rule: UpdateRule,
        moved: torch.Tensor,
        gradient: torch.Tensor,
        at: torch.Tensor | None,
    ) -> None:
        """Move a block of the task vector; `at` are the weights of which decay takes its part."""
        rate, used = rule.rate(self._steps), gradient.to(moved)
        if at is not None and rule.coupled_decay:
            used = used + rule.coupled_decay * at
        before = self._states.get(key)
        direction, after = rule.direction(used, before, self._steps)
        if before is None:
            self._states[key] = None if after is None else tuple(one.clone() for one in after)  # it may be the gradient
        else:  # where it was: a long-lived state among short-lived tensors tears holes into the memory
            for held, new in zip(before, after or (), strict=True):
                held.copy_(new)
        moved.sub_(direction, alpha=rate)
        if at is not None and rule.decoupled_decay:
            moved.sub_(rule.decoupled_decay * at, alpha=rate)
