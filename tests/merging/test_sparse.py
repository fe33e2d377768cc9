"""Sparsifiers with either consensus, and methods that drop or shrink single entries, against loops in numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tvgrad import TvgradError, merging
from tvgrad.merging.random_entries import RandomEntries

SHAPE = (7, 9)


def drawn(tasks: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(tasks, *SHAPE))


def merged(name: str, rows: Any, **options: float) -> Any:
    return getattr(merging, name)([{"w": torch.from_numpy(row)} for row in rows], 1.0, **options)["w"].numpy()


def largest(row: Any, count: int) -> Any:
    mask = np.zeros(row.size)
    mask[np.argsort(-np.abs(row), axis=None)[:count]] = 1
    return mask.reshape(row.shape)


def trimmed(rows: Any) -> Any:
    return np.stack([row * largest(row, int(0.4 * row.size)) for row in rows])


def middle(rows: Any) -> Any:
    return np.stack([row * (largest(row, int(0.5 * row.size)) - largest(row, int(0.1 * row.size))) for row in rows])


def dropped(rows: Any) -> Any:
    entries = RandomEntries(0.3, 4)
    masks = [entries.kept(task, "w", 0, length=row.size).reshape(row.shape) for task, row in enumerate(rows)]
    return rows * np.stack(masks) / 0.3


def elected(rows: Any) -> Any:
    result = np.zeros(rows.shape[1:])
    for place in np.ndindex(*rows.shape[1:]):
        values = rows[(slice(None), *place)]
        agreeing = values[values * (1 if values.sum() >= 0 else -1) > 0]
        result[place] = agreeing.mean() if agreeing.size else 0
    return result


COMBINATIONS = [
    ("magnitude_prune", trimmed, False, {"density": 0.4}),
    ("ties", trimmed, True, {"density": 0.4}),
    ("breadcrumbs", middle, False, {"density": 0.5, "outliers": 0.1}),
    ("breadcrumbs_ties", middle, True, {"density": 0.5, "outliers": 0.1}),
    ("dare", dropped, False, {"density": 0.3, "seed": 4}),
    ("dare_ties", dropped, True, {"density": 0.3, "seed": 4}),
]


@pytest.mark.parametrize("tasks", [2, 5])
@pytest.mark.parametrize(("name", "sparsify", "election", "options"), COMBINATIONS)
def test_every_combination_is_its_two_halves(
    tasks: int, name: str, sparsify: Callable[[Any], Any], election: bool, options: dict[str, float]
) -> None:
    rows = drawn(tasks, seed=tasks)
    left = sparsify(rows)
    truth = elected(left) if election else left.sum(0)
    np.testing.assert_allclose(merged(name, rows, **options), truth, rtol=1e-12, atol=1e-14)


BITS = {
    ("ties", 3): ("a0008c3eb5534c7a", {}),
    ("ties", 12): ("9f2c8c8ce76a4869", {"density": 0.7}),
    ("dare", 3): ("b9546932fd86b85f", {}),
    ("dare", 5): ("50c4ce305c8934ae", {"density": 0.3, "seed": 7}),
    ("breadcrumbs", 2): ("1c3f39c30a4f8d5d", {}),
    ("breadcrumbs", 4): ("4ceea3e27f11c78f", {"density": 0.6, "outliers": 0.2}),
}
"""Of what these methods gave when each was written by itself."""


@pytest.mark.parametrize(("name", "tasks"), BITS)
def test_combinations_have_the_bits_of_methods_written_by_themselves(name: str, tasks: int) -> None:
    numbers = np.random.default_rng(tasks)
    vectors = [
        {
            "w": torch.from_numpy(numbers.standard_normal((7, 20_011)).round(2)),
            "b": torch.from_numpy(numbers.standard_normal(5)),
        }
        for _ in range(tasks)
    ]
    digest, options = BITS[name, tasks]
    found = getattr(merging, name)(vectors, 0.3, **options)
    assert hashlib.sha256(b"".join(part.numpy().tobytes() for part in found.values())).hexdigest()[:16] == digest


def test_dare_ties_over_blocks_keeps_what_dare_keeps() -> None:
    """Entries of +1 alone: the mean over those that were kept is 1 / density wherever any was."""
    ones = [{"w": torch.ones(150_001)}] * 3
    summed, mean = merging.dare(ones, density=0.3)["w"], merging.dare_ties(ones, density=0.3)["w"]
    assert torch.equal(mean, (summed > 0).double() / 0.3)
    assert 0 < float((summed == 0).double().mean()) < 1


@pytest.mark.parametrize("tasks", [1, 4])
def test_masked_mean_shrinks_where_signs_disagree(tasks: int) -> None:
    rows = drawn(tasks)
    rows[0, 0] = 0.0
    truth = np.zeros(SHAPE)
    for place in np.ndindex(*SHAPE):
        values = rows[(slice(None), *place)]
        agreement = abs(int((values > 0).sum()) - int((values < 0).sum())) / tasks
        truth[place] = values.mean() * (1 if agreement >= 0.6 else agreement)
    np.testing.assert_allclose(merged("masked_mean", rows, agreement=0.6), truth, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 1.0])
def test_the_trust_region_leaves_out_the_largest_conflict(share: float) -> None:
    rows = drawn(3)
    conflict = sum(abs(rows[i]) * abs(rows[j]) for i in range(3) for j in range(3) if i != j)
    left_out = largest(conflict, int(share * conflict.size))
    np.testing.assert_allclose(merged("trust_region", rows, share=share), rows.sum(0) * (1 - left_out), atol=1e-15)
    apart = np.stack([np.eye(3), np.fliplr(np.eye(3)) - np.diag([0, 1, 0])])  # no coordinate of both
    assert np.array_equal(merged("trust_region", apart, share=1.0), apart.sum(0))


def test_refusals_are_one_sentence() -> None:
    two = drawn(2)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: merged("dare_ties", two[:1]), "dare_ties merges at least 2 tasks"),
        (lambda: merged("breadcrumbs_ties", two, outliers=0.5), "outliers must be"),
        (lambda: merged("magnitude_prune", two, density=0), "density must be"),
        (lambda: merged("masked_mean", two, agreement=2), "agreement must be a finite number of at least 0 and at"),
        (lambda: merged("trust_region", two, share=-0.1), "share must be a finite number of at least 0"),
        (lambda: merged("trust_region", two[:1]), "trust_region merges at least 2 tasks"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError) as raised:
            run()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
