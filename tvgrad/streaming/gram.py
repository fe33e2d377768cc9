"""All inner products among the vectors of a run, in one streaming pass over their files.

Norms, cosines and angles are functions of the Gram matrix. Two things are not, because small numbers cannot be had
from large inner products: a difference of weights is formed from the weights themselves, block by block, before any
product is taken, and the residual of a projection is a vector in its own right.

Numbers. Where every file holds float32 or narrower values, a difference is one correctly rounded float32 subtraction,
products are taken in float32 over 1024 elements at a time and summed in float64: a single float32 product over a long
vector is wrong in the third digit. Groups too small for the rounding of these products to average out, and values whose
squares leave the range of float32, are multiplied in float64. One float64 tensor makes everything float64. Narrower
formats, float8 included, are converted block by block.

Residuals of projections are merged from those of blocks: `tvgrad.streaming.accumulate` says how, and why that is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.results import Plotted, Shown
from tvgrad.streaming.accumulate import Matrix, Sums
from tvgrad.streaming.block_pass import PassOver, cores, sums_of_groups
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.streaming.rows import MatrixPlan, Pair, Vector, plan_matrix
from tvgrad.streaming.vector_key import Reference, VectorKey
from tvgrad.vectors.parameters import ALL, cosine_from

if TYPE_CHECKING:
    import pandas as pd  # imported where a table is made


@dataclass(frozen=True, repr=False)
class GramResult(Plotted, Shown):
    """Inner products of vectors; `all` among the groups' names stands for the whole model.

    `matrix[i, j]` is the inner product of vectors i and j over the whole model and `groups[group][i, j]` over one
    group. `residuals[i, j][group]` is the norm of vector i minus its projection on vector j, with the group's own
    coefficient. `sign_agreement[i, j][group]` is the share of equal signs among the coordinates where neither vector
    is zero, NaN where there are none.

    Attributes:
        keys: what each row is: a run's vector, or the name of a file.
        matrix: n x n, over the whole model; NaN where a product was not wanted.
        groups: group -> n x n matrix.
        residuals: pair of rows -> group -> norm.
        sign_agreement: pair of rows -> group -> share.
    """

    keys: tuple[VectorKey | str, ...]
    matrix: Matrix
    groups: dict[str, Matrix]
    residuals: dict[Pair, dict[str, float]]
    sign_agreement: dict[Pair, dict[str, float]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The vectors' names as text, row by row."""
        return tuple(self._rows)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {str(key): row for row, key in enumerate(self.keys)}

    def to_frame(self, group: str = ALL) -> pd.DataFrame:
        """The matrix with the vectors' names on both sides.

        Args:
            group: a group, or `all`.

        Returns:
            n x n inner products.
        """
        import pandas as pd

        return pd.DataFrame(self.gram(group), index=list(self.labels), columns=list(self.labels))

    def _facts(self) -> dict[str, str]:
        return {"vectors": str(len(self.keys)), "groups": str(len(self.groups))}

    def index(self, vector: Reference) -> int:
        """Find a vector's row.

        Args:
            vector: its key or label, or the row itself.

        Returns:
            The row.

        Raises:
            TvgradError: there is no such label.
        """
        if isinstance(vector, int):
            return vector
        row = self._rows.get(str(vector))
        if row is None:
            raise TvgradError(f"there is no vector {str(vector)!r}: choose among {', '.join(self.labels)}")
        return row

    def gram(self, group: str = ALL) -> Matrix:
        """Inner products over one group.

        Args:
            group: a group, or `all`.

        Returns:
            The n x n matrix.

        Raises:
            TvgradError: there is no such group.
        """
        if group == ALL:
            return self.matrix
        if group not in self.groups:
            raise TvgradError(f"there is no group {group!r}: choose among {', '.join([ALL, *self.groups])}")
        return self.groups[group]

    def norm(self, vector: Reference, group: str = ALL) -> float:
        """Euclidean norm of a vector.

        Args:
            vector: its row, key or label.
            group: a group, or `all`.

        Returns:
            The norm, zero for a zero vector.
        """
        row = self.index(vector)
        return math.sqrt(self.gram(group)[row, row])

    def cosine(self, left: Reference, right: Reference, group: str = ALL) -> float:
        """Cosine of the angle between two vectors.

        Args:
            left: row, key or label.
            right: row, key or label.
            group: a group, or `all`.

        Returns:
            A number in [-1, 1], or NaN where one of the vectors is zero or not finite.
        """
        length = self.norm(left, group) * self.norm(right, group)
        product = float(self.gram(group)[self.index(left), self.index(right)])
        return cosine_from(product, length)


