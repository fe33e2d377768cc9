r"""FedNova: task vectors of different numbers of steps, brought to one number (arXiv 2007.07481, 2411.18607)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_whole
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.merging.weighted import Weighted


@dataclass(frozen=True)
class FedNova(PreparedMethod):
    r"""$\bar{s} \cdot \frac{1}{T} \sum_t \tau_t / s_t$: with $s_t$ the steps of task t, $\bar{s}$ their mean.

    Without `steps` all tasks count alike, and the result is the mean.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import FedNova
        >>> FedNova(steps=[1, 3]).steps
        (1, 3)
    """

    steps: tuple[int, ...] = ()

    name: ClassVar[str] = "fed_nova"

    def __post_init__(self) -> None:
        steps = self.steps if isinstance(self.steps, (tuple, list)) else (self.steps,)
        object.__setattr__(self, "steps", tuple(checked_whole(one, "steps", least=1) for one in steps))

    @override
    def check_tasks(self, tasks: int) -> None:
        super().check_tasks(tasks)
        if self.steps and len(self.steps) != tasks:
            raise TvgradError(f"{len(self.steps)} numbers of steps were given for {tasks} tasks: give one for each")

    @override
    def prepared(self, stack: Stack) -> Method:
        steps = self.steps or (1,) * stack.tasks
        mean = sum(steps) / len(steps)
        return Weighted(tuple(mean / one / len(steps) for one in steps))
