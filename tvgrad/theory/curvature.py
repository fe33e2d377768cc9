"""The ends of the Hessian's spectrum, estimated by Lanczos on Hessian-vector products.

These are estimates and never bounds: Lanczos approaches the largest eigenvalue from below and the smallest from above.
The residual `||H v - lambda v||` says that *some* eigenvalue lies within it of lambda, not that none lies beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from tvgrad.problem.objective import Objective
from tvgrad.results import Result

DENSE_UP_TO = 3
"""Below this many parameters Lanczos has no room: the Hessian is formed column by column."""
SEED = 0
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curvature(Result):
    """Estimated ends of the Hessian's spectrum at one point.

    Attributes:
        largest: estimate of lambda_max(H); at most the true value, up to rounding.
        smallest: estimate of lambda_min(H), at least the true value; NaN where it was not asked for.
        residual: `||H v - lambda v||` of the unit vector found for `largest`.
        smallest_residual: the same for `smallest`.
        converged: whether Lanczos met its tolerance at every end that was asked for.
        hvps: Hessian-vector products it took.
        kind: `estimate`.
    """

    largest: float
    smallest: float
    residual: float
    smallest_residual: float
    converged: bool
    hvps: int
    kind: str = "estimate"


def estimate_curvature(
    objective: Objective,
    at: Mapping[str, torch.Tensor] | None = None,
    smallest: bool = False,
    tolerance: float = 1e-3,
    most_hvps: int = 200,
) -> Curvature:
    """Estimate the largest (and smallest) eigenvalue of the full-batch Hessian.

    Args:
        objective: model, loss and data.
        at: weights; by default those at construction.
        smallest: look for the smallest eigenvalue too.
        tolerance: relative accuracy of an eigenvalue at which Lanczos stops.
        most_hvps: roughly the most products for each end; the best estimate so far is taken when they are spent.

    Returns:
        The estimates, with residuals.

    Raises:
        TvgradError: the Hessian is not finite there.
    """
    operator = objective.hessian_operator(at)
    before = objective.evaluations.hvps
    size = operator.shape[0]
    if size <= DENSE_UP_TO:
        values = np.linalg.eigvalsh(np.stack([operator.matvec(row) for row in np.eye(size)]))
        low = float(values[0]) if smallest else math.nan
        residuals = (0.0, 0.0 if smallest else math.nan)
        return Curvature(float(values[-1]), low, *residuals, True, objective.evaluations.hvps - before)
    high, high_residual, converged = _end(operator, "LA", tolerance, most_hvps)
    low = low_residual = math.nan
    if smallest:
        low, low_residual, also = _end(operator, "SA", tolerance, most_hvps)
        converged = converged and also
    return Curvature(high, low, high_residual, low_residual, converged, objective.evaluations.hvps - before)


def _end(operator: LinearOperator, which: str, tolerance: float, most: int) -> tuple[float, float, bool]:
    """One end of the spectrum: eigenvalue, residual, and whether ARPACK met its tolerance."""
    size = operator.shape[0]
    start = np.random.default_rng(SEED).standard_normal(size)
    basis = min(size, 20)
    # ARPACK counts restarts, each of which fills the basis again.
    restarts = max(1, most // basis)
    vector: Vector | None = None
    try:
        _, vectors = eigsh(operator, k=1, which=which, v0=start, ncv=basis, maxiter=restarts, tol=tolerance)
        vector, converged = vectors[:, 0], True
    except (ArpackNoConvergence, ArpackError):
        converged = False
    if vector is None:
        vector = _krylov(operator.matvec, start, which, min(size, basis))
    # The Rayleigh quotient is an eigenvalue estimate of its own, from inside the spectrum.
    image = operator.matvec(vector)
    value = float(vector @ image)
    return value, float(np.linalg.norm(image - value * vector)), converged


def _krylov(product: Callable[[Vector], Vector], start: Vector, which: str, steps: int) -> Vector:
    """The best unit vector of a small Krylov space, with full orthogonalisation."""
    basis = [start / np.linalg.norm(start)]
    images = [product(basis[0])]
    while len(basis) < steps:
        new = images[-1].copy()
        for _ in range(2):
            for one in basis:
                new -= (one @ new) * one
        length = float(np.linalg.norm(new))
        if length <= 1e-12 * float(np.linalg.norm(images[-1])):
            break
        basis.append(new / length)
        images.append(product(basis[-1]))
    columns = np.stack(basis, axis=1)
    small = columns.T @ np.stack(images, axis=1)
    _, rotations = np.linalg.eigh((small + small.T) / 2)
    best = columns @ rotations[:, -1 if which == "LA" else 0]
    return np.asarray(best / np.linalg.norm(best))
