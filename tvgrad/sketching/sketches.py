"""Sketches: long vectors in few numbers, by a random projection that is never stored.

Names in their order, a vector is cut into blocks of `width` entries; each block is turned by `flattened`, with signs of
its own, and the sketch is the sum of the turned blocks. Estimates of cosines and lengths come with an interval: the
page `docs/concepts/sketches.md` derives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import gamma
from tvgrad.results import Shown
from tvgrad.sketching.estimate import (
    UNKNOWN,
    Estimate,
    cosine_within,
    length_within,
    magnitude,
    norm_of_squares,
)
from tvgrad.sketching.flattening import flattened
from tvgrad.sketching.sketch_width import WIDTH, width_of
from tvgrad.sketching.split_sketch import SplitSketch, TensorSketcher, split_width
from tvgrad.vectors.parameters import cosine_from, dense

PIECE = 1 << 20
"""Entries that are converted at a time."""


@dataclass(frozen=True, repr=False)
class Sketch(Shown):
    """A vector's random projection, linear in the vector.

    Attributes:
        values: float64, as many as the sketch is wide.
        entries: how many numbers the vector has.
        squares: name -> sum of the squares of that tensor, exact but for the rounding of float64; infinite where that
            is beyond float64, and without entries below 1e-145.
        split: sketches of the single tensors, which tell of groups of them; None where they were not made.
    """

    values: torch.Tensor
    entries: int
    squares: Mapping[str, float]
    split: SplitSketch | None = None

    @property
    def width(self) -> int:
        """Numbers in the sketch."""
        return len(self.values)

    @property
    def norm(self) -> float:
        """Euclidean norm of the vector itself, from its sums of squares."""
        return norm_of_squares(self.squares.values())

    @property
    def rounding(self) -> float:
        """Bound on what rounding in float64 adds to a cosine, or to a length in units of the length."""
        blocks = -(-self.entries // self.width)
        levels = self.width.bit_length() - 1
        # Each level, and each block that is added, rounds once; |sum of blocks| <= sqrt(blocks) |vector|.
        return 2 * (gamma(levels + blocks + 3) * math.sqrt(max(blocks, 1)) + gamma(self.width))

    def estimated_norm(self) -> Estimate:
        """Estimate the norm from the values alone: where it disagrees with `norm`, one of them is damaged.

        Returns:
            The sketch's own norm, and the interval.
        """
        unit = magnitude([self.values])
        length = float(torch.linalg.vector_norm(self.values / unit)) * unit
        blocks = -(-self.entries // self.width)
        return length_within(length, 2 / self.width * (1 - 1 / blocks) if blocks > 1 else 0.0, self.rounding)

    def cosine(self, other: Sketch) -> Estimate:
        """Estimate the cosine between the vectors of two sketches.

        Args:
            other: the sketch of a vector of the same names and shapes, of the same width.

        Returns:
            The cosine of the sketches, and the interval; NaN where one of the vectors is zero or not finite.

        Raises:
            TvgradError: the sketches are of different vectors or widths.
        """
        if (self.width, self.entries) != (other.width, other.entries):
            raise TvgradError(
                f"a sketch of {self.entries:,} entries in {self.width:,} numbers and one of {other.entries:,} in "
                f"{other.width:,} are not of one projection: sketch vectors of one model, with one width"
            )
        left, right = (one.values / magnitude([one.values]) for one in (self, other))
        lengths = [float(torch.linalg.vector_norm(values)) for values in (left, right)]
        cosine = cosine_from(float(torch.dot(left, right)), lengths[0] * lengths[1])
        if math.isnan(cosine):
            return UNKNOWN
        return cosine_within(cosine, 1 / self.width if self.entries > self.width else 0.0, 2 * self.rounding)

    def _facts(self) -> dict[str, str]:
        return {"width": f"{self.width}", "entries": f"{self.entries}", "norm": f"{self.norm:.4g}"}


def sketch(vector: Mapping[str, torch.Tensor], width: int = WIDTH) -> Sketch:
    """Sketch a vector that lies in memory.

    Args:
        vector: name -> tensor of any floating-point dtype, on any device: weights, a gradient, a task vector.
        width: numbers in the sketch, a power of two from 256 on; four times as many halve the
            intervals.

    Returns:
        The sketch. It is the same, to the last bit, whatever the order of the names.

    Raises:
        TvgradError: the width is not such a number.

    Examples:
        >>> import torch, tvgrad
        >>> one = {"layer.weight": torch.linspace(-1, 1, 100_000)}
        >>> other = {"layer.weight": torch.linspace(-1, 1, 100_000).square()}
        >>> cosine = tvgrad.sketch(one, 4096).cosine(tvgrad.sketch(other, 4096))
        >>> cosine.low < 0 < cosine.high
        True
    """  # noqa: DOC502 - raised by width_of
    flat = {name: dense(tensor.detach()).reshape(-1) for name, tensor in vector.items()}
    return sketch_of({name: len(tensor) for name, tensor in flat.items()}, lambda name: flat[name].split(PIECE), width)


def sketch_of(
    sizes: Mapping[str, int],
    blocks: Callable[[str], Iterable[torch.Tensor]],
    width: int = WIDTH,
    *,
    split: bool = False,
    own: Collection[str] | None = None,
) -> Sketch:
    """Sketch a vector block by block, in memory of a few blocks.

    Args:
        sizes: name -> number of entries.
        blocks: gives consecutive flat blocks of a tensor, of any length, dtype and device; asked once for each name,
            in the order of the names.
        width: numbers in the sketch, a power of two from 256 on.
        split: whether single tensors are sketched, too.
        own: names of the tensors that are there, where others are elsewhere: the others count as zeros, and have no
            squares. `sum_of_sketches` puts the parts together.

    Returns:
        The sketch. It is the same, to the last bit, however the tensors are cut into blocks.

    Raises:
        TvgradError: the width is not such a number.
    """  # noqa: DOC502 - raised by width_of
    sum_of_blocks, narrow, start = _SumOfBlocks(width_of(width)), split_width(width), 0
    squares, values = {}, {}
    for place, name in enumerate(sorted(sizes)):
        if own is None or name in own:
            sum_of_blocks.begin(start)
            tensor = TensorSketcher(place, sizes[name], narrow) if split else None
            for block in blocks(name):
                for piece in block.reshape(-1).split(PIECE):
                    wide = piece.to("cpu").to(torch.float64)
                    sum_of_blocks.add(wide)
                    if tensor is not None:
                        tensor.add(wide)
            squares[name] = sum_of_blocks.squares()
            if tensor is not None:
                values[name] = tensor.total()
        start += sizes[name]
    return Sketch(sum_of_blocks.total(), start, squares, SplitSketch(narrow, dict(sizes), values) if split else None)


def sum_of_sketches(parts: Sequence[Sketch]) -> Sketch:
    """Add up sketches of one vector, each of which has some of its tensors.

    Args:
        parts: from `sketch_of`, which together have every tensor once.

    Returns:
        The sketch of all: squares and single tensors have the bits that one pass gives them, and the sum of the blocks
        has them to the rounding of float64.
    """
    first = parts[0]
    values = torch.stack([part.values for part in parts]).sum(0)
    squares = {name: square for part in parts for name, square in part.squares.items()}
    splits = [part.split for part in parts if part.split is not None]
    held = {name: value for split in splits for name, value in split.values.items()}
    split = SplitSketch(splits[0].width, splits[0].entries, held) if splits else None
    return Sketch(values, first.entries, squares, split)


class _SumOfBlocks:
    """Gathers entries into blocks, and adds the turned blocks up."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._block = torch.zeros(width, dtype=torch.float64)
        self._filled = self._number = self._began = 0
        self._squares: list[float] = []

    def begin(self, start: int) -> None:
        """Another tensor begins, so many entries after the start of the vector; what was left out is zero."""
        number, filled = divmod(start, len(self._block))
        if number != self._number:
            self.total()
            self._number = number
        self._block[self._filled : filled] = 0
        self._filled = self._began = filled
        self._squares = []

    def add(self, piece: torch.Tensor) -> None:
        """Go on with the tensor."""
        while len(piece):
            here = piece[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(here)] = here
            self._filled += len(here)
            piece = piece[len(here) :]
            if self._filled == len(self._block):
                self._turn()

    def squares(self) -> float:
        """The tensor's sum of squares: a sum of those of its parts in each block, wherever the pieces were cut."""
        self._note_squares()
        try:
            return math.fsum(self._squares)
        except OverflowError:
            return math.inf

    def total(self) -> torch.Tensor:
        """The sketch."""
        if self._filled:
            self._block[self._filled :] = 0
            self._turn()
        return self._sum

    def _turn(self) -> None:
        self._note_squares()
        self._sum += flattened(self._block, self._number)
        self._number += 1
        self._filled = self._began = 0

    def _note_squares(self) -> None:
        part = self._block[self._began : self._filled]
        self._squares.append(float(torch.dot(part, part)))
        self._began = self._filled
