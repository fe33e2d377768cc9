"""Sums over units of parameters: inner products, residuals of projections, and agreement in sign.

Units. A group of parameters is cut into units of 16,384 coordinates, whatever else is computed. What is said of a pair
of vectors depends on these two alone, to the last bit: a product over 1024 elements is one dot product, whichever
others are taken beside it; products are added up in a unit, and units one after the other. So a pair may be computed
today and its neighbours tomorrow.

Residuals. For `v` and `g` cut into units `b`, with `w_b = <g,g>_b`, `c_b = <v,g>_b / w_b` and
`r_b = ||v - c_b g||_b`, two units merge (Chan's update) into

    w = w_1 + w_2,   c = (w_1 c_1 + w_2 c_2) / w,   r^2 = r_1^2 + r_2^2 + (c_1 - c_2)^2 w_1 w_2 / w.

Proof: `v - c_b g` is orthogonal to `g` on unit b, so `||v - c g||_b^2 = r_b^2 + (c_b - c)^2 w_b` for every c. The sum
over both units is smallest at the weighted mean c of the c_b, where `sum w_b (c_b - c)^2 = (c_1 - c_2)^2 w_1 w_2 / w`.
That minimum is the squared residual on the union, all its terms are non-negative, and so nothing cancels; the same
update takes units to groups and groups to the whole model. A unit with `w_b = 0` adds `r_b^2 = ||v||_b^2` and leaves
c alone. Inside a unit, `R = v - a g` is formed in float64 with an `a` that the Gram matrix gives only roughly; with
`d = <R,g>_b / w_b`, exactly `c_b = a + d` and `r_b^2 = ||R||^2 - d^2 w_b`, where d is no more than the error of `a`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tvgrad.errors import NotFinite
from tvgrad.streaming.blocks import Block, BlockReader
from tvgrad.streaming.rows import PRODUCT, TILE, MatrixPlan, RowSpan, spans_of

Matrix: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

PIECES = TILE // PRODUCT  # products in a unit
TINY_SQUARE = 1e-24  # under this, a float32 sum of squares may have lost terms that underflowed
WIDE_PIECES = 4  # products in float64 that are taken at a time
FEW_PAIRS = 6  # up to so many pairs of rows, their signs are counted quicker than multiplied
BATCH = 8  # units of residual vectors formed at a time, of one vector or of several


@dataclass
class Sums:
    """Sums over some coordinates, which merge with the sums over other coordinates."""

    products: Matrix  # of each pair of rows
    weights: Matrix  # <g,g> of each projection
    coefficients: Matrix
    squares: Matrix  # squared residuals
    equal: Matrix  # coordinates with equal signs, of each pair
    nonzero: Matrix  # coordinates where neither vector is zero

    @classmethod
    def zero(cls, pairs: int, projections: int, signs: int) -> Sums:
        """Sums over no coordinates.

        Args:
            pairs: number of pairs of rows.
            projections: number of projections.
            signs: number of pairs whose signs are compared.

        Returns:
            New arrays of zeros.
        """
        return cls(np.zeros(pairs), *np.zeros((3, projections)), *np.zeros((2, signs)))

    def add(self, other: Sums) -> None:
        """Merge the sums over other coordinates; the module's docstring says why this is right.

        Args:
            other: sums of the same pairs.
        """
        self.products += other.products
        self.equal += other.equal
        self.nonzero += other.nonzero
        if self.weights.size:
            total = self.weights + other.weights
            share = np.divide(other.weights, total, out=np.zeros_like(total), where=total > 0)
            apart = other.coefficients - self.coefficients
            self.squares += other.squares + (apart * np.sqrt(share * self.weights)) ** 2
            self.coefficients += apart * share
            self.weights = total

    def agreement(self, pair: int) -> float:
        """Share of equal signs among the coordinates where neither vector is zero.

        Args:
            pair: index of the pair.

        Returns:
            A number in [0, 1], or NaN where there are no such coordinates.
        """
        return float(self.equal[pair] / self.nonzero[pair]) if self.nonzero[pair] else math.nan


class BlockWorker:
    """One thread's buffers, and the work on one block."""

    def __init__(self, plan: MatrixPlan) -> None:
        """Allocate the buffers.

        Args:
            plan: what is read and computed.
        """
        self._plan = plan
        self._matrix = _staggered(plan.height, plan.capacity, plan.dtype)
        self._reader = BlockReader(plan.files, [self._matrix[place] for place in plan.place])
        self._differences = spans_of(plan.sources[plan.plain :])
        self._all_rows = spans_of(plan.sources)
        self._diagonal = [plan.pair_of[row, row] for row in range(plan.count)]
        # Projections on the same vector share its row.
        onto: dict[int, list[int]] = {}
        for place, (_, target) in enumerate(plan.projections):
            onto.setdefault(plan.row_of[target], []).append(place)
        self._batches = [
            (row, pairs[first : first + BATCH]) for row, pairs in onto.items() for first in range(0, len(pairs), BATCH)
        ]
        self._products = np.empty((len(plan.pairs), plan.capacity // PRODUCT), _NUMPY[plan.dtype])
        self._residual, self._target, self._subtrahend = torch.empty(3, BATCH * TILE, dtype=torch.float64)
        self._subtrahend_is: tuple[int, int, int] | None = None  # its row, and where in the block it starts and ends
        self._signed = sorted({plan.row_of[index] for pair in plan.signs for index in pair})
        slots = {row: slot for slot, row in enumerate(self._signed)}
        self._sign_pairs = [(slots[plan.row_of[left]], slots[plan.row_of[right]]) for left, right in plan.signs]
        few = len(self._sign_pairs) <= FEW_PAIRS
        self._sign = torch.empty(len(self._signed), 0 if few else TILE, dtype=plan.dtype)
        self._truth = np.empty((2 * len(self._signed) + 2, plan.capacity if few else 0), dtype=np.bool_)

    def run(self, block: Block) -> list[Sums]:
        """Read a block and sum over its units.

        Args:
            block: one of the plan's blocks.

        Returns:
            The sums over the coordinates of each unit, in their order.

        Raises:
            TvgradError: a value is infinite or NaN.
            DamagedRun: a file ends before the block does.
        """  # ruff: ignore[docstring-extraneous-exception] - raised by the methods it calls
        self._reader.fill(block)
        self._subtrahend_is = None
        plan = self._plan
        units = [
            Sums.zero(len(plan.pairs), len(plan.projections), len(plan.signs)) for _ in range(-(-block.length // TILE))
        ]
        if not units:
            return []
        for unit, products in zip(units, self._gram(block), strict=True):
            unit.products = products
        if plan.projections:
            self._residuals(block.length, units)
        if plan.signs:
            self._signs(block.length, units[0])  # counts are exact, wherever they are added
        return units

    def _gram(self, block: Block) -> Matrix:
        """The products of each unit: units x pairs."""
        plan, length = self._plan, block.length
        for span in self._differences:
            minus = 0 if span.minus is None else span.minus
            subtrahend = self._matrix[minus : minus + span.length] if span.step else self._matrix[minus]
            target = self._matrix[plan.plain + span.first : plan.plain + span.first + span.length, :length]
            torch.sub(self._matrix[span.file : span.file + span.length, :length], subtrahend[..., :length], out=target)
        pieces = -(-length // PRODUCT)
        self._matrix[:, length : pieces * PRODUCT] = 0
        # Whole units: behind the last piece there is nothing to add.
        found = np.zeros((len(plan.pairs), -(-pieces // PIECES) * PIECES))
        if plan.dtype == torch.float32 and block.group in plan.small:
            for first in range(0, pieces, WIDE_PIECES):
                stop = min(first + WIDE_PIECES, pieces)
                found[:, first:stop] = self._exact_products(first, stop)
        else:
            rows = self._matrix[: plan.count, : pieces * PRODUCT].view(plan.count, pieces, PRODUCT).numpy()
            with np.errstate(over="ignore", invalid="ignore"):  # what left the range is looked for
                found[:, :pieces] = self._multiply(rows, self._products[:, :pieces])
            if plan.dtype == torch.float32:
                self._mend(found[:, :pieces], rows)
        parts = found.reshape(len(plan.pairs), -1, PIECES)
        total = parts[:, :, 0].copy()
        for piece in range(1, PIECES):
            total += parts[:, :, piece]
        if not bool(np.isfinite(total[self._diagonal]).all()):
            self._refuse(block)
        return np.ascontiguousarray(total.T)

    def _multiply(self, rows: Numbers, out: Numbers) -> Numbers:
        """Dot products of pieces, pair by pair: one vector's with those of neighbours that lie side by side."""
        for row, first, stop, place in self._plan.calls:
            np.matmul(
                rows[first:stop, :, None, :],
                rows[row, :, :, None],
                out=out[place : place + stop - first, :, None, None],
            )
        return out

    def _mend(self, found: Matrix, rows: Numbers) -> None:
        """Replace products with rows whose squares left the range of float32 (those of a piece of zeros did not)."""
        squares = found[self._diagonal]
        beyond = ~np.isfinite(squares)
        for row, piece in np.argwhere(squares < TINY_SQUARE):
            beyond[row, piece] = bool(rows[row, piece].any())
        left, right = np.asarray(self._plan.pairs).T
        for piece in np.flatnonzero(beyond.any(axis=0)):
            concerned = beyond[left, piece] | beyond[right, piece]
            found[concerned, piece] = self._exact_products(int(piece), int(piece) + 1)[concerned, 0]

    def _exact_products(self, first: int, stop: int) -> Matrix:
        """The products over some pieces of rows that are formed in float64."""
        count = self._plan.count
        wide = torch.empty(count, (stop - first) * PRODUCT, dtype=torch.float64)
        self._form(self._all_rows, first * PRODUCT, wide)
        out = np.empty((len(self._plan.pairs), stop - first))
        with np.errstate(over="ignore", invalid="ignore"):
            self._multiply(wide.view(count, stop - first, PRODUCT).numpy(), out)
        return out

    def _form(self, spans: list[RowSpan], first: int, out: torch.Tensor) -> None:
        """Write vectors' elements from `first` on to `out` in float64, differences as differences of stored values."""
        stop = first + out.shape[1]
        for span in spans:
            part = out[span.first : span.first + span.length]
            part.copy_(self._matrix[span.file : span.file + span.length, first:stop])
            if span.minus is None:
                continue
            if span.step:
                part.sub_(self._matrix[span.minus : span.minus + span.length, first:stop])
                continue
            subtrahend = self._subtrahend[: stop - first]
            if self._subtrahend_is != (span.minus, first, stop):
                subtrahend.copy_(self._matrix[span.minus, first:stop])
                self._subtrahend_is = (span.minus, first, stop)
            part.sub_(subtrahend)

    def _residuals(self, length: int, units: list[Sums]) -> None:
        """Fill in weight, coefficient and squared residual of each projection on each unit."""
        plan = self._plan
        for row, pairs in self._batches:
            sources = [plan.row_of[plan.projections[k][0]] for k in pairs]
            spans, onto = spans_of([plan.sources[source] for source in sources]), spans_of([plan.sources[row]])
            along_row = [plan.pair_of[min(row, source), max(row, source)] for source in sources]
            for first in range(0, len(units), BATCH // len(pairs)):
                some = units[first : first + BATCH // len(pairs)]
                shape, start = (len(pairs), len(some), TILE), first * TILE
                width = min(length - start, len(some) * TILE)
                target = self._target[: shape[1] * TILE].view(1, -1)
                residual = self._residual[: shape[0] * shape[1] * TILE].view(len(pairs), -1)
                target[:, width:], residual[:, width:] = 0, 0
                self._form(onto, start, target[:, :width])
                self._form(spans, start, residual[:, :width])
                weights = np.array([unit.products[plan.pair_of[row, row]] for unit in some])
                rough = _quotients(np.array([unit.products[along_row] for unit in some]).T, weights)
                residual.view(shape).addcmul_(torch.from_numpy(rough)[:, :, None], target.view(1, -1, TILE), value=-1)
                wide = residual.numpy().reshape(*shape[:2], PIECES, PRODUCT)
                squares = np.matmul(wide[..., None, :], wide[..., :, None]).reshape(*shape[:2], PIECES).sum(axis=-1)
                pieces = target.numpy().reshape(shape[1], PIECES, PRODUCT, 1)
                along = np.matmul(wide[..., None, :], pieces).reshape(*shape[:2], PIECES).sum(axis=-1)
                shift = _quotients(along, weights)
                coefficients, rest = rough + shift, np.maximum(squares - shift * along, 0)
                for place, unit in enumerate(some):
                    unit.weights[pairs] = weights[place]
                    unit.coefficients[pairs] = coefficients[:, place]
                    unit.squares[pairs] = rest[:, place]

    def _signs(self, length: int, result: Sums) -> None:
        """Count coordinates where neither vector of a pair is zero, and those among them where the signs agree."""
        if len(self._sign_pairs) <= FEW_PAIRS:
            self._count_signs(length, result)
            return
        for first in range(0, length, TILE):
            self._multiply_signs(first, min(first + TILE, length), result)

    def _count_signs(self, length: int, result: Sums) -> None:
        """Count pair by pair in rows of truth values, a byte a coordinate: so short that a block needs no tiles."""
        truth, signed = self._truth[:, :length], len(self._signed)
        above, other = truth[:signed], truth[signed : 2 * signed]  # above zero; other than zero
        both, apart = truth[-2], truth[-1]
        for slot, row in enumerate(self._signed):
            values = self._matrix[row, :length].numpy()
            np.greater(values, 0, out=above[slot])
            np.not_equal(values, 0, out=other[slot])
        for pair, (left, right) in enumerate(self._sign_pairs):
            np.logical_and(other[left], other[right], out=both)
            np.not_equal(above[left], above[right], out=apart)
            np.logical_and(apart, both, out=apart)
            nonzero = np.count_nonzero(both)
            result.nonzero[pair] = nonzero
            result.equal[pair] = nonzero - np.count_nonzero(apart)

    def _multiply_signs(self, first: int, stop: int, result: Sums) -> None:
        """Add the counts of a tile for all pairs at once, as products of matrices."""
        left, right = (list(side) for side in zip(*self._sign_pairs, strict=True))
        sign = self._sign[:, : stop - first]
        for slot, row in enumerate(self._signed):
            torch.sgn(self._matrix[row, first:stop], out=sign[slot])
        # Sums of no more than a tile of ones: float32 holds them exactly.
        balance = (sign @ sign.T)[left, right].double()  # agreements minus disagreements
        sign.abs_()
        nonzero = (sign @ sign.T)[left, right].double()
        result.nonzero += nonzero.numpy()
        result.equal += ((nonzero + balance) / 2).numpy()

    def _refuse(self, block: Block) -> None:
        found = self._reader.without_products(block)
        paths = tuple(str(file.path) for file, _ in found)
        for file, name in found:
            what = f"tensor {name!r} holds an infinity, a NaN or numbers that are too large to be squared"
            raise NotFinite(f"{file.path}: {what}, so it has no inner products: leave it out", paths)
        raise NotFinite(f"values in group {block.group!r} are too large for inner products in float64: scale them down")


def _quotients(above: Matrix, below: Matrix) -> Matrix:
    """Divide, with zeros where the divisor is zero."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def _staggered(count: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows whose distance is no power of two, or else they would all compete for the same lines of the cache."""
    return torch.zeros(count, length + 272, dtype=dtype)[:, :length]
