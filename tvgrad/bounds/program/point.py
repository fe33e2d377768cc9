"""What is known of a program's mean loss at one place: the passes over all its samples, summed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norm
from tvgrad.bounds.program.balls import Ball, add, divide, number
from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.passes import ChunkPass
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.numerics.floats import round_up

Told = Callable[[int], None]


@dataclass(frozen=True)
class PointBounds:
    """Gradient and Hessian of a mean loss.

    Attributes:
        loss: as computed.
        gradient: as computed, flat.
        error: a bound of its Euclidean distance to the exact gradient; infinity where none is found.
        hessian_norm: a bound of the norm of the Hessian anywhere in the ball.
        loudest: the operation that is to blame for a large bound, in words.
    """

    loss: float
    gradient: DoubleDouble
    error: float
    hessian_norm: float
    loudest: str


def measure(
    graph: Graph,
    parameters: list[Ball],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    radius: float,
    chunk_size: int,
    cuts: tuple[int, ...] = (),
    told: Told | None = None,
) -> PointBounds:
    """Go over all samples.

    Args:
        graph: the program.
        parameters: in the places of the graph, each with a first axis of length 1.
        inputs: all samples.
        targets: all targets.
        radius: of the ball round the trainable parameters.
        chunk_size: samples at once.
        cuts: places between which Jacobians are computed.
        told: called with the number of samples after each chunk.

    Returns:
        The bounds of the mean over the samples.
    """
    size = len(graph.trainable)
    gradient: list[Ball] = []
    errors = torch.zeros(size, dtype=torch.float64)
    hessian = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    loss, loudest = 0.0, ("", 0.0)
    with torch.no_grad():
        for start in range(0, len(inputs), chunk_size):
            chunk = slice(start, start + chunk_size)
            one = ChunkPass(graph, parameters, inputs[chunk], targets[chunk], radius, cuts)
            found = one.backward()
            # the radii of a sum's balls are those of its last roundings: kept, and added up with the errors below
            gradient = (
                found.gradient if not gradient else [add(a, b) for a, b in zip(gradient, found.gradient, strict=True)]
            )
            errors += torch.tensor(found.errors, dtype=torch.float64)
            hessian += found.hessian
            loss += float(found.loss.hi.sum())
            loudest = max(loudest, one.loudest(), key=lambda pair: pair[1])
            if told is not None:
                told(one.samples)
    samples = number(float(len(inputs)), gradient[0])
    means = [divide(ball, samples) for ball in gradient]
    rounding = torch.stack([ball.err.norm() for ball in means])
    error = round_up(float((rounding + errors / len(inputs)).norm()))
    error = math.inf if math.isnan(error) else error
    flat = torch.cat([ball.hi.flatten() for ball in means])
    low = torch.cat([torch.zeros_like(ball.hi).flatten() if ball.lo is None else ball.lo.flatten() for ball in means])
    hessian_norm = _norm(hessian / len(inputs))
    return PointBounds(loss / len(inputs), DoubleDouble(flat, low), error, hessian_norm, loudest[0])


def _norm(hessian: torch.Tensor) -> float:
    """The least bound: the norm of the matrix of block bounds, or that of all parameters together."""
    together = float(hessian[-1, -1]) if bool(torch.isfinite(hessian[-1, -1])) else math.inf
    if not bool(torch.isfinite(hessian[:-1, :-1]).all()):
        return together
    return min(together, round_up(spectral_norm(hessian[:-1, :-1]).bound))
