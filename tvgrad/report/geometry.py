"""Tables for pictures: the plane in which trajectories move, and cosines between epochs, all from one Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from tvgrad.streaming.gram import GramResult
from tvgrad.streaming.vector_key import VectorKey

TRAJECTORIES = ("run", "epoch", "x", "y", "share_x", "share_y")
EPOCH_COSINES = ("run", "kind", "epoch_a", "epoch_b", "cosine")


def trajectories(gram: GramResult) -> pd.DataFrame:
    """Project the weights of all runs, epoch by epoch, on their two principal components.

    The points are the task vectors of all runs, and the pretrained weights once for each run. With G their Gram
    matrix (a zero row for the pretrained weights) and J the centring matrix, the coordinates are the leading
    eigenvectors of `J G J`, scaled by the roots of their eigenvalues: principal components without the vectors
    themselves. The origin of the picture is the pretrained weights.

    Args:
        gram: inner products of the vectors of runs.

    Returns:
        Columns run, epoch, x, y (in units of the weights) and the shares of the variance that x and y carry; empty
        where there are fewer than two task vectors.
    """
    points = [(key.run, key.epoch, row) for key, row in _run_rows(gram) if key.kind == "task_vector"]
    if len(points) < 2:
        return pd.DataFrame(columns=list(TRAJECTORIES))
    rows = [row for _, _, row in points]
    starts = list(dict.fromkeys(run for run, _, _ in points))
    size = len(points) + len(starts)
    inner = np.zeros((size, size))
    inner[: len(points), : len(points)] = gram.matrix[np.ix_(rows, rows)]
    centred = inner - inner.mean(axis=0) - inner.mean(axis=1)[:, None] + inner.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values = np.clip(values[::-1], 0, None)
    vectors = vectors[:, ::-1]
    # An eigenvector has no sign of its own: most of the weights move to the right and up.
    coordinates = vectors[:, :2] * np.sqrt(values[:2])
    coordinates -= coordinates[len(points)]
    coordinates *= np.where(coordinates.sum(axis=0) < 0, -1.0, 1.0)
    total = float(values.sum())
    shares = values[:2] / total if total else np.full(2, math.nan)
    names = [(run, epoch) for run, epoch, _ in points] + [(run, 0) for run in starts]
    table = pd.DataFrame(
        [
            {"run": run, "epoch": epoch, "x": x, "y": y, "share_x": shares[0], "share_y": shares[1]}
            for (run, epoch), (x, y) in zip(names, coordinates, strict=True)
        ],
        columns=list(TRAJECTORIES),
    )
    order = {run: number for number, run in enumerate(starts)}
    return table.sort_values(["run", "epoch"], key=lambda c: c.map(order) if c.name == "run" else c, ignore_index=True)


def epoch_cosines(gram: GramResult) -> pd.DataFrame:
    """Cosines between vectors of one run and one kind at different epochs.

    Args:
        gram: inner products of the vectors of runs.

    Returns:
        Columns run, kind (gradient or task_vector), epoch_a, epoch_b and cosine.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for key, row in _run_rows(gram):
        if key.kind in {"gradient", "task_vector"}:
            found.setdefault((key.run, key.kind), []).append((key.epoch, row))
    rows = [
        {"run": run, "kind": kind, "epoch_a": a, "epoch_b": b, "cosine": gram.cosine(left, right)}
        for (run, kind), members in found.items()
        for a, left in members
        for b, right in members
    ]
    return pd.DataFrame(rows, columns=list(EPOCH_COSINES))


def _run_rows(gram: GramResult) -> Iterator[tuple[VectorKey, int]]:
    """Key and row of every vector of a run."""
    for row, key in enumerate(gram.keys):
        if isinstance(key, VectorKey):
            yield key, row
