"""RankSearch: the magnitude of one rank among the entries of a tensor that is seen in passes, block by block.

What is known is an interval that holds the magnitude, and how many entries are larger than it. A sample of the entries
tells a narrow interval in which it probably lies; a pass counts what is larger and keeps what lies inside. Where the
sample was wrong, the counts tell on which side to go on: what is found is exact, and only the number of passes is luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Magnitudes = NDArray[np.float64]

DEVIATIONS, FEWER_DEVIATIONS = 4, 2
"""Standard errors of a share in the sample to both sides of the wanted one; and how many are enough where that keeps a
number out that is often there, as differences of bfloat16 numbers are."""
OFTEN = 8
"""A number is often there that is more than one in so many."""
NEXT = 2.0**-22
"""By this share, the next number differs: in float32, too."""
SAMPLED_PASSES = 3
"""Passes after which the interval is halved whatever a sample says: there are 64 bits to halve."""
PIECES = 16
"""A sample consists of so many pieces: how much they differ tells how far it can be trusted."""
FEW = 1 << 12
"""Entries that are ordered at once; among more, a narrower interval is looked for first."""
NONE: Magnitudes = np.empty(0)


@dataclass(frozen=True)
class IntervalCounts:
    """What a block says.

    Attributes:
        above: how many entries are larger than the interval.
        reaching: how many are no smaller than it.
        inside: those that lie in it; empty where it is a single number, and they are.
    """

    above: int
    reaching: int
    inside: Magnitudes


class RankSearch:
    """Looks for the magnitude of one rank.

    Attributes:
        found: the magnitude, when it is known.
    """

    def __init__(self, rank: int, numel: int, most: int) -> None:
        """Begin with an interval that holds everything.

        Args:
            rank: 1 is the largest magnitude, `numel` the smallest.
            numel: how many entries there are.
            most: how many of them may be kept in memory.
        """
        self.found: float | None = None
        self._rank, self._most, self._share = rank, most, rank / numel
        self._low, self._high = 0.0, math.inf
        self._above, self._reaching = 0, numel  # larger than the interval; no smaller than it
        self._passes = 0

    def interval(self, sample: Magnitudes) -> tuple[float, float]:
        """Choose the closed interval that the next pass looks into.

        Args:
            sample: magnitudes of some entries, shape (pieces, entries).

        Returns:
            Its ends.
        """
        count = self._reaching - self._above
        self._passes += 1
        if count <= self._most:
            return self._low, self._high
        if self._passes <= SAMPLED_PASSES and sample.size:
            low, high = (min(max(end, self._low), self._high) for end in _around(self._share, sample))
            if (low, high) != (self._low, self._high):
                return low, high
            near = sample[(sample >= low) & (sample <= high)]
            if near.size:  # many entries are the same number: one that is there
                guess = float(np.quantile(near, 1 - (self._rank - self._above) / count, method="nearest"))
                return guess, guess
        low, high = np.asarray([self._low, self._high]).view(np.int64)  # of numbers above zero, the order is the same
        middle = float(np.asarray([low + (high - low) // 2]).view(np.float64)[0])
        return middle, middle

    def learn(self, low: float, high: float, blocks: Iterable[IntervalCounts], *, narrow: bool = False) -> None:
        """Take in what a pass has seen.

        Args:
            low: the interval's lower end.
            high: its upper end.
            blocks: what each block of the tensor says of it.
            narrow: whether magnitudes were compared after they had been rounded to float32, as the ends are: those that
                were in the interval may lie outside by less than one float32 number.
        """
        above = reaching = kept = 0
        parts: list[Magnitudes] = []
        for seen in blocks:
            above, reaching, kept = above + seen.above, reaching + seen.reaching, kept + seen.inside.size
            parts.append(seen.inside)
            if kept > self._most:
                parts.clear()
        if self._rank <= above:
            self._low, self._reaching = math.nextafter(high, math.inf), above
        elif self._rank > reaching:
            self._high, self._above = math.nextafter(low, 0.0), reaching
        elif low == high and not kept:
            self.found = low
        elif kept <= self._most and kept == reaching - above:
            self.found = magnitude_of(np.concatenate(parts), self._rank - above)
        else:
            self._low, self._high = _widened(low, high) if narrow else (low, high)
            self._above, self._reaching = above, reaching


def look(magnitudes: Magnitudes, low: float, high: float) -> IntervalCounts:
    """Look into an interval in one block.

    Args:
        magnitudes: the block.
        low: the interval's lower end, which belongs to it.
        high: its upper end, which belongs to it.

    Returns:
        What lies above, and in it.
    """
    larger, reaching = magnitudes > high, magnitudes >= low
    count, reached = int(np.count_nonzero(larger)), int(np.count_nonzero(reaching))
    if low == high or count == reached:
        return IntervalCounts(count, reached, NONE)
    return IntervalCounts(count, reached, magnitudes.compress(np.greater(reaching, larger, out=larger)))


def look_narrow(
    rounded: NDArray[np.float32], low: float, high: float, exact: Callable[[NDArray[np.intp]], Magnitudes]
) -> IntervalCounts:
    """Look into an interval in one block of magnitudes that were rounded to float32.

    Args:
        rounded: the block.
        low: the interval's lower end, a float32 number, which belongs to it.
        high: its upper end, likewise.
        exact: tells the magnitudes at some places of the block as they are.

    Returns:
        What lies above, and in it, by the rounded magnitudes; those inside as they are.
    """
    larger, reaching = rounded > np.float32(high), rounded >= np.float32(low)
    count, reached = int(np.count_nonzero(larger)), int(np.count_nonzero(reaching))
    if count == reached or low == high == 0:
        return IntervalCounts(count, reached, NONE)
    inside = exact(np.flatnonzero(np.greater(reaching, larger, out=larger)))
    return IntervalCounts(count, reached, NONE if low == high and (inside == low).all() else inside)


def to_float32(low: float, high: float) -> tuple[float, float]:
    """Round an interval outward.

    Args:
        low: its lower end, no less than 0.
        high: its upper end.

    Returns:
        Ends that are float32 numbers.
    """
    with np.errstate(over="ignore", under="ignore"):
        first, last = float(np.float32(low)), float(np.float32(high))
    less, more = _widened(first, last)
    return less if first > low else first, more if last < high else last


def _widened(low: float, high: float) -> tuple[float, float]:
    """Ends of the numbers that, rounded to float32, lie in an interval."""
    with np.errstate(over="ignore", under="ignore"):
        less, more = np.nextafter(np.array([low, high], np.float32), np.array([0, math.inf], np.float32))
    return float(less), float(more)


def magnitude_of(magnitudes: Magnitudes, rank: int) -> float:
    """Find the magnitude of a rank in memory.

    Among many that are equal, as differences of bfloat16 numbers are, partitioning takes twenty times as long.

    Args:
        magnitudes: one-dimensional; their order is changed.
        rank: 1 is the largest.

    Returns:
        The magnitude.
    """
    if magnitudes.size <= FEW:
        place = magnitudes.size - rank
        magnitudes.partition(place)
        return float(magnitudes[place])
    search = RankSearch(rank, magnitudes.size, FEW)
    sample = in_pieces(magnitudes[:: -(-magnitudes.size // FEW)])
    while search.found is None:
        low, high = search.interval(sample)
        search.learn(low, high, [look(magnitudes, low, high)])
    return search.found


def in_pieces(magnitudes: Magnitudes) -> Magnitudes:
    """Deal magnitudes out to the pieces of a sample in turn, so that each has some from everywhere.

    Args:
        magnitudes: shape (..., entries).

    Returns:
        Shape (..., pieces, entries of a piece); fewer than `PIECES` are left out.
    """
    size = magnitudes.shape[-1] // PIECES
    return magnitudes[..., : size * PIECES].reshape(*magnitudes.shape[:-1], size, PIECES).swapaxes(-1, -2)


def _around(share: float, sample: Magnitudes) -> tuple[float, float]:
    """Ends between which the magnitude probably lies than which a share of the entries is no smaller."""
    some = np.sort(sample.reshape(-1)[:: -(-sample.size // FEW)])
    guess = some[min(math.floor((1 - share) * some.size), some.size - 1)]
    apart = float((sample >= guess).mean(axis=1).std()) / math.sqrt(len(sample))
    some_error, error = (max(apart, math.sqrt(share * (1 - share) / size)) for size in (some.size, sample.size))
    # Few of the sample have to be ordered: those between ends that the error of `some` tells.
    wide = DEVIATIONS * (some_error + error) + 4 / some.size
    low, high = _ends(some, (1 - share) * some.size, wide * some.size)
    inside = np.sort(sample[(sample >= low) & (sample <= high)])
    place = (1 - share) * sample.size - np.count_nonzero(sample < low)
    low, high = _ends(inside, place, DEVIATIONS * error * sample.size + 2)
    least, most = _ends(inside, place, FEWER_DEVIATIONS * error * sample.size + 2)
    if least > low and _is_often(low, inside):
        low = min(low * (1 + NEXT), least)
    if most < high and _is_often(high, inside):
        high = max(high * (1 - NEXT), most)
    return low, high


def _is_often(number: float, ordered: Magnitudes) -> bool:
    """Whether it is more than one in so many of those in order."""
    first, behind = np.searchsorted(ordered, number), np.searchsorted(ordered, number, side="right")
    return bool(behind - first > ordered.size // OFTEN)


def _ends(ordered: Magnitudes, place: float, margin: float) -> tuple[float, float]:
    """The numbers that stand a margin before and behind a place."""
    first, last = math.floor(place - margin), math.floor(place + margin)
    return float(ordered[first]) if first >= 0 else 0.0, float(ordered[last]) if last < ordered.size else math.inf
