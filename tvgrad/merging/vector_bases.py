r"""Task vector bases: fewer vectors in the place of the task vectors, each a mixture of them (arXiv 2502.01015).

With V the task vectors as columns, the M bases are V softmax(A), each a weighted mean of task vectors, and
V softmax(A) W stands for V. With $G = V'V$ and $E = \mathrm{softmax}(A) W - I$ the error is
$\mathrm{tr}(E' G E) / T^2$; no M vectors at all do better than $\sum_{i > M} \lambda_i(G) / T^2$.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_whole
from tvgrad.merging.prepared_method import PreparedMethod
from tvgrad.merging.stack import Stack
from tvgrad.merging.stack_gram import stack_gram
from tvgrad.merging.weighted import Weighted

Matrix = NDArray[np.float64]
STARTS, STEPS = 4, 200
MOST_SUBSETS = 256
SHARP = 6.0
"""Of a start, how far a task stands out in its own basis before the softmax."""


@dataclass(frozen=True)
class VectorBases(PreparedMethod):
    """The sum of the task vectors as `bases` vectors hold them; by default half as many as tasks, rounded up."""

    bases: int | None = None

    name: ClassVar[str] = "vector_bases"

    def __post_init__(self) -> None:
        if self.bases is not None:
            checked_whole(self.bases, "bases", least=1)

    @override
    def check_tasks(self, tasks: int) -> None:
        super().check_tasks(tasks)
        if self.bases is not None and self.bases > tasks:
            raise TvgradError(f"{self.bases} bases for {tasks} tasks are no compression: give at most {tasks}")

    @override
    def prepared(self, stack: Stack) -> Method:
        count = -(-stack.tasks // 2) if self.bases is None else int(self.bases)
        mixtures, decoder = task_vector_bases(stack_gram(stack), count)
        return Weighted(tuple(float(one) for one in (mixtures @ decoder).sum(1)))


def task_vector_bases(gram: Matrix, bases: int) -> tuple[Matrix, Matrix]:
    """Find bases by L-BFGS on A, with the best W for it, from the task vectors that are the best bases themselves.

    Args:
        gram: inner products of the task vectors, shape (T, T).
        bases: M, at most T.

    Returns:
        softmax(A), shape (T, M), whose columns are at least 0 and sum to 1; and W, shape (M, T).
    """
    tasks = len(gram)
    if bases == tasks:
        return np.eye(tasks), np.eye(tasks)
    given = gram / max(float(gram.trace()), np.finfo(float).tiny)
    found = []
    for chosen in _subsets(given, bases)[:STARTS]:
        plain = np.eye(tasks)[:, chosen]
        found.append((_error_of(given, plain), plain))
        start = (SHARP * plain).ravel()
        made = minimize(_error, start, (given, bases), method="L-BFGS-B", jac=True, options={"maxiter": STEPS})
        found.append((float(made.fun), softmax(made.x.reshape(tasks, bases), axis=0)))
    best = min(found, key=lambda one: one[0])[1]
    return best, _decoder(given, best)


def _subsets(gram: Matrix, bases: int) -> list[list[int]]:
    """Task vectors that would be bases as they are, the best first; of many subsets, some at random."""
    tasks = len(gram)
    if math.comb(tasks, bases) <= MOST_SUBSETS:
        every = [list(one) for one in itertools.combinations(range(tasks), bases)]
    else:
        generator = np.random.default_rng(0)
        every = [generator.permutation(tasks)[:bases].tolist() for _ in range(MOST_SUBSETS)]
    return sorted(every, key=lambda chosen: _error_of(gram, np.eye(tasks)[:, chosen]))


def _decoder(gram: Matrix, mixtures: Matrix) -> Matrix:
    """The W with the least error."""
    inner = np.linalg.pinv(mixtures.T @ gram @ mixtures, hermitian=True)
    return np.asarray(inner @ mixtures.T @ gram, dtype=np.float64)


def _error(logits: Matrix, gram: Matrix, bases: int) -> tuple[float, Matrix]:
    """The error with the best W for A, and its gradient by A: W is best, so that it does not add to the gradient."""
    mixtures = softmax(logits.reshape(len(gram), bases), axis=0)
    decoder = _decoder(gram, mixtures)
    left = mixtures @ decoder - np.eye(len(gram))
    by_mixtures = 2 * gram @ left @ decoder.T
    by_logits = mixtures * (by_mixtures - (mixtures * by_mixtures).sum(0))
    return float((left * (gram @ left)).sum()), by_logits.ravel()


def _error_of(gram: Matrix, mixtures: Matrix) -> float:
    left = mixtures @ _decoder(gram, mixtures) - np.eye(len(gram))
    return float((left * (gram @ left)).sum())
