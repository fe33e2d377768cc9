"""Stacks: the same tensor, or block of a tensor, of every task's vector, from memory or from files."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorSource
from tvgrad.merging.narrow_block import NarrowBlock
from tvgrad.streaming.blocks import NARROW, at_least, matching_names
from tvgrad.vectors.parameters import all_finite, same_names_and_shapes


class _Buffers(threading.local):
    """What a thread reads into."""

    def __init__(self) -> None:
        self.rows = torch.empty(0, dtype=torch.float64)
        self.weights = torch.empty(0, dtype=torch.float64)
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.last: tuple[str, int, int] | None = None  # the block that `weights` holds
        self.narrow = torch.empty(0)


class Stack(ABC):
    """Task vectors side by side, read a piece at a time; several threads may read.

    Attributes:
        places: name -> shape and dtype of the tensors that are merged.
        labels: what to call each task in a message.
    """

    def __init__(self, places: Mapping[str, tuple[tuple[int, ...], torch.dtype]], labels: Sequence[str]) -> None:
        """Keep names and shapes.

        Args:
            places: name -> shape and dtype of the result.
            labels: one for each task.
        """
        self.places = dict(places)
        self.labels = list(labels)
        self._buffers = _Buffers()

    @property
    def tasks(self) -> int:
        """How many task vectors there are."""
        return len(self.labels)

    def numel(self, name: str) -> int:
        """Count the elements of a tensor.

        Args:
            name: the tensor.

        Returns:
            Their number.
        """
        return math.prod(self.places[name][0])

    def rows(self, name: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Read one tensor of every task vector, or a block of it.

        Args:
            name: the tensor.
            start: first element of the flattened tensor.
            length: how many elements; None is the whole tensor, in its shape.

        Returns:
            float64, shape (tasks, length) or (tasks, *shape); the thread's next call overwrites it.

        Raises:
            TvgradError: a value is an infinity or a NaN.
        """
        count = self.numel(name) if length is None else length
        buffers = self._buffers
        buffers.rows = at_least(buffers.rows, self.tasks * count)
        rows = buffers.rows[: self.tasks * count].view(self.tasks, count)
        for task, row in enumerate(rows):
            self.read_row(task, name, start, row)
        if not all_finite(rows):
            label = next(one for one, row in zip(self.labels, rows, strict=True) if not all_finite(row))
            raise TvgradError(f"{name!r} of {label} holds a NaN or an infinity: leave that model out")
        return rows if length is not None else rows.view(self.tasks, *self.places[name][0])

    def narrow(self, name: str, start: int, length: int) -> NarrowBlock | None:
        """Read a block in half of the memory, where that loses nothing.

        Args:
            name: the tensor.
            start: first element of the flattened tensor.
            length: how many elements.

        Returns:
            The block, which the thread's next call overwrites; None where float32 does not hold all stored values.

        Raises:
            TvgradError: a value is an infinity or a NaN.
        """  # noqa: DOC502 - raised by those that read files
        return None

    @abstractmethod
    def base(self, name: str, start: int, length: int) -> torch.Tensor | None:
        """Read a block of the weights that the merged vector is added to.

        Args:
            name: the tensor.
            start: first element of the flattened tensor.
            length: how many elements.

        Returns:
            float64, shape (length,), or None where the merged vector is wanted as it is.
        """

    @abstractmethod
    def read_row(self, task: int, name: str, start: int, out: torch.Tensor) -> None:
        """Read a block of one tensor of one task vector; nothing is said of values that are not finite.

        Args:
            task: which one.
            name: the tensor.
            start: first element of the flattened tensor.
            out: float64, one-dimensional, as long as the block.
        """


