"""Methods that decompose matrices, against their definitions in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tvgrad import TvgradError, merging

SHAPES = ((8, 12), (12, 8), (10, 10))


def drawn(shape: tuple[int, int], tasks: int = 3, rank: int | None = None) -> Any:
    numbers = np.random.default_rng(shape[0] + tasks)
    if rank is None:
        return numbers.normal(size=(tasks, *shape))
    return numbers.normal(size=(tasks, shape[0], rank)) @ numbers.normal(size=(tasks, rank, shape[1]))


def merged(name: str, rows: Any, **options: float) -> Any:
    vectors = [{"w": torch.from_numpy(row), "bias": torch.from_numpy(row[0].copy())} for row in rows]
    found = getattr(merging, name)(vectors, 1.0, **options)
    bias = rows[:, 0].sum(0) if name == "tsv_c" else rows[:, 0].mean(0)
    np.testing.assert_allclose(found["bias"].numpy(), bias, rtol=1e-13, atol=1e-15)
    return found["w"].numpy()


def polar(columns: Any) -> Any:
    """The nearest orthonormal columns by X (X'X)^(-1/2)."""
    values, axes = np.linalg.eigh(columns.T @ columns)
    return columns @ (axes / np.sqrt(values)) @ axes.T


def cts(rows: Any, common: float) -> Any:
    tasks, rank = len(rows), min(rows.shape[1:])
    own = round((rank - int(common * rank)) / tasks)
    shared = rank - own * tasks
    u, s, vt = np.linalg.svd(rows.sum(0))
    left, strength, right = [u[:, :shared]], [s[:shared]], [vt[:shared].T]
    for row in rows:
        outside = (np.eye(len(u)) - u[:, :shared] @ u[:, :shared].T) @ row
        tu, ts, tvt = np.linalg.svd(outside)
        left.append(tu[:, :own])
        strength.append(ts[:own])
        right.append(tvt[:own].T)
    return np.concatenate(strength).mean() * polar(np.hstack(left)) @ polar(np.hstack(right)).T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("common", [0.2, 0.6])
def test_isotropic_subspaces_are_their_definition(shape: tuple[int, int], common: float) -> None:
    rows = drawn(shape)
    np.testing.assert_allclose(merged("isotropic_subspaces", rows, common=common), cts(rows, common), atol=1e-10)


def test_isotropic_subspaces_without_own_directions_are_isotropic() -> None:
    rows = drawn((8, 12))
    assert np.array_equal(merged("isotropic_subspaces", rows, common=1.0), merged("isotropic", rows))


def test_isotropic_subspaces_of_low_rank_stay_in_the_tasks_span() -> None:
    rows = drawn((8, 12), tasks=2, rank=1)
    found = merged("isotropic_subspaces", rows, common=0.25)
    assert np.isfinite(found).all()
    span = np.linalg.svd(np.hstack(list(rows)))[0][:, :2]
    assert np.abs(found - span @ span.T @ found).max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_knots_is_ties_in_the_common_basis(shape: tuple[int, int]) -> None:
    rows = drawn(shape)
    u, s, vt = np.linalg.svd(np.hstack(list(rows)), full_matrices=False)
    parts = np.split(vt, len(rows), axis=1)
    count = int(0.3 * parts[0].size)
    kept = np.stack([part * (np.abs(part) >= np.sort(np.abs(part), axis=None)[-count]) for part in parts])
    sign = np.where(kept.sum(0) >= 0, 1, -1)
    agrees = kept * sign > 0
    ties = (kept * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
    np.testing.assert_allclose(merged("knots", rows, density=0.3), u * s @ ties, atol=1e-10)


def test_knots_of_one_matrix_twice_is_the_matrix() -> None:
    row = drawn((8, 12), tasks=1, rank=3)
    np.testing.assert_allclose(merged("knots", np.concatenate([row, row]), density=1.0), row[0], atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_c_loses_the_tail_of_each_task(shape: tuple[int, int]) -> None:
    rows = drawn(shape)
    total = 0.0
    for row in rows:
        values, axes = np.linalg.eigh(row.T @ row)  # the projection on the leading right vectors
        kept = axes[:, np.argsort(-values)[: int(0.4 * min(shape))]]
        total = total + row @ kept @ kept.T
    np.testing.assert_allclose(merged("tsv_c", rows, share=0.4), total, atol=1e-10)
    one = rows[:1]
    lost = np.linalg.norm(merged("tsv_c", one, share=0.5) - one[0]) ** 2
    tail = np.linalg.svd(one[0])[1][int(0.5 * min(shape)) :]
    assert lost == pytest.approx((tail**2).sum(), rel=1e-10)
    np.testing.assert_allclose(merged("tsv_c", drawn((2, 8))), drawn((2, 8)).sum(0))  # too small to be decomposed


@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_m_of_compressed_vectors(shape: tuple[int, int]) -> None:
    rows = drawn(shape)
    kept = int(0.25 * min(shape))
    parts = [np.linalg.svd(row, full_matrices=False) for row in rows]
    left, right = np.hstack([u[:, :kept] for u, _, _ in parts]), np.hstack([vt[:kept].T for _, _, vt in parts])
    values = np.concatenate([s[:kept] for _, s, _ in parts])
    np.testing.assert_allclose(merged("tsv_m", rows, share=0.25), polar(left) * values @ polar(right).T, atol=1e-10)
    assert np.array_equal(merged("tsv_m", rows, share=1 / 3), merged("tsv_m", rows))


def test_refusals_are_one_sentence() -> None:
    rows = drawn((8, 12))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: merged("tsv_c", rows, share=0.1), "share of 0.1 of the 8 singular triplets of 'w' is none: give at"),
        (lambda: merged("tsv_m", rows, share=0.1), "share of 0.1 of the 8 singular triplets of 'w' is none"),
        (lambda: merged("tsv_m", rows, share=0.5), "more singular vectors than a matrix has: give at most 0.3333"),
        (lambda: merged("tsv_c", rows, share=2.0), "share must be a number above 0 and at most 1"),
        (lambda: merged("isotropic_subspaces", rows, common=0.0), "common must be a number above 0"),
        (lambda: merged("knots", rows[:1]), "knots merges at least 2 tasks"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError) as raised:
            run()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
