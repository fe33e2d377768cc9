"""Blocks of the same parameters from many safetensors files, read side by side into one reused matrix.

A pass over a run needs, at any moment, the same coordinates of every weight and gradient file. A model is cut into
blocks, each inside one group of parameters, and a reader fills a matrix with one row a file. The cut depends on the
names, shapes and groups alone, never on threads or timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorSource

NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2})
"""Stored types whose values float32 holds exactly."""

COMPARED = 1 << 15
"""Elements of one tensor that are compared at once: some twenty float64 vectors of this length, which fit in a cache.

Longer ones take memory, and twice the time: each is fetched from the system and given back."""


@dataclass(frozen=True)
class Segment:
    """Consecutive elements of one flattened tensor."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Block:
    """What is read at a time: segments of tensors that belong to one group."""

    group: str
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Number of elements."""
        return sum(segment.length for segment in self.segments)


def matching_names(files: Sequence[TensorSource], names: Iterable[str] | None = None) -> list[str]:
    """Check that files hold the same floating-point tensors.

    Args:
        files: at least one file.
        names: the tensors to be compared; all of them by default.

    Returns:
        The names, in the order given or else in the order of the first file.

    Raises:
        TvgradError: a tensor is missing in a file, has another shape there, or does not hold floating-point numbers.
    """
    first = files[0]
    chosen = list(first.places) if names is None else list(dict.fromkeys(names))
    for file in files:
        if names is None:
            extra = next((name for name in file.places if name not in first.places), None)
            if extra is not None:
                raise TvgradError(
                    f"{file.path} has a tensor {extra!r} that {first.path} has not: give files of the same model"
                )
        for name in chosen:
            if name not in file.places:
                raise TvgradError(f"{file.path} has no tensor {name!r}: give files of the same model")
            place, other = file.places[name], first.places[name]
            if place.shape != other.shape:
                raise TvgradError(
                    f"{name!r} has shape {place.shape} in {file.path} and {other.shape} in {first.path}: "
                    "give files of the same model"
                )
            if place.dtype not in NARROW and place.dtype != torch.float64:
                raise TvgradError(
                    f"{name!r} in {file.path} holds {str(place.dtype).removeprefix('torch.')} values, which have no "
                    "inner products: name the floating-point parameters that are to be compared"
                )
    return chosen


def working_dtype(files: Sequence[TensorSource], names: Sequence[str]) -> torch.dtype:
    """Choose the type that holds every stored value exactly.

    Args:
        files: files that hold the names.
        names: the tensors that are read.

    Returns:
        float32, or float64 as soon as one tensor of one file is float64.
    """
    narrow = all(file.places[name].dtype in NARROW for file in files for name in names)
    return torch.float32 if narrow else torch.float64


def blocks_of(sizes: Mapping[str, int], groups: Mapping[str, str], capacity: int) -> list[Block]:
    """Cut a model into blocks; small tensors of the same group share one, so thousands of biases cost little.

    Args:
        sizes: tensor name -> number of elements.
        groups: tensor name -> group.
        capacity: largest number of elements in a block.

    Returns:
        Blocks that cover every element once, group by group in the order of first appearance.
    """
    by_group: dict[str, list[str]] = {}
    for name in sizes:
        by_group.setdefault(groups[name], []).append(name)
    blocks = []
    for group, names in by_group.items():
        segments: list[Segment] = []
        room = capacity
        for name in names:
            start = 0
            while start < sizes[name]:
                length = min(room, sizes[name] - start)
                segments.append(Segment(name, start, length))
                start += length
                room -= length
                if room == 0:
                    blocks.append(Block(group, tuple(segments)))
                    segments, room = [], capacity
        if segments:
            blocks.append(Block(group, tuple(segments)))
    return blocks


class BlockReader:
    """Reads a block of every file into a row; each thread needs a reader of its own."""

    def __init__(self, files: Sequence[TensorSource], rows: Sequence[torch.Tensor]) -> None:
        """Keep the files and the rows.

        Args:
            files: the files, one for each row.
            rows: contiguous CPU vectors of float32 or float64, as long as the longest block.
        """
        self._files = files
        self._rows = rows
        self._staging = torch.empty(0, dtype=torch.uint8)

    def fill(self, block: Block) -> None:
        """Read one block of all files; elements behind its length keep what was there before.

        Args:
            block: what to read.

        Raises:
            DamagedRun: a file ends before the elements do.
        """  # ruff: ignore[docstring-extraneous-exception] - raised by TensorFile.read_into
        for file, segment, out in self._parts(block):
            dtype = file.places[segment.name].dtype
            if dtype == out.dtype:
                file.read_into(segment.name, segment.start, out)
            else:
                self._staging = at_least(self._staging, segment.length * dtype.itemsize)
                stored = self._staging[: segment.length * dtype.itemsize].view(dtype)
                out.copy_(file.read_into(segment.name, segment.start, stored))

    def without_products(self, block: Block) -> list[tuple[TensorSource, str]]:
        """Find where the block that was read last holds an infinity, a NaN, or numbers too large to be squared.

        Args:
            block: the block that `fill` read.

        Returns:
            The first such tensor of each file.
        """
        found: dict[int, tuple[TensorSource, str]] = {}
        for file, segment, values in self._parts(block):
            # a sum of 1e28 squares of numbers below this, or of differences of two, is a float64 still
            if not bool(
                (values.abs() < 1e139).all() if values.dtype == torch.float64 else torch.isfinite(values).all()
            ):
                found.setdefault(id(file), (file, segment.name))
        return list(found.values())

    def _parts(self, block: Block) -> Iterator[tuple[TensorSource, Segment, torch.Tensor]]:
        """Each segment of each file, and where its elements stand in the file's row."""
        for file, row in zip(self._files, self._rows, strict=True):
            offset = 0
            for segment in block.segments:
                yield file, segment, row[offset : offset + segment.length]
                offset += segment.length


def at_least(buffer: torch.Tensor, count: int) -> torch.Tensor:
    """Keep a buffer, or replace it where it is too short.

    Args:
        buffer: one-dimensional.
        count: elements that are needed.

    Returns:
        The buffer, or a new one of this length.
    """
    return buffer if buffer.numel() >= count else torch.empty(count, dtype=buffer.dtype)


def tensor_blocks(files: Sequence[TensorSource], name: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Read one tensor of several files side by side, in blocks.

    Args:
        files: have the tensor, in one shape.
        name: its name.

    Yields:
        The same coordinates of each file, flattened, in its own dtype.
    """
    count = files[0].places[name].numel
    for start in range(0, count, COMPARED):
        length = min(COMPARED, count - start)
        yield tuple(file.read_into(name, start, torch.empty(length, dtype=file.places[name].dtype)) for file in files)
