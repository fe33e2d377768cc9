"""AdamPath: Adam followed step by step on gradients that the caller supplies, with the spread of mini-batches in v."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.update_rules.rules import Adam
from tvgrad.vectors.algebra import combination, zeros_like
from tvgrad.vectors.parameters import Weights


class AdamPath:
    """Adam or AdamW in float64, from theta_0.

    Attributes:
        moved: the weights reached minus theta_0; moved in place by each step.
    """

    def __init__(self, rule: Adam, start: Weights, variance: Weights | None = None) -> None:
        """Start at theta_0.

        Args:
            rule: Adam or AdamW.
            start: theta_0, in float64.
            variance: of the mini-batch gradients round the gradients that will be given, by coordinate: it enters v,
                as the square of every mini-batch's own gradient would.
        """
        self.moved = zeros_like(start)
        self._rule, self._start, self._variance = rule, start, variance
        self._means, self._squares, self._largest = (zeros_like(start) for _ in range(3))
        self._steps = 0

    def step(self, gradient: Mapping[str, torch.Tensor]) -> None:
        """Perform the next step.

        Args:
            gradient: that the step consumes, without decay.
        """
        rule, step, (b1, b2) = self._rule, self._steps, self._rule.betas
        if rule.coupled_decay:
            decay = rule.coupled_decay
            gradient = combination((1.0, gradient), (decay, self._start), (decay, self.moved))
        for name, tensor in gradient.items():
            square = tensor.square() if self._variance is None else tensor.square() + self._variance[name]
            self._means[name].mul_(b1).add_(tensor, alpha=1 - b1)
            self._squares[name].mul_(b2).add_(square, alpha=1 - b2)
            torch.maximum(self._largest[name], self._squares[name], out=self._largest[name])
            used = (self._largest if rule.amsgrad else self._squares)[name]
            taken = self._means[name] / (1 - b1 ** (step + 1)) / ((used / (1 - b2 ** (step + 1))).sqrt_() + rule.eps)
            if rule.eps == 0:  # 0/0 where there is no gradient: such a coordinate is left in its place
                taken = torch.nan_to_num(taken, nan=0.0)
            if rule.decoupled_decay:
                taken = taken + rule.decoupled_decay * (self._start[name] + self.moved[name])
            self.moved[name].sub_(taken, alpha=rule.rate(step))
        self._steps += 1
