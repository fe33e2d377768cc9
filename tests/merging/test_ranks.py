"""Magnitudes by rank, against sorting, and how many passes over a tensor they take."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tvgrad.files.tensors import TensorFile
from tvgrad.merging.magnitude_ranks import PIECE, STEP, magnitudes_of_ranks, smallest_kept
from tvgrad.merging.rank_search import FEW, PIECES, RankSearch, look, look_narrow, magnitude_of, to_float32
from tvgrad.merging.sign_election import elect_signs
from tvgrad.merging.stack import FileStack, VectorStack

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
    monkeypatch.setattr(module, "_pass", lambda *given, narrow: counted.append(1) or one_pass(*given, narrow=narrow))
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


def stored(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after, of which float32 does not hold all differences, or many are the same."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(2, COUNT, generator=generator, dtype=torch.float64)
    base, other = drawn[0] * 0.05, drawn[1] * 2e-3
    tiny = torch.randint(1, 200, (COUNT,), generator=generator) * 2.0**-40
    changed = torch.rand(COUNT, generator=generator) < 0.1
    before, after = {
        "near": (base, base + other),
        "mostly unchanged": (base, torch.where(changed, base + other, base)),
        "rounded in float32": (torch.ones(COUNT), tiny),
        "some rounded": (torch.where(changed, 1.0, base), torch.where(changed, tiny, base + other)),
        "beyond float32": (base * 1e40 * changed, -base * 1e40 * changed),
        "unlike": (base, 1e6 * other),
    }[case]
    return before.clamp(-3e38, 3e38), after.clamp(-3e38, 3e38)


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        ("near", 2),
        ("mostly unchanged", 3),
        ("rounded in float32", 5),
        ("some rounded", 3),
        ("beyond float32", 3),
        ("unlike", 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ranks_of_files_are_those_of_float64_differences(
    case: str, passes: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("tvgrad.merging.magnitude_ranks")
    narrow, one_pass = [], module._pass
    monkeypatch.setattr(
        module, "_pass", lambda *given, **options: narrow.append(options["narrow"]) or one_pass(*given, **options)
    )
    before, after = (tensor.to(dtype) for tensor in stored(case))
    models = {"base": before, "after": after, "backwards": after.flip(0)}
    for name, tensor in models.items():
        save_file({"w": tensor.contiguous()}, tmp_path / f"{name}.safetensors")
    files = [TensorFile(tmp_path / f"{name}.safetensors") for name in models]
    ordered = [
        np.sort(np.abs(models[name].double().numpy() - before.double().numpy()))[::-1]
        for name in ("after", "backwards")
    ]
    stack = FileStack(files[0], files[1:])
    for ranks in RANKS:
        narrow.clear()
        expected = [tuple(values[rank - 1] if rank < COUNT else 0.0 for rank in ranks) for values in ordered]
        assert magnitudes_of_ranks(stack, "w", ranks) == expected
        assert narrow[0]
        assert len(narrow) <= passes
    for file in files:
        file.close()


def test_more_rows_than_a_byte_counts_elect_their_sign() -> None:
    rows = torch.ones(300, 5, dtype=torch.float64)
    rows[:, 1], rows[:140, 2], rows[:, 3] = -2, -1, 0
    elect_signs(rows)
    assert rows[0].tolist() == [1, -2, 1, 0, 1]


@pytest.mark.parametrize("most", [100, 5])
def test_a_number_of_float32_may_be_many_of_float64(most: int) -> None:
    """What is one number after rounding is told apart: at once where it may be in memory, else in later passes."""
    blocks = [np.ones(10), 1 + 1e-12 * np.arange(-6.0, 6.0)]
    ordered = np.sort(np.concatenate(blocks))[::-1]
    for rank in range(1, ordered.size):
        search, passes = RankSearch(rank, ordered.size, most), 1
        seen = [look_narrow(block.astype(np.float32), 1.0, 1.0, block.__getitem__) for block in blocks]
        search.learn(1.0, 1.0, seen, narrow=True)
        while search.found is None:
            low, high = search.interval(np.empty((0, 0)))
            search.learn(low, high, [look(block, low, high) for block in blocks])
            passes += 1
            assert passes < 66
        assert search.found == ordered[rank - 1]


def test_intervals_are_rounded_outward() -> None:
    for low, high in ((1 - 1e-12, 1 + 1e-12), (0.0, np.inf), (1e-320, 1e-310), (1e300, 1e301), (0.1, 0.1), (0.5, 0.5)):
        first, last = to_float32(low, high)
        assert first <= low <= high <= last
        assert (float(np.float32(first)), float(np.float32(last))) == (first, last)
        with np.errstate(over="ignore"):
            assert float(np.nextafter(np.float32(first), np.float32(np.inf))) > low
