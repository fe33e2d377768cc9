"""Principal components and cosines from a Gram matrix, against the vectors themselves."""

import numpy as np
import pytest

from tvgrad.report.geometry import epoch_cosines, trajectories
from tvgrad.streaming.gram import GramResult
from tvgrad.streaming.vector_key import VectorKey


def made(seed=0, epochs=4, size=50):
    random = np.random.default_rng(seed)
    labels, vectors = [], []
    for run in ("a:b", "c"):  # a colon in a name must not confuse the labels
        walk = np.cumsum(random.normal(size=(epochs, size)), axis=0)
        for epoch in range(1, epochs + 1):
            labels += [VectorKey(run, "task_vector", epoch), VectorKey(run, "gradient", epoch - 1)]
            vectors += [walk[epoch - 1], random.normal(size=size)]
    vectors = np.array(vectors)
    return GramResult(tuple(labels), vectors @ vectors.T, {}, {}, {}), dict(zip(labels, vectors, strict=True))


def test_trajectories_are_the_principal_components():
    gram, vectors = made()
    table = trajectories(gram)
    points = np.array([
        np.zeros(50) if epoch == 0 else vectors[VectorKey(run, "task_vector", epoch)]
        for run, epoch in zip(table["run"], table["epoch"], strict=True)
    ])
    centred = points - points.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    expected = points @ axes[:2].T
    for column, axis in (("x", 0), ("y", 1)):
        sign = np.sign(expected[:, axis] @ table[column])
        np.testing.assert_allclose(table[column], sign * expected[:, axis], atol=1e-10)
    np.testing.assert_allclose(table["share_x"].iloc[0], values[0] ** 2 / np.sum(values**2), rtol=1e-10)
    assert list(table["epoch"]) == [*range(5), *range(5)]


def test_distances_in_a_plane_are_kept():
    random = np.random.default_rng(1)
    plane = np.linalg.qr(random.normal(size=(30, 2)))[0].T
    vectors = random.normal(size=(6, 2)) @ plane
    labels = tuple(VectorKey("r", "task_vector", epoch) for epoch in range(1, 7))
    table = trajectories(GramResult(labels, vectors @ vectors.T, {}, {}, {}))
    drawn = table[["x", "y"]].to_numpy()
    points = np.vstack([np.zeros(30), vectors])
    for i in range(7):
        for j in range(7):
            assert np.linalg.norm(drawn[i] - drawn[j]) == pytest.approx(np.linalg.norm(points[i] - points[j]), abs=1e-9)


def test_too_few_points_make_an_empty_table():
    assert trajectories(GramResult((VectorKey("r", "task_vector", 1),), np.eye(1), {}, {}, {})).empty


def test_epoch_cosines():
    gram, vectors = made(2)
    table = epoch_cosines(gram)
    row = table[
        (table["run"] == "a:b") & (table["kind"] == "gradient") & (table["epoch_a"] == 0) & (table["epoch_b"] == 3)
    ]
    left, right = (vectors[VectorKey("a:b", "gradient", epoch)] for epoch in (0, 3))
    assert row["cosine"].item() == pytest.approx(left @ right / np.linalg.norm(left) / np.linalg.norm(right), abs=1e-12)
