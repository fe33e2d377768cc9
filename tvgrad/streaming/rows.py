"""Vectors of a streaming pass, and the plan of the matrix whose rows hold them block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TypeAlias

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.regular import real_path
from tvgrad.files.tensors import TensorSource
from tvgrad.streaming.blocks import Block, blocks_of, matching_names, working_dtype
from tvgrad.streaming.vector_key import Reference, VectorKey
from tvgrad.vectors.parameters import ALL

Pair: TypeAlias = tuple[int, int]
Source: TypeAlias = tuple[int, int | None]  # row of a file, and row of the file that is subtracted from it

PRODUCT = 1024  # elements in one float32 product; 16,384 are 8 % faster and 20 times less precise
TILE = 16_384  # elements of a row that are worked on together, so that they stay in the cache
LONGEST_BLOCK = 16 * TILE  # elements of one file that are read at a time: calls take longer than the cache saves
MATRIX_ELEMENTS = 3 << 20  # in all rows of a matrix together; blocks get shorter when there are many vectors
SMALL_GROUP = 1 << 18  # up to this size float64 costs nothing, and float32 products are too few for 1e-7


@dataclass(frozen=True)
class Vector:
    """One vector of a pass: the tensors of a file, or the difference of two files."""

    key: VectorKey | str
    file: TensorSource
    minus: TensorSource | None = None


@dataclass(frozen=True)
class RowSpan:
    """Vectors that one call can form: consecutive rows, minus none, one row, or consecutive rows."""

    first: int
    length: int
    file: int  # row of the first vector's file
    minus: int | None  # row of the file that is subtracted from the first vector's
    step: int  # 0 or 1: from one subtracted row to the next

    def extended(self, file: int, minus: int | None) -> RowSpan | None:
        """Append a vector.

        Args:
            file: row of its file.
            minus: row of the file that is subtracted.

        Returns:
            The longer span, or None where the vector does not continue it.
        """
        if file != self.file + self.length or (minus is None) != (self.minus is None):
            return None
        if minus is None or self.minus is None:
            return replace(self, length=self.length + 1)
        step, rest = divmod(minus - self.minus, self.length)
        if rest or step not in {0, 1} or (self.length > 1 and step != self.step):
            return None
        return replace(self, length=self.length + 1, step=step)


def spans_of(sources: Sequence[Source]) -> list[RowSpan]:
    """Join vectors that one call can form.

    Args:
        sources: the rows from which each vector is formed.

    Returns:
        Spans that cover the vectors in order.
    """
    spans: list[RowSpan] = []
    for index, (file, minus) in enumerate(sources):
        longer = spans[-1].extended(file, minus) if spans else None
        if longer:
            spans[-1] = longer
        else:
            spans.append(RowSpan(index, 1, file, minus, 0))
    return spans


@dataclass(frozen=True)
class MatrixPlan:
    """What a pass reads and computes.

    A matrix has one row for each file that is a vector, then one for each difference, then one for each other file;
    the first two kinds are the rows of the Gram matrix. Vectors that are the same share a row.
    """

    files: list[TensorSource]
    place: list[int]  # file -> its row of the matrix
    sources: list[Source]  # row of the Gram matrix -> rows of the matrix from which it is formed
    plain: int  # number of rows that are files as they are
    row_of: list[int]  # vector -> row of the Gram matrix
    pairs: list[Pair]  # of rows of the Gram matrix, the smaller first: whose products are wanted
    calls: list[tuple[int, int, int, int]]  # row, first and end of its partners side by side, index of the first pair
    projections: list[Pair]
    signs: list[Pair]
    groups: dict[str, str]
    sizes: dict[str, int]
    dtype: torch.dtype
    capacity: int
    blocks: list[Block]
    small: frozenset[str]  # groups whose products are taken in float64 in any case

    @property
    def count(self) -> int:
        """Number of rows of the Gram matrix."""
        return len(self.sources)

    @cached_property
    def pair_of(self) -> dict[Pair, int]:
        """Pair of rows -> its index among the pairs."""
        return {pair: place for place, pair in enumerate(self.pairs)}

    @property
    def height(self) -> int:
        """Number of rows of the matrix."""
        return max([self.count - 1, *self.place]) + 1

    def bytes_of(self, block: Block) -> int:
        """Bytes that are read for one block.

        Args:
            block: one of the plan's blocks.

        Returns:
            The bytes in all files.
        """
        return sum(
            segment.length * file.places[segment.name].dtype.itemsize
            for file in self.files
            for segment in block.segments
        )


def plan_matrix(
    vectors: Sequence[Vector],
    groups: Mapping[str, str],
    *,
    projections: Sequence[tuple[Reference, Reference]],
    signs: Sequence[tuple[Reference, Reference]],
    names: Iterable[str] | None,
    pairs: Sequence[tuple[Reference, Reference]] | None = None,
    dtype: torch.dtype | None = None,
) -> MatrixPlan:
    """Check that vectors fit together and lay out their rows.

    Args:
        vectors: the vectors.
        groups: tensor name -> group.
        projections: pairs (i, j) of vectors: i is projected on j.
        signs: pairs of vectors whose signs are compared.
        names: the tensors that make up the vectors; all by default.
        pairs: pairs of vectors whose inner products are wanted, beside their squares; all by default.
        dtype: float32 or float64; by default what holds every stored value exactly.

    Returns:
        The plan.

    Raises:
        TvgradError: labels, pairs, groups or files do not fit.
    """  # noqa: DOC502 - raised by what is called
    projected, compared = _row_pairs(vectors, projections), _row_pairs(vectors, signs)
    # A file that was opened twice is still one file. Subtracted files come first: the weights of a run then lie in
    # the order of epochs, and one call forms all differences.
    opened = [vector.minus for vector in vectors if vector.minus] + [vector.file for vector in vectors]
    by_path: dict[str, TensorSource] = {}
    same = {file: by_path.setdefault(str(real_path(file.path)), file) for file in opened}
    formed = [(same[vector.file], same[vector.minus] if vector.minus else None) for vector in vectors]
    # Differences from one file lie side by side, and so do those of files that follow each other.
    users = Counter(minus for _, minus in dict.fromkeys(formed))
    plain_first = sorted(dict.fromkeys(formed), key=lambda pair: 0 if pair[1] is None else 1 + (users[pair[1]] == 1))
    rows = {pair: row for row, pair in enumerate(plain_first)}
    place = {file: row for (file, minus), row in rows.items() if minus is None}
    plain = len(place)
    others = [file for file in by_path.values() if file not in place]
    place |= {file: row for row, file in enumerate(others, len(rows))}
    files = list(place)
    chosen = matching_names(files, names)
    group_of = _groups_of(chosen, groups)
    sizes = {name: files[0].places[name].numel for name in chosen}
    totals: Counter[str] = Counter()
    for name, size in sizes.items():
        totals[group_of[name]] += size
    capacity = MATRIX_ELEMENTS // (len(rows) + len(others))
    capacity = min(LONGEST_BLOCK, max(TILE, capacity // TILE * TILE))
    row_of = [rows[pair] for pair in formed]
    wanted = _row_pairs(vectors, pairs) if pairs is not None else list(combinations(range(len(vectors)), 2))
    of_rows = sorted({(row, row) for row in row_of} | {_in_order(row_of, pair) for pair in [*wanted, *projected]})
    return MatrixPlan(
        files=files,
        place=list(place.values()),
        sources=[(place[file], None if minus is None else place[minus]) for file, minus in rows],
        plain=plain,
        row_of=row_of,
        pairs=of_rows,
        calls=_calls(of_rows),
        projections=projected,
        signs=compared,
        groups=group_of,
        sizes=sizes,
        dtype=working_dtype(files, chosen) if dtype is None else dtype,
        capacity=capacity,
        blocks=blocks_of(sizes, group_of, capacity),
        small=frozenset(group for group, total in totals.items() if total <= SMALL_GROUP),
    )


def _row_pairs(vectors: Sequence[Vector], pairs: Sequence[tuple[Reference, Reference]]) -> list[Pair]:
    """The pairs' places in the list of vectors, whose labels must differ."""
    places = {str(vector.key): place for place, vector in enumerate(vectors)}
    if not vectors or len(places) < len(vectors):
        raise TvgradError("the vectors of a pass need different labels, and there must be at least one")
    found = []
    for pair in pairs:
        left, right = (one if isinstance(one, int) else places.get(str(one), -1) for one in pair)
        if not (0 <= left < len(vectors) and 0 <= right < len(vectors)):
            raise TvgradError(f"the pair {pair} names no two vectors: indices go from 0 to {len(vectors) - 1}")
        found.append((left, right))
    return found


def _in_order(row_of: Sequence[int], pair: Pair) -> Pair:
    """A pair of vectors as a pair of rows, the smaller first."""
    left, right = row_of[pair[0]], row_of[pair[1]]
    return min(left, right), max(left, right)


def _calls(pairs: Sequence[Pair]) -> list[tuple[int, int, int, int]]:
    """Join sorted pairs of one row with rows side by side."""
    calls: list[tuple[int, int, int, int]] = []
    for place, (row, other) in enumerate(pairs):
        if calls and calls[-1][0] == row and calls[-1][2] == other:
            calls[-1] = (row, calls[-1][1], other + 1, calls[-1][3])
        else:
            calls.append((row, other, other + 1, place))
    return calls


def _groups_of(names: Sequence[str], groups: Mapping[str, str]) -> dict[str, str]:
    for name in names:
        if name not in groups:
            raise TvgradError(f"tensor {name!r} belongs to no group: name a group for each tensor")
        if groups[name] == ALL:
            raise TvgradError(f"the group of {name!r} is called {ALL!r}, which stands for the whole model: rename it")
    return {name: groups[name] for name in names}
