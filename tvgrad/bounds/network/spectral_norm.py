"""Spectral norms with a certificate: an upper bound that stays one after every rounding, and an estimate beside it.

Power iteration and Lanczos approach a norm from below, and even a singular value decomposition is right only up to a
rounding error of either sign, so neither is an upper bound. Here an estimate only proposes a number. The proof that the
norm is not above it is a Cholesky factorisation (S. M. Rump, Verification of positive definiteness, BIT 46, 2006) or
the Frobenius norm of a repeatedly squared Gram matrix (B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, Efficient
bound of Lipschitz constant for convolutional layers by Gram iteration, ICML 2023), both with their rounding.

Rounding model: u = 2^-53, gamma_j = j u / (1 - j u) (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
2002, sections 3.1 and 10.1); sums of products in any order and blocking, fused or not, but no
Strassen-like products, which no BLAS uses unasked. Matrices whose largest entry is not between 2^-11 and 2^10 are
scaled by a power of two to one in [1/2, 1), so nothing overflows, and what underflows is below m n 2^-1022, which one
unit added to the index of a gamma that multiplies ||W||_F^2 >= 2^-22 covers many times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up
from tvgrad.results import Result

_NEGLIGIBLE = 1e-150
_FEW, _CLEAN = 3, 2.0**-37  # so few squarings of entries that are no smaller neither over- nor underflow
_NEAR = 10  # binary exponents of largest entries that need no scaling
# At most this small a side, all eigenvalues of the Gram matrix cost less than a run of ARPACK.
_DENSE = 192
# Rows of a Gram matrix computed in one product; blocks above the diagonal are not computed at all.
_GRAM_BLOCKS = 4


class BadMatrix(TvgradError):
    """The matrix has no spectral norm: it is empty, not finite, or not a matrix of real numbers."""


@dataclass(frozen=True)
class SpectralNorm(Result):
    """A certified norm; unpacks as `bound, estimate`.

    Attributes:
        bound: at least ||W||_2, whatever was rounded.
        estimate: the norm as computed, which may lie on either side of the truth.
        method: "cholesky", "gram", "vector", "zero" or "frobenius".

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import spectral_norm
        >>> norm = spectral_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> norm.bound >= 4.0 and abs(norm.estimate - 4.0) < 1e-6
        True
    """

    bound: float
    estimate: float
    method: str

    def __iter__(self) -> Iterator[float]:
        return iter((self.bound, self.estimate))


def spectral_norm(matrix: torch.Tensor, tightness: float = 1e-6) -> SpectralNorm:
    r"""Upper bound and estimate of a matrix's largest singular value.

    Args:
        matrix: (m, n) of any real floating dtype; widened to float64, which is exact.
        tightness: the relative excess of the bound over the norm that is asked for. Rounding sets a floor, of about
            2 u times the smaller side times $\lVert W \rVert_F^2 / \lVert W \rVert_2^2$: 1e-10 for a Gaussian 768x3072.

    Returns:
        The norm; its bound is within `tightness` of the truth where that is above the floor.

    Raises:
        BadMatrix: the matrix is empty, not finite, or not a matrix of real numbers.

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import spectral_norm
        >>> bound, estimate = spectral_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> round(estimate, 6), 4.0 <= bound <= 4.0 * (1 + 1e-6)
        (4.0, True)
    """
    if matrix.dim() != 2:
        raise BadMatrix(f"A spectral norm needs a matrix, not a tensor of shape {tuple(matrix.shape)}.")
    if not tightness > 0:
        raise BadMatrix(f"The tightness of a spectral norm must be positive, not {tightness}.")
    wide, exponents = _scaled(matrix[None])
    scaled = wide[0]
    if not bool(scaled.any()):
        return SpectralNorm(0.0, 0.0, "zero")
    if scaled.shape[0] > scaled.shape[1]:
        scaled = scaled.mT
    if scaled.shape[0] == 1:
        bound, estimate, method = _vector_norm(scaled)
    elif _squarings_for(scaled.shape[0], tightness) <= 1:
        bound = float(_gram_bound(scaled[None], _squarings_for(scaled.shape[0], tightness))[0])
        estimate, method = bound, "gram"
    else:
        bound, estimate, method = _cholesky_bound(scaled, tightness)
    bound, estimate = _rescaled(np.array([bound, estimate]), exponents).tolist()
    return SpectralNorm(bound, estimate, method)


def spectral_norms(matrices: torch.Tensor, squarings: int = 8) -> torch.Tensor:
    """Upper bounds on the spectral norms of many matrices at once, by their squared Gram matrices.

    Args:
        matrices: (..., m, n) of a real floating dtype.
        squarings: j; the bound is at most rank^(1/2^(j+2)) times the norm: 1.003 at rank 16 and 1.006 at rank 400 for
            8, where all singular values are equal, and far closer where they are not.

    Returns:
        Float64 upper bounds (...).

    Raises:
        BadMatrix: a matrix is empty, not finite, or not of real numbers.
    """
    if matrices.dim() < 2:
        raise BadMatrix(f"Spectral norms need matrices, not a tensor of shape {tuple(matrices.shape)}.")
    batch = matrices.shape[:-2]
    if 0 in batch:
        return torch.zeros(batch, dtype=torch.float64)
    scaled, exponents = _scaled(matrices.reshape(math.prod(batch), *matrices.shape[-2:]))
    if scaled.shape[1] > scaled.shape[2]:
        scaled = scaled.mT
    zero = ~scaled.flatten(1).any(dim=1)
    bounds = torch.where(zero, 0.0, _gram_bound(scaled, max(squarings, 0)))
    return torch.from_numpy(_rescaled(bounds.numpy(), exponents)).reshape(batch)


def _scaled(matrices: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Float64 matrices (b, m, n) with largest entries in [2^-11, 2^10), and the exponents taken out."""
    if not matrices.is_floating_point():
        raise BadMatrix(f"A spectral norm needs real floating-point numbers, not {matrices.dtype}.")
    if 0 in matrices.shape[1:]:
        raise BadMatrix(f"A matrix of shape {tuple(matrices.shape[1:])} has no entries, so no spectral norm.")
    wide = matrices.detach().to(device="cpu", dtype=torch.float64)
    peaks = torch.linalg.vector_norm(wide, ord=math.inf, dim=(1, 2))
    if not bool(torch.isfinite(peaks).all()):
        raise BadMatrix("The matrix contains NaN or infinity, so it has no spectral norm.")
    exponents = np.frexp(peaks.numpy())[1].astype(np.int64)
    exponents = np.where(np.abs(exponents) <= _NEAR, 0, exponents)
    if np.any(exponents):
        # in two factors: 2^-1074 needs a factor that is no float64 itself
        half = -(exponents // 2) if np.abs(exponents).max() > 1000 else 0 * exponents
        for part in (half, -exponents - half):
            if np.any(part):
                wide = wide * torch.from_numpy(np.ldexp(1.0, part))[:, None, None]
    return wide, exponents


def _rescaled(bounds: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The bounds times their powers of two; upwards where the result is subnormal."""
    with np.errstate(over="ignore", under="ignore"):
        results = np.ldexp(bounds, exponents)
        lost = np.ldexp(results, -exponents) < bounds
        return np.asarray(np.where(lost, np.nextafter(results, np.inf), results))


def _vector_norm(row: torch.Tensor) -> tuple[float, float, str]:
    """The norm of one row: its n squares and their sum are off by at most gamma_(n+1), relatively."""
    square = float(row[0] @ row[0])
    estimate = math.sqrt(square)
    return round_up(estimate, gamma(row.shape[1] + 8)), estimate, "vector"


def _gram(scaled: torch.Tensor) -> torch.Tensor:
    """W W' in blocks of rows; entries above the diagonal blocks are copied from below."""
    rows = scaled.shape[0]
    if rows < 2 * _DENSE:
        return scaled @ scaled.mT
    gram = torch.empty(rows, rows, dtype=torch.float64)
    edges = [rows * i // _GRAM_BLOCKS for i in range(_GRAM_BLOCKS + 1)]
    for start, end in itertools.pairwise(edges):
        block = scaled[start:end] @ scaled[:end].mT
        gram[start:end, :end] = block
        gram[:start, start:end] = block[:, :start].mT
    return gram


def _cholesky_bound(scaled: torch.Tensor, tightness: float) -> tuple[float, float, str]:
    """Certify an estimate t of ||W||^2 by a Cholesky factorisation of A = fl(t - W W').

    Let B = fl(W W') and R the computed factor. A + E_1 = R'R is positive semidefinite, and componentwise
    |E_1| <= gamma |R'| |R|, so ||E_1|| <= gamma ||R||_F^2 <= gamma / (1 - gamma) tr A, with gamma = gamma_(m+1) in the
    textbook algorithm; gamma_(2(m+4)) here, for libraries that multiply by reciprocals of the diagonal.
    B = W W' + E_2 with |E_2| <= gamma_n |W| |W|', so ||E_2|| <= gamma_n ||W||_F^2; the subtraction rounds the diagonal
    only, by at most u (t + max B_ii). Only the lower triangle of A is read, so its symmetric completion is meant, for
    which each of these bounds holds too. Hence

        ||W||^2 <= t + gamma / (1 - gamma) tr A + gamma_(n+1) ||W||_F^2 + 2 u (t + max B_ii).

    Args:
        scaled: W, (m, n) with m <= n.
        tightness: the relative excess asked for.

    Returns:
        Bound, estimate and the method's name.
    """
    rows, columns = scaled.shape
    gram = _gram(scaled)
    diagonal = gram.diagonal()
    trace = round_up(float(diagonal.sum()), 4 * (rows + columns + 8) * UNIT_ROUNDOFF)
    largest = float(diagonal.max())
    dense = rows <= _DENSE
    top = 0.0 if dense else _estimated(gram, 0.2 * tightness)
    if not top > 0:
        dense, top = True, float(torch.linalg.eigvalsh(gram)[-1])
    excess = max(1.2 * tightness, 16 * rows * UNIT_ROUNDOFF)
    for _ in range(64):
        candidate = top * (1 + excess)
        shifted = -gram
        shifted.diagonal().add_(candidate)
        _, failure = torch.linalg.cholesky_ex(shifted)
        if int(failure) == 0:
            error = gamma(2 * (rows + 4))
            shift = round_up(float(shifted.diagonal().sum()), 2 * (rows + 4) * UNIT_ROUNDOFF)
            square = candidate + error / (1 - error) * shift + gamma(columns + 1) * trace
            square += 2 * UNIT_ROUNDOFF * (candidate + largest)
            return round_up(math.sqrt(square), 16 * UNIT_ROUNDOFF), math.sqrt(top), "cholesky"
        if dense:
            excess *= 4
        else:
            dense, top = True, float(torch.linalg.eigvalsh(gram)[-1])
    # not reached with finite numbers; the Frobenius norm is a bound whatever happened
    return round_up(math.sqrt(trace), 4 * UNIT_ROUNDOFF), math.sqrt(top), "frobenius"


def _estimated(gram: torch.Tensor, accuracy: float) -> float:
    """Estimate the largest eigenvalue by ARPACK, from below; 0 where it did not converge.

    Args:
        gram: symmetric, (m, m).
        accuracy: relative. It is a sign, not a proof: the factorisation decides.

    Returns:
        The estimate.
    """
    # fixed, so that a bound is the same number every time
    start = torch.randn(len(gram), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    try:
        values = eigsh(gram.numpy(), k=1, which="LA", v0=start.numpy(), tol=accuracy, return_eigenvectors=False)
    except ArpackNoConvergence:
        return 0.0
    return float(values[0])


def _squarings_for(rows: int, tightness: float) -> int:
    """How many squarings guarantee the tightness: the least j with rows^(1/2^(j+2)) <= 1 + tightness."""
    return max(0, math.ceil(math.log2(math.log(rows) / math.log1p(tightness)) - 2)) if rows > 1 else 0


def _without_negligible(matrices: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.hardshrink(matrices, _NEGLIGIBLE)


def _sizes(matrices: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2))
    return norms


def _gram_bound(scaled: torch.Tensor, squarings: int) -> torch.Tensor:
    """Bound norms by Frobenius norms of squared Gram matrices, (b, m, n) -> (b,).

    A_0 = fl(W W'), then with f_i = fl ||A_i||_F and S = fl(A_i / f_i) the next is A_(i+1) = fl(S S'). With
    g = 1 + 2 gamma_(m^2+4) for the rounding of f_i: ||A_i / f_i|| <= ||S|| + u g, ||S||^2 = ||S S'||, and
    ||A_(i+1) - S S'|| <= gamma_(m+2) ||S||_F^2 <= gamma_(m+2) g^2. So from x_j = ||A_j||_F (1 + gamma_(m^2+4)) back,

        x_i = f_i (1 + 2u) (sqrt(x_(i+1) + gamma_(m+3) g^2) + u g) (1 + 4u),
        ||W|| <= sqrt(x_0 + gamma_(n+2) ||W||_F^2 (1 + 2 gamma_(mn+4))) (1 + 4u).

    Using S S' and not S S, no symmetry of the computed matrices is needed. Entries below 1e-150 of W and S are set to
    zero, because their products are subnormal numbers, with which a processor is many times slower: that moves a norm
    by at most 1e-150 sqrt(m n), which the 8 u in the place of 4 u exceeds by far.

    Args:
        scaled: the matrices W, (b, m, n) with m <= n.
        squarings: j.

    Returns:
        The bounds (b,); of a zero matrix, a tiny number.
    """
    _, rows, columns = scaled.shape
    growth = 1 + 2 * gamma(rows * rows + 4)
    if squarings <= _FEW and float(scaled.abs().amin()) > _CLEAN:
        return _few_squarings(scaled, squarings)
    scaled = _without_negligible(scaled)
    current = scaled @ scaled.mT
    norms = []
    for _ in range(squarings):
        size = _sizes(current)
        size = torch.where(size > 0, size, 1.0)
        norms.append(size)
        ratio = _without_negligible(current / size[:, None, None])
        current = ratio @ ratio.mT
    bound = round_up(_sizes(current), 2 * gamma(rows * rows + 4))
    for size in reversed(norms):
        root = (bound + gamma(rows + 3) * growth**2).sqrt() + UNIT_ROUNDOFF * growth
        bound = round_up(size * root, 16 * UNIT_ROUNDOFF)
    square = round_up(_sizes(scaled) ** 2, 4 * gamma(rows * columns + 8))
    total = bound + round_up(gamma(columns + 2) * square, 4 * UNIT_ROUNDOFF)
    return round_up(total.sqrt(), 8 * UNIT_ROUNDOFF)


def _few_squarings(scaled: torch.Tensor, squarings: int) -> torch.Tensor:
    """The same without division by norms on the way, for entries between 2^-37 and 2^10.

    With B = fl(A A'), ||A||^2 <= ||B|| + gamma_m ||A||_F^2 and ||A||_F^2 <= m ||A||^2, so that
    ||A||^2 <= ||B|| / (1 - m gamma_m). Three squarings of A_0 stay below 2^300, and what underflows is less than
    2^-1000 of a norm.

    Args:
        scaled: the matrices W, (b, m, n) with m <= n.
        squarings: j, at most 3.

    Returns:
        The bounds (b,).
    """
    _, rows, columns = scaled.shape
    current = scaled @ scaled.mT
    for _ in range(squarings):
        current = current @ current.mT
    bound = round_up(_sizes(current), 2 * gamma(rows * rows + 4))
    for _ in range(squarings):
        bound = round_up((bound / (1 - rows * gamma(rows + 2))).sqrt(), 8 * UNIT_ROUNDOFF)
    total = bound / (1 - rows * gamma(columns + 2))
    return round_up(total.sqrt(), 8 * UNIT_ROUNDOFF)
