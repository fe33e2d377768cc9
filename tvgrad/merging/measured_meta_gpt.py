r"""MetaGPT with measured curvature: every task counts by how its loss is curved along its own vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack_gram import stack_gram
from tvgrad.merging.weighted import Weighted

if TYPE_CHECKING:
    from tvgrad.merging.method import Method
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class MeasuredMetaGpt(PreparedMethod, MeasuredMethod):
    r"""$\sum_t h_t \tau_t / \sum_s h_s$ with $h_t = \langle \tau_t, H_t \tau_t \rangle / \|\tau_t\|^2$.

    The minimiser of the summed losses for orthogonal task vectors if loss t is quadratic about its own fine-tuned
    weights with curvature $h_t$ in all directions. Products are those of the plan in the measurements.
    """

    name: ClassVar[str] = "measured_meta_gpt"

    @override
    def prepared(self, stack: Stack) -> Method:
        pairs = self.measurements.pairs
        if pairs is None:
            raise TvgradError("these measurements hold no plan: make them with tvgrad plan --save FILE.safetensors")
        squares = stack_gram(stack).diagonal()
        curvatures = [float(pairs[t, t, t] / squares[t]) if squares[t] > 0 else 0.0 for t in range(stack.tasks)]
        for task, curvature in zip(self.measurements.tasks, curvatures, strict=True):
            if curvature < 0:
                raise TvgradError(
                    f"the loss of task {task!r} is curved downwards along its own vector ({curvature:.3g}), so that "
                    "its coefficient would be negative: use meta_gpt, or leave the task out"
                )
        total = sum(curvatures)
        return Weighted(tuple(one / total if total > 0 else 1 / stack.tasks for one in curvatures))
