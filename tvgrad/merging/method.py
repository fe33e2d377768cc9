"""Method: one way to merge task vectors, seen one tensor (or one block of a tensor) at a time."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tvgrad.errors import TvgradError

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class Method(ABC):
    """A merging method and its options.

    A method never sees a whole model: it gets the same tensor of every task, in float64, and returns one tensor. That
    is what lets models of any size be merged in the memory of one tensor of each.

    Example:
        >>> import torch
        >>> from tvgrad.merging import METHODS
        >>> rows = torch.tensor([[1.0], [5.0], [2.0]], dtype=torch.float64)
        >>> METHODS["median"]().combine(rows, "weight", 0)
        tensor([2.], dtype=torch.float64)
    """

    name: ClassVar[str]
    least: ClassVar[int] = 1
    """Fewest tasks that it is defined for."""
    most: ClassVar[int | None] = None
    """Most tasks that it is defined for; None is any number."""
    elementwise: ClassVar[bool] = False
    """Whether a coordinate of the result depends on that coordinate alone, so that tensors may be cut into blocks."""

    def check_tasks(self, tasks: int) -> None:
        """Refuse a number of tasks that the method is not defined for.

        Args:
            tasks: how many task vectors there are.

        Raises:
            TvgradError: too few or too many.
        """
        if tasks < self.least:
            given = f"{tasks} {'was' if tasks == 1 else 'were'} given"
            raise TvgradError(f"{self.name} merges at least {self.least} tasks, and {given}: add runs")
        if self.most is not None and tasks > self.most:
            raise TvgradError(f"{self.name} takes {self.most} tasks, and {tasks} were given: leave the others out")

    def check_stack(self, stack: Stack) -> None:
        """Refuse task vectors that the method cannot merge, before any work; by default only their number counts.

        Args:
            stack: the task vectors.
        """
        self.check_tasks(stack.tasks)

    def prepared(self, stack: Stack) -> Method:
        """Look at all task vectors once, where a method needs to know of them as a whole: their lengths and angles.

        Args:
            stack: the task vectors, which `check_stack` has let pass.

        Returns:
            The method that merges their tensors, by default this one.
        """
        return self

    def for_tensor(self, stack: Stack, name: str) -> Method:
        """Look at a whole tensor, where that lets it be merged block by block afterwards.

        Args:
            stack: the task vectors.
            name: the tensor.

        Returns:
            The method that merges this tensor, by default this one.
        """
        return self

    @abstractmethod
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        """Merge one tensor, or one block of it.

        Args:
            rows: float64, shape (tasks, *shape of the tensor), or (tasks, length) for elementwise methods; it may be
                overwritten.
            name: the tensor's name.
            start: where the block begins in the flattened tensor.

        Returns:
            The merged tensor, shaped like one row.
        """


def checked_share(value: object, name: str) -> float:
    """Check a share: a number above 0 and at most 1.

    Args:
        value: the number.
        name: what it is called, for the message.

    Returns:
        It, as a float.

    Raises:
        TvgradError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) <= 1:
        raise TvgradError(f"{name} must be a number above 0 and at most 1, not {value!r}")
    return float(value)


def checked_whole(value: object, name: str, *, least: int) -> int:
    """Check an option that is a whole number.

    Args:
        value: the number.
        name: what it is called, for the message.
        least: smallest that is allowed.

    Returns:
        It, as an int.

    Raises:
        TvgradError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise TvgradError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def checked_number(value: object, name: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Check an option that is a number.

    Args:
        value: the number.
        name: what it is called, for the message.
        least: smallest that is allowed.
        most: largest that is allowed.

    Returns:
        It, as a float.

    Raises:
        TvgradError: it is no finite number, or outside.
    """
    number = not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
    if not number or not least <= float(value) <= most:  # type: ignore[arg-type]
        above = "" if least == -math.inf else f" of at least {least:g}"
        below = "" if most == math.inf else f" and at most {most:g}"
        raise TvgradError(f"{name} must be a finite number{above}{below}, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def checked_alpha(alpha: object) -> float:
    """Check a merging coefficient.

    Args:
        alpha: what the merged vector is multiplied with.

    Returns:
        It, as a float.

    Raises:
        TvgradError: it is no finite number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not math.isfinite(alpha):
        raise TvgradError(f"alpha must be a finite number, not {alpha!r}")
    return float(alpha)


def added(rows: Iterable[torch.Tensor], *, into: torch.Tensor | None = None) -> torch.Tensor:
    """Add rows in their order: `rows.sum(0)` takes orders of magnitude longer at some lengths (PyTorch 2.13).

    Args:
        rows: at least one, of one shape.
        into: the first of them, where it may be overwritten: new memory costs more than the sum.

    Returns:
        The sum, a new tensor or `into`.
    """
    first, *others = rows
    total = first.clone() if into is None else into
    for row in others:
        total.add_(row)
    return total


def unit(row: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to length 1, in steps that neither overflow nor underflow.

    Args:
        row: float64.

    Returns:
        It over its length, flattened; zeros for one that is zero.
    """
    flat = row.flatten()
    largest = float(flat.abs().amax()) if flat.numel() else 0.0
    if not largest:
        return torch.zeros_like(flat)
    scaled = flat / largest
    return torch.as_tensor(scaled / torch.linalg.vector_norm(scaled))
