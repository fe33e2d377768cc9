r"""MetaGPT: every task counts by the square of its vector's length (arXiv 2406.11385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.merging.method import Method
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.merging.stack_gram import stack_gram
from tvgrad.merging.weighted import Weighted


@dataclass(frozen=True)
class MetaGpt(PreparedMethod):
    r"""$\sum_t a_t \tau_t$ with $a_t = \|\tau_t\|^2 / \sum_s \|\tau_s\|^2$; vectors that are all zero are averaged.

    It is the minimiser of the summed losses for orthogonal task vectors if every loss is quadratic about its own
    fine-tuned weights with a curvature in proportion to $\|\tau_t\|^2$, which is a guess: `measured_meta_gpt` measures
    the curvature.
    """

    name: ClassVar[str] = "meta_gpt"

    @override
    def prepared(self, stack: Stack) -> Method:
        squares = stack_gram(stack).diagonal()
        total = float(squares.sum())
        return Weighted(tuple(float(one) / total if total > 0 else 1 / stack.tasks for one in squares))
