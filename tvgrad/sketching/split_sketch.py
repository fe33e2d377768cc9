"""SplitSketch: a vector's sketches tensor by tensor, of which those of any group of parameters can be put together.

A tensor of few entries is kept as it is. Any other is cut into blocks of `width` entries, the first of which begins
with the tensor; each is turned with signs of its own, and the sketch is the sum of the turned blocks. No two tensors
share signs, so that the errors of a group are independent sums: `docs/concepts/sketches.md` derives its interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import gamma
from tvgrad.sketching.estimate import UNKNOWN, Estimate, cosine_within, length_within, magnitude
from tvgrad.sketching.flattening import BlockTurner
from tvgrad.sketching.sketch_width import LEAST
from tvgrad.vectors.parameters import cosine_from

SHARE = 16
"""A tensor's sketch has the width of the model's over this: all of them together are a small part of a large model."""

BATCH = 1 << 17
"""Entries that are turned at a time."""


def split_width(width: int) -> int:
    """Tell the width of the sketches of single tensors.

    Args:
        width: of the sketch of the whole model.

    Returns:
        Theirs.
    """
    return max(LEAST, width // SHARE)


def is_kept_whole(entries: int, width: int) -> bool:
    """Tell whether a tensor takes no more bytes in float32 than a float64 sketch of it would.

    Args:
        entries: of the tensor.
        width: of its sketch.

    Returns:
        Whether its entries are kept.
    """
    return entries <= 2 * width


@dataclass(frozen=True, eq=False)
class SplitSketch:
    """A vector's sketches tensor by tensor.

    Attributes:
        width: numbers in a sketch.
        entries: name -> how many numbers the tensor has.
        values: name -> float64: the tensor's entries where they are few, else its sketch.
    """

    width: int
    entries: Mapping[str, int]
    values: Mapping[str, torch.Tensor]

    def estimated_norm(self, names: Iterable[str]) -> Estimate:
        """Estimate the norm of a group.

        Args:
            names: the tensors of the group.

        Returns:
            The norm of what is kept, and the interval, which is a point where all entries are kept.
        """
        names = list(names)
        lengths = {name: _length([self.values[name]]) for name in names}
        length = math.hypot(*lengths.values())
        parts = [
            2 / self.width * (1 - 1 / blocks) * (lengths[name] / length) ** 4
            for name in names
            if (blocks := self._blocks(name)) > 1 and 0 < length < math.inf
        ]
        return length_within(length, math.fsum(parts), self._rounding(names))

    def cosine(self, other: SplitSketch, names: Iterable[str]) -> Estimate:
        """Estimate the cosine between a group's parts of two vectors.

        Args:
            other: of a vector of the same names and shapes, of the same width.
            names: the tensors of the group.

        Returns:
            The cosine of what is kept, and the interval; NaN where one of the parts is zero or not finite.

        Raises:
            TvgradError: the sketches are of different vectors or widths.
        """
        if (self.width, self.entries) != (other.width, other.entries):
            raise TvgradError(
                "sketches of single tensors are of different vectors, or of different widths: sketch vectors of one "
                "model, with one width"
            )
        names = list(names)
        units = [magnitude(one.values[name] for name in names) for one in (self, other)]
        left, right = (
            {name: one.values[name] / unit for name in names} for one, unit in zip((self, other), units, strict=True)
        )
        lengths = [_length(one.values()) for one in (left, right)]
        inner = math.fsum(float(torch.dot(left[name], right[name])) for name in names)
        cosine = cosine_from(inner, lengths[0] * lengths[1])
        if math.isnan(cosine):
            return UNKNOWN
        sketched = [name for name in names if self._blocks(name) > 1]
        variance = self._variance(left, right, sketched, lengths, cosine) if sketched and abs(cosine) < 1 else 0.0
        return cosine_within(cosine, variance, 2 * self._rounding(names))

    def _variance(
        self,
        left: Mapping[str, torch.Tensor],
        right: Mapping[str, torch.Tensor],
        sketched: Sequence[str],
        lengths: Sequence[float],
        cosine: float,
    ) -> float:
        """Bound on the variance of the inverse hyperbolic tangent: step 10 on the page of sketches."""
        # x is the one unit vector, z the other's part across it; of each tensor their Gram matrix.
        across = {name: right[name] / lengths[1] - left[name] * (cosine / lengths[0]) for name in left}
        rest = _length(across.values())
        if rest == 0:
            return 0.0
        squares = []
        for name in sketched:
            along, beside = left[name] / lengths[0], across[name] / rest
            squares += [float(torch.dot(along, along)) ** 2, float(torch.dot(beside, beside)) ** 2]
            squares += [2 * float(torch.dot(along, beside)) ** 2]
        return math.fsum(squares) / (2 * self.width)

    def _blocks(self, name: str) -> int:
        """How many blocks were added up; 1 where the entries are kept."""
        entries = self.entries[name]
        return 1 if is_kept_whole(entries, self.width) else -(-entries // self.width)

    def _rounding(self, names: Sequence[str]) -> float:
        """Bound on what rounding in float64 adds to a length, in units of the length."""
        blocks = max(map(self._blocks, names), default=1)
        levels, longest = self.width.bit_length() - 1, max((len(self.values[name]) for name in names), default=1)
        return 2 * (gamma(levels + blocks + 3) * math.sqrt(blocks) + gamma(longest + len(names)))


def _length(parts: Iterable[torch.Tensor]) -> float:
    parts = list(parts)
    unit = magnitude(parts)
    return math.hypot(*(float(torch.linalg.vector_norm(part / unit)) for part in parts)) * unit


class TensorSketcher:
    """Makes a tensor's part of a `SplitSketch` from consecutive pieces of it."""

    def __init__(self, place: int, entries: int, width: int) -> None:
        """Begin.

        Args:
            place: of the tensor among the names in their order.
            entries: how many it has.
            width: of its sketch.
        """
        self._whole = is_kept_whole(entries, width)
        self._width, self._filled = width, 0
        self._rows = BlockTurner(place, width)
        batch = entries if self._whole else min(max(BATCH, width), -(-entries // width) * width)
        self._batch = torch.zeros(batch, dtype=torch.float64)
        self._sum = torch.zeros(0 if self._whole else width, dtype=torch.float64)

    def add(self, piece: torch.Tensor) -> None:
        """Go on with the tensor.

        Args:
            piece: flat, float64.
        """
        while len(piece):
            here = piece[: len(self._batch) - self._filled]
            self._batch[self._filled : self._filled + len(here)] = here
            self._filled += len(here)
            piece = piece[len(here) :]
            if self._filled == len(self._batch) and not self._whole:
                self._turn()

    def total(self) -> torch.Tensor:
        """Finish.

        Returns:
            The entries, or the sketch.
        """
        if self._whole:
            return self._batch
        self._turn()
        return self._sum

    def _turn(self) -> None:
        """Add what was gathered, the last block filled with zeros."""
        count = -(-self._filled // self._width)
        rows = self._batch[: count * self._width]
        rows[self._filled :] = 0
        # One after the other, so that the bits do not depend on how many were turned together.
        for row in self._rows.turned(rows.view(count, self._width)) if count else ():
            self._sum += row
        self._filled = 0
