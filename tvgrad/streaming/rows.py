"""Vectors of a streaming pass, and the plan of the matrix whose rows hold them chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.streaming.blocks import Chunk, chunks_of, matching_names, working_dtype
from tvgrad.vectors.parameters import ALL

Pair: TypeAlias = tuple[int, int]
Source: TypeAlias = tuple[int, int | None]  # rows of a file and of the file to be subtracted

BLOCK = 16_384  # elements of a row that are worked on together, so that they stay in the cache
CHUNK = 8 * BLOCK  # elements of one file that are read at a time
ROOM = 3 << 20  # elements of all rows of a matrix together; chunks get shorter when there are many vectors
SMALL_GROUP = 1 << 18  # up to this size float64 costs nothing, and float32 blocks are too few for 1e-7


@dataclass(frozen=True)
class Vector:
    """One vector of a pass: the tensors of a file, or the difference of two files."""

    label: str
    file: TensorFile
    minus: TensorFile | None = None


@dataclass(frozen=True)
class Run:
    """Vectors that one call can form: of files in sequence, less nothing, one file, or files in sequence."""

    first: int
    length: int
    file: int  # row of the first vector's file
    minus: int | None  # row of the file that is subtracted from the first vector's
    step: int  # 0 or 1: from one subtracted row to the next


@dataclass(frozen=True)
class Plan:
    """What a pass reads and computes.

    A matrix has one row for each file that is a vector, then one for each difference, then one for each other file;
    the first two kinds are the rows of the Gram matrix. Vectors that are the same share a row.
    """

    files: list[TensorFile]
    place: list[int]  # file -> its row of the matrix
    sources: list[Source]  # row of the Gram matrix -> rows of the matrix from which it is formed
    plain: int  # number of rows that are files as they are
    row_of: list[int]  # vector -> row of the Gram matrix
    projections: tuple[Pair, ...]
    signs: tuple[Pair, ...]
    groups: dict[str, str]
    sizes: dict[str, int]
    dtype: torch.dtype
    capacity: int
    chunks: list[Chunk]
    small: frozenset[str]  # groups whose products are taken in float64 in any case

    @property
    def count(self) -> int:
        """Number of rows of the Gram matrix."""
        return len(self.sources)

    @property
    def height(self) -> int:
        """Number of rows of the matrix."""
        return max([self.count - 1, *self.place]) + 1

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(file.places[name].nbytes for file in self.files for name in self.sizes)

    def bytes_of(self, chunk: Chunk) -> int:
        """Bytes that are read for one chunk.

        Args:
            chunk: one of the plan's chunks.

        Returns:
            The bytes in all files.
        """
        return sum(
            segment.length * file.places[segment.name].dtype.itemsize
            for file in self.files
            for segment in chunk.segments
        )


def plan_of(
    vectors: Sequence[Vector],
    groups: Mapping[str, str],
    projections: tuple[Pair, ...],
    signs: tuple[Pair, ...],
    names: Iterable[str] | None,
) -> Plan:
    """Check that vectors fit together and lay out their rows.

    Args:
        vectors: the vectors.
        groups: tensor name -> group.
        projections: pairs (i, j) of vectors: i is projected on j.
        signs: pairs of vectors whose signs are compared.
        names: the tensors that make up the vectors; all by default.

    Returns:
        The plan.

    Raises:
        TvgradError: labels, pairs, groups or files do not fit.
    """
    labels = [vector.label for vector in vectors]
    if not vectors or len(set(labels)) < len(labels):
        raise TvgradError("the vectors of a pass need different labels, and there must be at least one")
    for pair in [*projections, *signs]:
        if not all(0 <= index < len(vectors) for index in pair):
            raise TvgradError(f"the pair {pair} names no two vectors: indices go from 0 to {len(vectors) - 1}")
    # A file that was opened twice is still one file. Subtracted files come first: the weights of a run then lie in
    # the order of epochs, and one call forms all differences.
    by_path: dict[str, TensorFile] = {}
    for file in [*(vector.minus for vector in vectors), *(vector.file for vector in vectors)]:
        if file is not None:
            by_path.setdefault(_key(file), file)
    keys = [(_key(vector.file), None if vector.minus is None else _key(vector.minus)) for vector in vectors]
    own = list(dict.fromkeys(key for key, minus in keys if minus is None))
    differences = list(dict.fromkeys(pair for pair in keys if pair[1] is not None))
    rows: dict[tuple[str, str | None], int] = {
        pair: row for row, pair in enumerate([*((key, None) for key in own), *differences])
    }
    others = [key for key in by_path if key not in own]
    place = {key: row for row, key in enumerate(own)} | {key: len(rows) + n for n, key in enumerate(others)}
    files = [by_path[key] for key in place]

    chosen = matching_names(files, names)
    for name in chosen:
        if name not in groups:
            raise TvgradError(f"tensor {name!r} belongs to no group: name a group for each tensor")
        if groups[name] == ALL:
            raise TvgradError(f"the group of {name!r} is called {ALL!r}, which stands for the whole model: rename it")
    sizes = {name: files[0].places[name].numel for name in chosen}
    group_of = {name: groups[name] for name in chosen}
    totals = dict.fromkeys(group_of.values(), 0)
    for name, size in sizes.items():
        totals[group_of[name]] += size
    capacity = ROOM // (len(rows) + len(others))
    capacity = min(CHUNK, capacity // BLOCK * BLOCK or max(1024, capacity // 1024 * 1024))
    return Plan(
        files=files,
        place=list(place.values()),
        sources=[(place[key], None if minus is None else place[minus]) for key, minus in rows],
        plain=len(own),
        row_of=[rows[pair] for pair in keys],
        projections=projections,
        signs=signs,
        groups=group_of,
        sizes=sizes,
        dtype=working_dtype(files, chosen),
        capacity=capacity,
        chunks=chunks_of(sizes, group_of, capacity),
        small=frozenset(group for group, total in totals.items() if total <= SMALL_GROUP),
    )


def _key(file: TensorFile) -> str:
    return str(file.path.resolve())


def runs_of(sources: Sequence[Source]) -> list[Run]:
    """Join vectors that one call can form.

    Args:
        sources: the rows from which each vector is formed.

    Returns:
        Runs that cover the vectors in order.
    """
    runs: list[Run] = []
    for index, (file, minus) in enumerate(sources):
        last = runs[-1] if runs else None
        step = _step(last, file, minus) if last else None
        if last and step is not None:
            runs[-1] = replace(last, length=last.length + 1, step=step)
        else:
            runs.append(Run(index, 1, file, minus, 0))
    return runs


def _step(run: Run, file: int, minus: int | None) -> int | None:
    """The step of a run with one more vector, or None where the vector does not continue it."""
    if file != run.file + run.length or (minus is None) != (run.minus is None):
        return None
    if minus is None or run.minus is None:
        return 0
    step, rest = divmod(minus - run.minus, run.length)
    return step if rest == 0 and step in {0, 1} and (run.length == 1 or step == run.step) else None
