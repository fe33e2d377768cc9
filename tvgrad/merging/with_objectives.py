"""ObjectiveMethod: a merging method that evaluates the tasks' losses or outputs while it merges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.problem.objective import Objective, require_objective
from tvgrad.vectors.parameters import Weights

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class ObjectiveMethod(PreparedMethod):
    """Base of methods that need the tasks' data. They hold whole task vectors in memory.

    Attributes:
        objectives: one a task, at the shared pretrained weights, in the order of the task vectors.
    """

    objectives: tuple[Objective, ...]

    @override
    def check_stack(self, stack: Stack) -> None:
        super().check_stack(stack)
        if len(self.objectives) != stack.tasks:
            raise TvgradError(
                f"{len(self.objectives)} objectives were given for {stack.tasks} task vectors: give one for each"
            )
        shapes = {name: tuple(shape) for name, (shape, _) in stack.places.items()}
        for objective in self.objectives:
            require_objective(objective)
            if {name: tuple(one.shape) for name, one in objective.initial.items()} != shapes:
                raise TvgradError(
                    "an objective has other trainable tensors than the task vectors: give those that made them"
                )

    def vectors(self, stack: Stack) -> Iterator[Weights]:
        """Read the task vectors, one after another.

        Args:
            stack: they.

        Yields:
            Name -> tensor in float64.

        Raises:
            TvgradError: a value is an infinity or a NaN.
        """  # noqa: DOC502 - raised by the stack
        whole = {name: stack.rows(name).clone() for name in stack.places}
        for task in range(stack.tasks):
            yield {name: rows[task] for name, rows in whole.items()}


@dataclass(frozen=True)
class Given(PreparedMethod):
    """A merged vector that is known already."""

    vector: Weights

    name: ClassVar[str] = "given"

    @override
    def prepared(self, stack: Stack) -> Given:
        return self

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return self.vector[name].clone()