class VectorStack(Stack):
    """Task vectors in memory."""

    def __init__(
        self, task_vectors: Sequence[Mapping[str, torch.Tensor]], base: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Check that the vectors are of one model.

        Args:
            task_vectors: each name -> tensor.
            base: weights to add the merged vector to, which give the result their dtypes; None is none, and float64.

        Raises:
            TvgradError: there is no vector, or names or shapes differ, or a tensor does not hold real numbers.
        """
        listed = isinstance(task_vectors, Iterable) and not isinstance(task_vectors, Mapping)
        self._vectors, self._base = list(task_vectors) if listed else [], base
        if not self._vectors:
            raise TvgradError("there is no task vector to merge: give a list of them, each name -> tensor")
        first = self._vectors[0]
        labels = [f"task vector {number}" for number in range(1, len(self._vectors) + 1)]
        for label, vector in zip(labels, self._vectors, strict=True):
            _check(label, vector, first)
        if base is not None:
            _check("the base", base, first, more=True)
        places = {
            name: (tuple(tensor.shape), torch.float64 if base is None else base[name].dtype)
            for name, tensor in first.items()
        }
        super().__init__(places, labels)

    @override
    def base(self, name: str, start: int, length: int) -> torch.Tensor | None:
        if self._base is None:
            return None
        block = self._base[name].detach().flatten()[start : start + length].double()
        if not all_finite(block):
            raise TvgradError(f"{name!r} of the base holds a NaN or an infinity: give finite weights")
        return block

    @override
    def read_row(self, task: int, name: str, start: int, out: torch.Tensor) -> None:
        out.copy_(self._vectors[task][name].detach().flatten()[start : start + out.numel()])


def _check(label: str, vector: object, first: Mapping[str, torch.Tensor], *, more: bool = False) -> None:
    """Refuse what is no vector of the first one's model; the base may have more tensors."""
    if not isinstance(vector, Mapping):
        raise TvgradError(
            f"{label} is of type {type(vector).__name__}: give name -> tensor, such as `run.task_vector(1)`"
        )
    for name, value in vector.items():
        if not isinstance(value, torch.Tensor):
            raise TvgradError(
                f"{name!r} of {label} is of type {type(value).__name__}: give tensors (`torch.as_tensor`)"
            )
    chosen = {name: value for name, value in vector.items() if name in first or not more}
    difference = same_names_and_shapes(first, chosen)
    if difference is not None:
        raise TvgradError(f"{label} is not of the same model as task vector 1: {difference}")
    for name, tensor in chosen.items():
        if not tensor.is_floating_point():
            raise TvgradError(f"{name!r} of {label} holds {tensor.dtype} values: merge floating-point tensors")


class FileStack(Stack):
    """Fine-tuned weights in safetensors files, whose difference to pretrained weights is formed in float64."""

    def __init__(
        self,
        pretrained: TensorSource,
        tuned: Sequence[TensorSource],
        labels: Sequence[str] = (),
        *,
        names: Iterable[str] | None = None,
        changes: Collection[int] = (),
    ) -> None:
        """Check that the files are of one model.

        Args:
            pretrained: the weights before fine-tuning.
            tuned: the weights after it, one file a task.
            labels: what to call each task; by default the file's path.
            names: the tensors that are merged; by default all, which must then be the same in every file.
            changes: places among `tuned` of sources that hold the difference already.

        Raises:
            TvgradError: there is no tuned file, or the files hold other tensors, shapes or kinds of numbers.
        """
        if not tuned:
            raise TvgradError("there is no fine-tuned model to merge: give one file for each task")
        chosen = matching_names([pretrained, *tuned], names)
        places = {name: (pretrained.places[name].shape, pretrained.places[name].dtype) for name in chosen}
        super().__init__(places, labels or [str(file.path) for file in tuned])
        self._files = [pretrained, *tuned]
        self._changes = frozenset(changes)

    @override
    def base(self, name: str, start: int, length: int) -> torch.Tensor:
        buffers = self._buffers
        if buffers.last != (name, start, length):  # the block that `rows` read last is not read again
            buffers.weights = at_least(buffers.weights, length)
            buffers.weights[:length].copy_(self._read(0, name, start, length=length))
            buffers.last = name, start, length
        return buffers.weights[:length]

    @override
    def read_row(self, task: int, name: str, start: int, out: torch.Tensor) -> None:
        out.copy_(self._read(task + 1, name, start, length=out.numel()))
        if task not in self._changes:
            out.sub_(self.base(name, start, out.numel()))

    @override
    def narrow(self, name: str, start: int, length: int) -> NarrowBlock | None:
        if any(file.places[name].dtype not in NARROW for file in self._files):
            return None
        buffers, count = self._buffers, self.tasks + 2
        buffers.narrow = at_least(buffers.narrow, count * length)
        rows = buffers.narrow[: count * length].view(count, length)
        for number in range(self.tasks + 1):
            rows[number].copy_(self._read(number, name, start, length=length))
        if not all_finite(rows[:-1]):
            self.rows(name, start, length)  # says which
        return NarrowBlock(rows[1:-1], rows[0], self._changes, rows[-1])

    def _read(self, number: int, name: str, start: int, *, length: int) -> torch.Tensor:
        """A block as it is stored, in one buffer for all files."""
        file = self._files[number]
        dtype = file.places[name].dtype
        staging = self._buffers.staging = at_least(self._buffers.staging, length * dtype.itemsize)
        return file.read_into(name, start, staging[: length * dtype.itemsize].view(dtype))


def same_tensor(left: TensorSource, right: TensorSource, name: str, *, block: int = 1 << 16) -> bool:
    """Compare a tensor of two files as bytes, so that a NaN equals itself.

    Args:
        left: a file.
        right: another.
        name: the tensor.
        block: elements read at a time.

    Returns:
        Whether both hold it with the same shape, dtype and bits.
    """
    one, other = left.places.get(name), right.places.get(name)
    if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    for start in range(0, one.numel, block):
        length = min(block, one.numel - start)
        parts = [file.read_into(name, start, torch.empty(length, dtype=one.dtype)) for file in (left, right)]
        if not torch.equal(*(part.view(torch.uint8) for part in parts)):
            return False
    return True


def first_difference(left: TensorSource, right: TensorSource) -> str | None:
    """Compare two files bit by bit.

    Args:
        left: a file.
        right: another.

    Returns:
        None where they hold the same tensors, or the name of the first that differs.
    """
    names = dict.fromkeys([*left.places, *right.places])
    return next((name for name in names if not same_tensor(left, right, name)), None)
