"""Trajectory: the weights that a rule reaches in float64 on gradients that the caller supplies."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import State, UpdateRule
from tvgrad.update_rules.grouped import AnyRule, parts_of, rule_of
from tvgrad.vectors.algebra import blocks_of, zeros_like
from tvgrad.vectors.parameters import same_names_and_shapes

BLOCK = 1 << 18
"""Elements of a tensor in one go: what a step computes on the way stays in the cache, and takes no memory worth its
name beside the tensor."""


class Trajectory:
    """A rule followed step by step: it holds the task vector and the rule's own buffers, and nothing of past steps.

    Attributes:
        task_vector: the weights reached minus theta_0, in float64 on theta_0's devices; moved in place by each step.
        without_decay: the same by the same directions without decoupled decay, where that was asked for; else empty.
    """

    def __init__(self, rule: AnyRule, theta0: Mapping[str, torch.Tensor], without_decay: bool = False) -> None:
        """Start at theta_0.

        Args:
            rule: the update rule, or one for each group of parameters.
            theta0: the weights before the first step.
            without_decay: follow the rule without its decay too, in the same buffers.

        Raises:
            TvgradError: that was asked of a rule with coupled decay, whose directions depend on it.
        """
        if without_decay and any(part.coupled_decay for part in parts_of(rule)):
            raise TvgradError(f"{rule.name} has coupled decay: follow its `without_decay()` as a trajectory of its own")
        self.task_vector = zeros_like(theta0)
        self.without_decay = zeros_like(theta0) if without_decay else {}
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
            misfit = None if given is None else same_names_and_shapes(self._theta0, given)
            if misfit is not None:
                raise TvgradError(
                    f"the {what} of step {self._steps} and theta0 differ ({misfit}): record both from one model"
                )
        for name, moved in self.task_vector.items():
            rule = rule_of(self._rule, name)
            if rule is None:
                continue
            at, plain = None if theta is None else theta[name], self.without_decay.get(name)
            parts = [moved, gradient[name], self._theta0[name], *(one for one in (at, plain) if one is not None)]
            for number, (here, used, start, *rest) in enumerate(blocks_of(parts, BLOCK)):
                reached = None if at is None else rest[0]
                self._move((name, number), rule, (here, used, start), reached, None if plain is None else rest[-1])
        self._steps += 1

    def _move(
        self,
        key: tuple[str, int],
        rule: UpdateRule,
        block: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        theta: torch.Tensor | None,
        plain: torch.Tensor | None,
    ) -> None:
        """Move a block of the task vector, and the same block without decay."""
        moved, gradient, start = block
        rate, used, shrunk = rule.rate(self._steps), gradient.to(moved), None
        if rule.decays:
            at = start.to(moved) + moved if theta is None else theta.to(moved)
            used = used + rule.coupled_decay * at
            shrunk = rule.decoupled_decay * at
        direction, self._states[key] = rule.direction(used, self._states.get(key), self._steps)
        moved.sub_(direction, alpha=rate)
        if shrunk is not None and rule.decoupled_decay:
            moved.sub_(shrunk, alpha=rate)
        if plain is not None:
            plain.sub_(direction, alpha=rate)
