"""Sums over the steps of a run, of which the nodes of its error budget are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import torch

from tvgrad.theory.budget_rows import Row
from tvgrad.update_rules.grouped import AnyRule, Coefficient, coefficients_by_name
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights


class StepSum(Enum):
    """What is summed over the steps, each step's vector times a weight; gradients and Hessians at theta_0."""

    CONSUMED = auto()  # gradients as consumed
    UNCLIPPED = auto()  # the same before clipping
    DISPLACEMENT = auto()  # theta_s - theta_0
    BATCH_GRADIENT = auto()
    EQUAL_BATCHES = auto()  # batch gradients, each step of an epoch weighed alike
    BATCHES_BY_SIZE = auto()  # batch gradients, weighed by the batch's part of the data
    BATCH_PRODUCT = auto()  # the batch's Hessian times the displacement
    FULL_PRODUCT = auto()  # the full-batch Hessian times the summed displacement


@dataclass
class EpochSums:
    """Sums over the steps up to the end of one epoch, in float64.

    Attributes:
        rule: whose weights of steps they are.
        weights: c_s, of each step; one row for each group of parameters where the rule has groups.
        equal: S_E / B_E.
        by_size: S_E n_s / N_E.
        vectors: the sums.
        nodes: those that are no sums: of replay and rule.
        mismatch: of a replay with the recorded weights, see `tvgrad.theory.training_steps.mismatch`.
    """

    rule: AnyRule
    weights: np.ndarray
    equal: np.ndarray
    by_size: np.ndarray
    vectors: dict[StepSum, Weights] = field(default_factory=dict)
    nodes: dict[Row, Weights] = field(default_factory=dict)
    mismatch: float = 0.0

    def add(self, name: StepSum, vector: Mapping[str, torch.Tensor], step: int) -> None:
        """Add one step's vector, times the step's weight in this sum.

        Args:
            name: the sum.
            vector: of the step.
            step: its number, from 0.
        """
        weights = {StepSum.EQUAL_BATCHES: self.equal, StepSum.BATCHES_BY_SIZE: self.by_size}.get(name, self.weights)
        weight = coefficients_by_name(self.rule, weights[..., step])
        if name in self.vectors:
            add_scaled(self.vectors[name], vector, weight)
        else:
            self.vectors[name] = combination((weight, vector))

    @property
    def total(self) -> Coefficient:
        """S: the sum of the weights."""
        return coefficients_by_name(self.rule, self.weights.sum(axis=-1))
