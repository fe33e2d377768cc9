"""How a linear update rule weighs the gradients of its past steps.

Step s moves the weights by `-eta_s d_s - eta_s lambda theta_s`, where the direction `d_s = sum_{e<=s} w[s,e] g_e` mixes
the gradients so far and lambda is the decoupled weight decay. Unrolled over k steps, exactly,

    theta^(k) - theta_0 = -(1 - P[k,0]) theta_0 - sum_e c[k,e] g(theta^(e)),
    P[k,e] = prod_{s=e..k-1} (1 - eta_s lambda),    c[k,e] = sum_{s=e..k-1} P[k,s+1] eta_s w[s,e],

and expanded round theta_0, with the gradient g_0, the Hessian H_0 and S_k, Q_k, D_k as below,

    theta^(k) - theta_0 = -(1 - P[k,0]) theta_0 - S_k g_0 + H_0 (Q_k g_0 + D_k theta_0) + O(eta^3).

Coupled decay is the same rule followed by `g + lambda theta`: its coefficients are those without decay, and g_0 and H_0
become `g_0 + lambda theta_0` and `H_0 + lambda I`. All sums have terms of one sign, so nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import Array, State, UpdateRule

Value = TypeVar("Value", Array, torch.Tensor)


@dataclass(frozen=True)
class GradientAverage:
    """The mixture of past gradients that a step follows: `w[s,e]` of the module's text.

    Args:
        momentum: mu; 0 follows the newest gradient alone.
        dampening: d; the buffer takes in `(1 - d) g`, except for the first gradient, which PyTorch takes in whole.
        lookahead: follow `g_s + mu buffer_s` (Nesterov as PyTorch writes it) instead of the buffer.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    lookahead: bool = False

    def direction(self, gradient: Value, buffer: Value | None) -> tuple[Value, Value | None]:
        """Take in one gradient.

        Args:
            gradient: the newest gradient; array or tensor, not changed in place.
            buffer: what the last call returned; None at the first step.

        Returns:
            The direction of this step, and the buffer for the next one.
        """
        if self.momentum == 0:
            return gradient, None
        mixed = gradient if buffer is None else self.momentum * buffer + (1 - self.dampening) * gradient
        return (gradient + self.momentum * mixed if self.lookahead else mixed), mixed

    def unrolled(self, kept: Array) -> Array:
        """Sum what each gradient contributes over all steps that it takes part in, O(k).

        Args:
            kept: `P[k,s+1] eta_s` for s = 0 .. k-1: what the last weights keep of the direction of step s.

        Returns:
            `c[k,e] = sum_{s>=e} kept_s w[s,e]` for e = 0 .. k-1.
        """
        # tails[e] = sum_{s>=e} kept_s mu^(s-e); python floats, several times faster here than numpy scalars.
        backwards = accumulate(reversed(kept.tolist()), lambda tail, now: self.momentum * tail + now)
        tails = np.array(list(backwards), dtype=np.float64)[::-1].copy()
        if self.lookahead:
            return kept + self.momentum * tails
        tails[1:] *= 1 - self.dampening
        return tails


@dataclass(frozen=True)
class LinearRule(UpdateRule):
    """A rule whose task vector is a fixed combination of gradients (see the module's text).

    Example:
        >>> from tvgrad.update_rules import Momentum
        >>> Momentum(0.1, 0.5).coefficients(3).round(6).tolist()
        [0.175, 0.15, 0.1]
    """

    @property
    def average(self) -> GradientAverage:
        """How a step mixes the gradients so far; by default it follows the newest alone."""
        return GradientAverage()

    def coefficients(self, k: int) -> Array:
        """Weigh each gradient in the task vector of k steps, O(k).

        Args:
            k: the number of steps.

        Returns:
            `c[k,e]` for e = 0 .. k-1.
        """
        return self.average.unrolled(self.decay_factors(k)[1:] * self.rates(k))

    def weighted_sums(self, values: Array) -> Array:
        """Follow the rule with any values in the place of the gradients, O(k).

        Args:
            values: k numbers or arrays x_e, stacked along the first axis.

        Returns:
            `sum_e c[s,e] x_e` for s = 0 .. k, stacked along the first axis.
        """
        sums = np.zeros((len(values) + 1, *values.shape[1:]))
        buffer: Array | None = None
        for step, rate in enumerate(self.rates(len(values))):
            direction, buffer = self.average.direction(values[step], buffer)
            sums[step + 1] = (1 - rate * self.decoupled_decay) * sums[step] + rate * direction
        return sums

    def coefficient_matrix(self, k: int) -> Array:
        """Weigh each gradient in every task vector up to k steps, O(k^2).

        Args:
            k: the number of steps.

        Returns:
            A (k+1) x k array: row s is `c[s,:]`, zero from column s on.
        """
        return self.weighted_sums(np.eye(k))

    def first_order_weights(self, k: int) -> Array:
        """Weigh g_0 in every task vector up to k steps.

        Args:
            k: the number of steps.

        Returns:
            `S_s = sum_e c[s,e]` for s = 0 .. k.
        """
        return self.weighted_sums(np.ones(k))

    def second_order_weights(self, k: int) -> Array:
        """Weigh H_0 g_0 in every task vector up to k steps.

        Args:
            k: the number of steps.

        Returns:
            `Q_s = sum_e c[s,e] S_e` for s = 0 .. k.
        """
        return self.weighted_sums(self.first_order_weights(k)[:k])

    def decay_weights(self, k: int) -> Array:
        """Weigh H_0 theta_0 in every task vector up to k steps, under decoupled decay.

        Args:
            k: the number of steps.

        Returns:
            `D_s = sum_e c[s,e] (1 - P[e,0])` for s = 0 .. k.
        """
        return self.weighted_sums(self.decay_shrinkages(k)[:k])

    def momentum_weights(self, k: int) -> Array:
        """Weigh each step's gradient in a k-step task vector, without decay.

        Args:
            k: the number of steps.

        Returns:
            `c[k,s]` of the rule without decay, for s = 0 .. k-1.
        """
        return self.without_decay().coefficients(k)

    def make_optimizer(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Build the `torch.optim.SGD` that performs the rule; under a schedule call `set_rate` before each step.

        Args:
            parameters: what PyTorch's optimizers accept.

        Returns:
            The optimizer, in PyTorch's default implementation.

        Raises:
            TvgradError: weight decay is decoupled, which `torch.optim.SGD` cannot do.
        """
        if self.decoupled_decay:
            raise TvgradError(
                f"{self.name}: PyTorch's SGD has no decoupled weight decay: use AdamW, coupled decay, or a plain loop"
            )
        average = self.average
        return torch.optim.SGD(
            parameters,
            lr=self.rate(0),
            momentum=average.momentum,
            dampening=average.dampening,
            nesterov=average.lookahead,
            weight_decay=self.coupled_decay,
        )

    def direction(self, gradient: torch.Tensor, state: State, step: int) -> tuple[torch.Tensor, State]:
        """Take in one parameter's gradient: the average of the past gradients.

        Args:
            gradient: in float64, coupled decay included.
            state: what the last call returned; None at the first step.
            step: the step's number, from 0.

        Returns:
            d of `theta -= eta_step d`, and the state for the next step.
        """
        direction, buffer = self.average.direction(gradient, None if state is None else state[0])
        return direction, None if buffer is None else (buffer,)
