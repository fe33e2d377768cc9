r"""AWD: what all task vectors share is taken from each of them before they are added (arXiv 2411.18729).

The shared vector $\delta$ minimises the mean over pairs $i \ne j$ of $|\cos(\tau_i - \delta, \tau_j - \delta)|$ plus
0.1 $\|\delta\|$. With $\delta = \sum_t c_t \tau_t + p$, p orthogonal to all task vectors, and $q = \|p\|^2$,

    <tau_i - delta, tau_j - delta> = (e_i - c)' G (e_j - c) + q,

so that the objective is a function of T + 1 numbers and of the Gram matrix G alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from typing_extensions import override

from tvgrad.merging.method import Method, checked_number
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.merging.stack_gram import stack_gram
from tvgrad.merging.weighted import Weighted

Matrix = NDArray[np.float64]
PENALTY = 0.1
SMOOTH = (1e-1, 1e-2, 1e-4, 1e-6)
"""What rounds the corners of the absolute value and of the norm, one minimisation after another."""


@dataclass(frozen=True)
class Disentangled(PreparedMethod):
    r"""The sum of the $\tau_t - \delta$.

    $\delta$ stays in the span of the task vectors (q is 0), where the published gradient steps from 0 stay as well. A q
    above 0 would put a direction into the model that no task has; it lowers the objective only where task vectors
    have negative inner products. The objective is not convex: the least of minima from several starts is taken.
    """

    penalty: float = PENALTY

    name: ClassVar[str] = "disentangled"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalty", checked_number(self.penalty, "penalty", least=0))

    @override
    def prepared(self, stack: Stack) -> Method:
        shared = shared_coefficients(stack_gram(stack), self.penalty)
        return Weighted(tuple(float(1 - stack.tasks * one) for one in shared))


def entanglement(gram: Matrix, shared: Matrix, outside: float = 0.0, penalty: float = PENALTY) -> float:
    r"""Evaluate what AWD minimises.

    Args:
        gram: inner products of the task vectors, shape (T, T).
        shared: c, the shared vector's coefficients, shape (T,).
        outside: q, the square of the length of its part outside their span, at least 0.
        penalty: of its length.

    Returns:
        The mean absolute cosine of what remains (0 for a vector of which nothing does) plus penalty times the length.
    """
    cosines, _, reach = _parts(gram, shared, outside)
    return float(np.abs(cosines).sum()) / (len(gram) * (len(gram) - 1)) + penalty * reach


def shared_coefficients(gram: Matrix, penalty: float = PENALTY) -> Matrix:
    """Minimise AWD's objective over the span of the task vectors.

    Args:
        gram: inner products of the task vectors, shape (T, T).
        penalty: of the shared vector's length.

    Returns:
        The shared vector's coefficients, shape (T,).
    """
    tasks = len(gram)
    size = max(1.0, penalty * float(np.sqrt(gram.trace())))  # of slopes, which make the first step
    starts = [np.zeros(tasks), np.full(tasks, 0.5 / tasks), np.full(tasks, 1 / tasks)]
    found = [*starts]
    for start in starts:
        point = start
        for smooth in SMOOTH:
            point = minimize(
                lambda c, s=smooth: [part / size for part in _rounded(gram, c, penalty, s)],
                point,
                method="BFGS",
                jac=True,
            ).x
            found.append(point)
    values = [entanglement(gram, point, 0.0, penalty) for point in found]
    best = minimize(
        lambda c: entanglement(gram, c, 0.0, penalty) / size,
        found[int(np.argmin(values))],
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 200 * tasks, "adaptive": True},
    ).x
    return np.asarray(best, dtype=np.float64)


def _rounded(gram: Matrix, shared: Matrix, penalty: float, smooth: float) -> tuple[float, Matrix]:
    """The objective with its corners rounded, and its gradient."""
    tasks = len(gram)
    cosines, lengths, reach = _parts(gram, shared, 0.0)
    rounded = np.sqrt(cosines**2 + smooth**2)
    np.fill_diagonal(rounded, 0.0)
    weights = np.divide(cosines, rounded, out=np.zeros_like(cosines), where=rounded > 0) / (tasks * (tasks - 1))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    each = (weights * (cosines * inverse[:, None] ** 2 - np.outer(inverse, inverse))).sum(1)
    gradient = 2 * each @ ((np.eye(tasks) - shared) @ gram)
    scale = smooth * float(np.sqrt(gram.trace() / tasks)) + np.finfo(float).tiny
    length = float(np.hypot(reach, scale))
    value = float(rounded.sum()) / (tasks * (tasks - 1)) + penalty * length
    return value, gradient + penalty / length * (gram @ shared)


def _parts(gram: Matrix, shared: Matrix, outside: float) -> tuple[Matrix, Matrix, float]:
    """Cosines (0 on the diagonal) and lengths of what remains, and the length of what is shared."""
    left = np.eye(len(gram)) - shared
    products = left @ gram @ left.T + outside
    lengths = np.sqrt(np.clip(products.diagonal(), 0, None))
    sizes = np.outer(lengths, lengths)
    cosines = np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
    np.fill_diagonal(cosines, 0.0)
    return cosines, lengths, float(np.sqrt(max(0.0, float(shared @ gram @ shared) + outside)))
