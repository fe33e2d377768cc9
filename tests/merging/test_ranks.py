"""Magnitudes by rank, against sorting, and how many passes over a tensor they take."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from tvgrad.merging.magnitude_ranks import PIECE, STEP, magnitudes_of_ranks, smallest_kept
from tvgrad.merging.rank_search import FEW, PIECES, RankSearch, look, magnitude_of
from tvgrad.merging.stack import VectorStack

COUNT = 150_000
RANKS = ([1], [2, COUNT - 1], [COUNT // 5], [COUNT // 100, COUNT // 5], [COUNT, COUNT // 2])


def sampled(values: np.ndarray, lie: float) -> np.ndarray:
    """The values with a lie wherever the first sample looks."""
    told = values.copy()
    for piece in range(PIECES):
        start = (COUNT - PIECE) * piece // (PIECES - 1)
        told[start : start + PIECE] = lie
    return told


def entries(case: str) -> np.ndarray:
    numbers = np.random.default_rng(3)
    values = numbers.standard_normal(COUNT)
    if case == "of unlike rows":
        values *= np.repeat(np.exp(2 * numbers.standard_normal(COUNT // 500)), 500)
    elif case == "told wrong twice":
        values[::STEP] = 1e5
        values = sampled(values, 1e-9)
    made = {
        "alike": 1 + 1e-12 * values,
        "huge": values * 1e200,
        "subnormal": values * 1e-310,
        "on a grid": np.round(values, 1),
        "mostly zero": values * (numbers.random(COUNT) < 0.1),
        "one number": np.full(COUNT, -2.5),
        "zero": np.zeros(COUNT),
        "two numbers": np.where(numbers.random(COUNT) < 0.2, 1.0, -1e-300),
        "the largest float": np.full(COUNT, np.finfo(np.float64).max),
        "in order": np.sort(np.abs(values)),
        "sampled too large": sampled(values, 1e9),
        "sampled too small": sampled(values, 0.0),
    }
    return made.get(case, values)


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        ("any", 1),
        ("alike", 1),
        ("huge", 1),
        ("subnormal", 1),
        ("on a grid", 1),
        ("mostly zero", 1),
        ("one number", 2),
        ("zero", 2),
        ("two numbers", 3),
        ("the largest float", 2),
        ("in order", 2),
        ("of unlike rows", 2),
        ("sampled too large", 2),
        ("sampled too small", 2),
        ("told wrong twice", 66),
    ],
)
def test_ranks_are_those_of_sorting(case: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tvgrad.merging.magnitude_ranks")
    counted, one_pass = [], module._pass
    monkeypatch.setattr(module, "_pass", lambda *given: counted.append(1) or one_pass(*given))
    tasks = [entries(case), entries(case)[::-1].copy()]
    stack = VectorStack([{"w": torch.from_numpy(task)} for task in tasks])
    ordered = np.sort(np.abs(tasks[0]))[::-1]
    for ranks in RANKS:
        counted.clear()
        expected = tuple(ordered[rank - 1] if rank < COUNT else 0.0 for rank in ranks)
        assert magnitudes_of_ranks(stack, "w", ranks) == [expected] * 2
        assert len(counted) <= passes
    for density in (1e-6, 0.01, 0.2, 0.999, 1.0):
        count = max(1, int(density * COUNT))
        assert smallest_kept(stack.rows("w")[0], density) == (ordered[count - 1] if density < 1 else 0.0)


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 3 * FEW])
def test_every_rank_in_memory(count: int) -> None:
    values = np.abs(np.round(np.random.default_rng(0).standard_normal(count), 2))
    ordered = np.sort(values)[::-1]
    for rank in {1, 2, count // 3, count // 2, count - 1, count} - {0}:
        if rank <= count:
            assert magnitude_of(values.copy(), rank) == ordered[rank - 1]


def test_a_search_without_a_sample_halves_the_numbers_there_are() -> None:
    """Each pass sees single numbers alone: at most as many passes as a number has bits."""
    values = np.abs(np.random.default_rng(1).standard_normal(1000))
    for rank in (1, 500, 1000):
        search, passes = RankSearch(rank, values.size, most=0), 0
        while search.found is None:
            low, high = search.interval(np.empty((0, 0)))
            search.learn(low, high, [look(values[:400], low, high), look(values[400:], low, high)])
            passes += 1
        assert passes <= 64
        assert search.found == np.sort(values)[-rank]
