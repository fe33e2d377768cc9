"""Sums over blocks of parameters: inner products, residuals of projections, and agreement in sign.

Residuals. For `v` and `g` cut into blocks `b`, with `w_b = <g,g>_b`, `c_b = <v,g>_b / w_b` and
`r_b = ||v - c_b g||_b`, two blocks merge (Chan's update) into

    w = w_1 + w_2,   c = (w_1 c_1 + w_2 c_2) / w,   r^2 = r_1^2 + r_2^2 + (c_1 - c_2)^2 w_1 w_2 / w.

Proof: `v - c_b g` is orthogonal to `g` on block b, so `||v - c g||_b^2 = r_b^2 + (c_b - c)^2 w_b` for every c. The sum
over both blocks is smallest at the weighted mean c of the c_b, where `sum w_b (c_b - c)^2 = (c_1 - c_2)^2 w_1 w_2 / w`.
That minimum is the squared residual on the union, all its terms are non-negative, and so nothing cancels; the same
update takes blocks to groups and groups to the whole model. A block with `w_b = 0` adds `r_b^2 = ||v||_b^2` and leaves
c alone. Inside a block, `R = v - a g` is formed in float64 with an `a` that the Gram matrix gives only roughly; with
`d = <R,g>_b / w_b`, exactly `c_b = a + d` and `r_b^2 = ||R||^2 - d^2 w_b`, where d is no more than the error of `a`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tvgrad.errors import TvgradError
from tvgrad.streaming.blocks import Block, BlockReader
from tvgrad.streaming.rows import TILE, MatrixPlan, RowSpan, spans_of

Matrix: TypeAlias = npt.NDArray[np.float64]

PRODUCT = 1024  # elements in one float32 product; 16,384 are 8 % faster and 20 times less precise
TINY_SQUARE = 1e-24  # under this, a float32 sum of squares may have lost terms that underflowed
STRIP, WIDE_STRIP = 3, 16  # rows of the Gram matrix computed together, for fewer than 16 rows and for more
FEW_PAIRS = 6  # up to so many pairs of rows, their signs are counted quicker than multiplied
BATCH = 8  # residual vectors formed at a time


@dataclass
class BlockSums:
    """Sums over some coordinates, which merge with the sums over other coordinates."""

    gram: Matrix
    weights: Matrix  # <g,g> of each projection
    coefficients: Matrix
    squares: Matrix  # squared residuals
    equal: Matrix  # coordinates with equal signs, of each pair
    nonzero: Matrix  # coordinates where neither vector is zero

    @classmethod
    def zero(cls, plan: MatrixPlan) -> BlockSums:
        """Sums over no coordinates.

        Args:
            plan: says how many rows and pairs there are.

        Returns:
            New arrays of zeros.
        """
        weights, coefficients, squares = np.zeros((3, len(plan.projections)))
        equal, nonzero = np.zeros((2, len(plan.signs)))
        return cls(np.zeros((plan.count, plan.count)), weights, coefficients, squares, equal, nonzero)

    def add(self, other: BlockSums) -> None:
        """Merge the sums over other coordinates; the module's docstring says why this is right.

        Args:
            other: sums of the same plan.
        """
        self.gram += other.gram
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
        # Projections on the same vector share its row.
        onto: dict[int, list[int]] = {}
        for place, (_, target) in enumerate(plan.projections):
            onto.setdefault(plan.row_of[target], []).append(place)
        self._batches = [
            (row, pairs[first : first + BATCH]) for row, pairs in onto.items() for first in range(0, len(pairs), BATCH)
        ]
        width = min(TILE, plan.capacity)
        self._residual = _staggered(min(BATCH, len(plan.projections)), width, torch.float64)
        self._target = torch.empty(1, width, dtype=torch.float64)
        self._subtrahend = torch.empty(width, dtype=torch.float64)
        self._subtrahend_is: tuple[int, int] | None = None  # its row, and where in the block it starts
        self._signed = sorted({plan.row_of[index] for pair in plan.signs for index in pair})
        slots = {row: slot for slot, row in enumerate(self._signed)}
        self._sign_pairs = [(slots[plan.row_of[left]], slots[plan.row_of[right]]) for left, right in plan.signs]
        few = len(self._sign_pairs) <= FEW_PAIRS
        self._sign = torch.empty(len(self._signed), 0 if few else width, dtype=plan.dtype)
        self._truth = np.empty((2 * len(self._signed) + 2, plan.capacity if few else 0), dtype=np.bool_)

    def run(self, block: Block) -> BlockSums:
        """Read a block and sum over it.

        Args:
            block: one of the plan's blocks.

        Returns:
            The sums over its coordinates.

        Raises:
            TvgradError: a value is infinite or NaN.
            DamagedRun: a file ends before the block does.
        """  # ruff: ignore[docstring-extraneous-exception] - raised by the methods it calls
        self._reader.fill(block)
        self._subtrahend_is = None
        result = BlockSums.zero(self._plan)
        result.gram = self._gram(block)
        if self._plan.projections:
            self._residuals(block.length, result)
        if self._plan.signs:
            self._signs(block.length, result)
        return result

    def _gram(self, block: Block) -> Matrix:
        plan, length = self._plan, block.length
        for span in self._differences:
            minus = 0 if span.minus is None else span.minus
            subtrahend = self._matrix[minus : minus + span.length] if span.step else self._matrix[minus]
            target = self._matrix[plan.plain + span.first : plan.plain + span.first + span.length, :length]
            torch.sub(self._matrix[span.file : span.file + span.length, :length], subtrahend[..., :length], out=target)
        narrow = plan.dtype == torch.float32
        total = None if narrow and block.group in plan.small else self._products(length)
        if total is None or (narrow and self._out_of_range(length, total.diagonal())):
            total = self._exact_products(length)
        if not bool(torch.isfinite(total.diagonal()).all()):
            self._refuse(block)
        return np.asarray((total.triu() + total.triu(1).T).numpy())

    def _products(self, length: int) -> torch.Tensor:
        """Upper triangle of the products, piece by piece in strips: half the work, and quicker kernels."""
        count = self._plan.count
        width = min(PRODUCT, length)
        pieces = -(-length // width)
        self._matrix[:count, length : pieces * width] = 0
        rows = self._matrix[:count, : pieces * width].view(count, pieces, width).transpose(0, 1)
        total = torch.zeros(count, count, dtype=torch.float64)
        height = STRIP if count < WIDE_STRIP else WIDE_STRIP
        for top in range(0, count, height):
            strip = torch.bmm(rows[:, top : top + height], rows[:, top:].transpose(1, 2))
            total[top : top + height, top:] = strip.sum(0, dtype=torch.float64)
        return total

    def _out_of_range(self, length: int, squares: torch.Tensor) -> bool:
        """Whether squares left the range of float32 (those of a row of zeros did not)."""
        small = (squares < TINY_SQUARE).nonzero().flatten().tolist()
        return not bool(torch.isfinite(squares).all()) or any(bool(self._matrix[row, :length].any()) for row in small)

    def _exact_products(self, length: int) -> torch.Tensor:
        """The products of rows that are formed in float64."""
        count = self._plan.count
        total = torch.zeros(count, count, dtype=torch.float64)
        step = min(TILE // 4, length)
        wide = torch.empty(count, step, dtype=torch.float64)
        for first in range(0, length, step):
            rows = wide[:, : min(step, length - first)]
            self._form(self._all_rows, first, rows)
            total += rows @ rows.T
        return total

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
            if self._subtrahend_is != (span.minus, first):
                subtrahend.copy_(self._matrix[span.minus, first:stop])
                self._subtrahend_is = (span.minus, first)
            part.sub_(subtrahend)

    def _residuals(self, length: int, result: BlockSums) -> None:
        """Fill in weight, coefficient and squared residual of each projection on this block."""
        plan = self._plan
        for row, pairs in self._batches:
            sources = [plan.row_of[plan.projections[k][0]] for k in pairs]
            spans, onto = spans_of([plan.sources[source] for source in sources]), spans_of([plan.sources[row]])
            weight = float(result.gram[row, row])
            rough = torch.from_numpy(result.gram[sources, row] / weight if weight else np.zeros(len(pairs)))
            squares, along = torch.zeros(2, len(pairs), dtype=torch.float64)
            for first in range(0, length, TILE):
                width = min(TILE, length - first)
                target, residual = self._target[:, :width], self._residual[: len(pairs), :width]
                self._form(onto, first, target)
                self._form(spans, first, residual)
                residual.addcmul_(rough[:, None], target, value=-1)
                squares += torch.linalg.vector_norm(residual, dim=1).square_()
                along += residual @ target[0]
            shift = along / weight if weight else torch.zeros(len(pairs), dtype=torch.float64)
            result.weights[pairs] = weight
            result.coefficients[pairs] = (rough + shift).numpy()
            result.squares[pairs] = (squares - shift * along).clamp_min_(0).numpy()

    def _signs(self, length: int, result: BlockSums) -> None:
        """Count coordinates where neither vector of a pair is zero, and those among them where the signs agree."""
        if len(self._sign_pairs) <= FEW_PAIRS:
            self._count_signs(length, result)
            return
        for first in range(0, length, TILE):
            self._multiply_signs(first, min(first + TILE, length), result)

    def _count_signs(self, length: int, result: BlockSums) -> None:
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

    def _multiply_signs(self, first: int, stop: int, result: BlockSums) -> None:
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
        found = self._reader.not_finite(block)
        if found is not None:
            file, name = found
            raise TvgradError(f"{file.path}: tensor {name!r} holds an infinity or a NaN, so it has no inner products")
        raise TvgradError(
            f"values in group {block.group!r} are too large for inner products in float64: scale them down"
        )


def _staggered(count: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows whose distance is no power of two, or else they would all compete for the same lines of the cache."""
    return torch.zeros(count, length + 272, dtype=dtype)[:, :length]