def gram_of(
    vectors: Sequence[Vector],
    groups: Mapping[str, str],
    *,
    projections: Sequence[tuple[Reference, Reference]] = (),
    signs: Sequence[tuple[Reference, Reference]] = (),
    names: Iterable[str] | None = None,
    pairs: Sequence[tuple[Reference, Reference]] | None = None,
    kept: KeptProducts | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    over: PassOver = sums_of_groups,
) -> GramResult:
    """Compute inner products of vectors that lie in files of the same model, reading each file once.

    Memory does not depend on the number of parameters; nor, but for the n x n matrices themselves, on the number of
    vectors up to 192, beyond which each takes another 64 kB a thread. Results depend neither on the number of threads
    nor on which other products are taken beside them, to the last bit.

    Args:
        vectors: the vectors, with different labels.
        groups: tensor name -> group; more names than there are tensors do no harm.
        projections: pairs (i, j): the norm of vector i minus its projection on vector j is wanted. A vector is named
            by its row, its key or its label.
        signs: pairs (i, j) whose agreement in sign is wanted.
        names: the tensors that make up the vectors; by default all, which must then be the same in every file.
        pairs: pairs (i, j) whose inner products are wanted; the others are NaN, but for squares and what projections
            need. All by default, which takes time in proportion to the square of the number of vectors.
        kept: products of earlier passes; what it lacks is computed and added to it.
        progress: called now and then with the bytes done and the bytes in all.
        workers: number of threads; by default one a core, at most four.
        over: goes over the blocks: this process alone, or several (`tvgrad.streaming.shared_pass.SharedPass`).

    Returns:
        The Gram matrices, residuals and sign agreements, for each group and the whole model.

    Raises:
        TvgradError: the files do not fit together, a tensor has no group, or a value is infinite or NaN.
        DamagedRun: a file ends before its tensors do.
    """  # ruff: ignore[docstring-extraneous-exception] - DamagedRun is raised by TensorFile.read_into
    plan = plan_matrix(vectors, groups, projections=projections, signs=signs, names=names, pairs=pairs)
    compute = partial(over, workers=workers or cores(), progress=progress)
    sums = compute(plan) if kept is None else kept.complete(vectors, plan, compute)
    whole = Sums.zero(len(plan.pairs), len(plan.projections), len(plan.signs))
    for part in sums.values():
        whole.add(part)
    every = {**sums, ALL: whole}
    return GramResult(
        keys=tuple(vector.key for vector in vectors),
        matrix=_matrix(plan, whole),
        groups={group: _matrix(plan, part) for group, part in sums.items()},
        residuals={
            pair: {group: math.sqrt(part.squares[k]) for group, part in every.items()}
            for k, pair in enumerate(plan.projections)
        },
        sign_agreement={
            pair: {group: part.agreement(k) for group, part in every.items()} for k, pair in enumerate(plan.signs)
        },
    )


def _matrix(plan: MatrixPlan, sums: Sums) -> Matrix:
    """Products as a matrix with a row for each vector, NaN where none was wanted."""
    rows = np.full((plan.count, plan.count), np.nan)
    left, right = np.asarray(plan.pairs).T
    rows[left, right] = rows[right, left] = sums.products
    expanded: Matrix = rows[np.ix_(plan.row_of, plan.row_of)]
    return expanded
