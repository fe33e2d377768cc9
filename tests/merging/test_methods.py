"""Each method against its definition, written out naively in numpy, and against peft where that is installed."""

from __future__ import annotations

import importlib.util
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tvgrad import merging
from tvgrad.errors import TvgradError
from tvgrad.merging.combination import IN_CACHE
from tvgrad.merging.dare import Dare
from tvgrad.merging.median import median_network

SHAPES = {"matrix": (6, 8), "tall": (9, 4), "bias": (5,), "kernel": (2, 3, 2, 2), "scalar": ()}


def vectors(tasks, seed=0):
    numbers = np.random.default_rng(seed)
    return [{name: numbers.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(tasks)]


def as_tensors(arrays):
    return [{name: torch.as_tensor(array) for name, array in vector.items()} for vector in arrays]


def kept_by_size(array, share):
    """A mask of the largest entries, by sorting."""
    count = max(1, int(share * array.size))
    mask = np.zeros(array.size, dtype=bool)
    mask[np.argsort(-np.abs(array), axis=None, kind="stable")[:count]] = True
    return mask.reshape(array.shape)


def naive_ties(arrays, density=0.2):
    trimmed = [array * kept_by_size(array, density) for array in arrays]
    result = np.zeros(arrays[0].shape)
    for place in np.ndindex(*arrays[0].shape):
        values = [array[place] for array in trimmed]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [value for value in values if value * sign > 0]
        result[place] = sum(agreeing) / len(agreeing) if agreeing else 0
    return result


def naive_breadcrumbs(arrays, density=0.2, outliers=0.01):
    result = np.zeros(arrays[0].shape)
    for array in arrays:
        order = np.argsort(-np.abs(array), axis=None)
        kept = order[int(outliers * array.size) : max(1, int(density * array.size))]
        result.flat[kept] += array.flat[kept]
    return result


def naive_tsv_m(arrays):
    if arrays[0].ndim != 2:
        return sum(arrays) / len(arrays)
    rank = min(arrays[0].shape) // len(arrays)
    parts = [np.linalg.svd(array, full_matrices=False) for array in arrays]
    left = np.hstack([u[:, :rank] for u, _, _ in parts])
    values = np.concatenate([s[:rank] for _, s, _ in parts])
    right = np.hstack([vt[:rank].T for _, _, vt in parts])

    def orthonormal(columns):  # the polar factor, by another road than Procrustes: X (X'X)^(-1/2)
        eigenvalues, axes = np.linalg.eigh(columns.T @ columns)
        return columns @ (axes / np.sqrt(eigenvalues)) @ axes.T

    return orthonormal(left) @ np.diag(values) @ orthonormal(right).T


DEFINITIONS = {
    "task_arithmetic": sum,
    "mean": lambda arrays: sum(arrays) / len(arrays),
    "negation": lambda arrays: -sum(arrays),
    "analogy": lambda arrays: arrays[2] + (arrays[1] - arrays[0]),
    "median": lambda arrays: np.sort(arrays, axis=0)[(len(arrays) - 1) // 2],
    "ties": naive_ties,
    "breadcrumbs": naive_breadcrumbs,
    "tsv_m": naive_tsv_m,
}


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_method_is_its_definition(name, tasks):
    if name == "analogy" and tasks != 3:
        pytest.skip("an analogy has three tasks")
    arrays = vectors(tasks)
    merged = getattr(merging, name)(as_tensors(arrays), alpha=0.3)
    for tensor, values in merged.items():
        truth = 0.3 * DEFINITIONS[name]([array[tensor] for array in arrays])
        np.testing.assert_allclose(values.numpy(), truth, rtol=1e-12, atol=1e-13)
        assert values.dtype == torch.float64
        assert values.shape == SHAPES[tensor]


def test_the_merged_vector_is_added_in_float64_and_rounded_once():
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    arrays = vectors(3)
    merged = merging.task_arithmetic(as_tensors(arrays), alpha=0.7, base={**base, "head": torch.zeros(3)})
    for name, tensor in merged.items():
        exact = base[name].double() + 0.7 * (
            torch.as_tensor(arrays[0][name]) + torch.as_tensor(arrays[1][name]) + torch.as_tensor(arrays[2][name])
        )
        assert torch.equal(tensor, exact.float())
    assert "head" not in merged


@pytest.mark.parametrize("count", range(1, 13))
def test_the_median_network_finds_the_middle_of_every_order_of_zeros_and_ones(count):
    # A network of comparisons that works for all zeros and ones works for all numbers.
    for values in itertools.product((0, 1), repeat=count):
        lines = list(values)
        for low, high in median_network(count):
            lines[low], lines[high] = min(lines[low], lines[high]), max(lines[low], lines[high])
        assert lines[(count - 1) // 2] == sorted(values)[(count - 1) // 2]


def test_a_large_tensor_is_cut_into_blocks_without_a_trace():
    numbers = torch.Generator().manual_seed(0)
    big = [{"w": torch.randn(3, 50_001, generator=numbers, dtype=torch.float64)} for _ in range(4)]
    rows = torch.stack([vector["w"] for vector in big])
    assert torch.equal(merging.median(big)["w"], rows.median(dim=0).values)
    torch.testing.assert_close(merging.mean(big)["w"], rows.mean(dim=0), rtol=1e-12, atol=1e-15)
    whole = np.stack([Dare().sparsifier().kept(task, "w", 0, length=rows[0].numel()) for task in range(4)]).reshape(
        rows.shape
    )
    torch.testing.assert_close(merging.dare(big)["w"], (rows * torch.from_numpy(whole)).sum(dim=0) / 0.5)


def test_dare_keeps_what_it_says_and_is_right_on_average():
    ones = [{"w": torch.ones(200_000)}, {"w": torch.zeros(200_000)}]
    values = merging.dare(ones, density=0.25, seed=3)["w"]
    assert set(values.unique().tolist()) == {0.0, 4.0}
    assert float(values.mean()) == pytest.approx(1.0, abs=5 * 4 * (0.25 * 0.75 / 200_000) ** 0.5)
    assert not torch.equal(values, merging.dare(ones, density=0.25, seed=4)["w"])
    both = merging.dare([{"w": torch.ones(1000)}] * 2, density=0.5)["w"]
    assert {0.0, 2.0, 4.0} == set(both.unique().tolist())  # two tasks do not drop the same entries
    assert torch.equal(merging.dare(ones, density=1.0)["w"], torch.ones(200_000, dtype=torch.float64))


@pytest.mark.parametrize("density", [1e-9, 1 / 65536, 0.25, 0.3, 1.0])
def test_dares_probability_is_the_density_to_48_bits(density, monkeypatch):
    """Every value of the 16 bits once: the share of those that keep an entry, and what decides the last of them."""

    class Counting:
        tail = 0

        def __init__(self, sequence):
            self.again = len(sequence.entropy) == 4

        def advance(self, places):
            pass

        def random_raw(self, count=None):
            if self.again:
                return self.tail << 32
            return np.arange(4 * count, dtype=np.uint16).view(np.uint64)

    monkeypatch.setattr(np.random, "PCG64", Counting)
    counts = []
    for Counting.tail in (0, 2**32 - 1):
        counts.append(int(Dare(density).sparsifier().kept(0, "w", 0, length=65536).sum()))
    below = int(density * 65536)
    rest = round(density * 2**48) - below * 2**32
    assert counts == [below + (rest > 0), below]


def test_dares_half_is_one_bit_an_entry():
    """The bits of the generator's numbers, lowest first, told apart by Python's integers."""
    kept = Dare(0.5, seed=5).sparsifier().kept(2, "w", 128, length=1000)
    source = np.random.PCG64((5, 2, zlib.crc32(b"w")))
    words = [int(word) for word in source.random_raw(18)][2:]
    assert kept.dtype == np.bool_
    assert kept.tolist() == [bool(words[place // 64] >> place % 64 & 1) for place in range(1000)]
    whole = Dare(0.5).sparsifier().kept(0, "w", 0, length=640_000)
    assert np.array_equal(
        whole,
        np.concatenate([Dare(0.5).sparsifier().kept(0, "w", s, length=128_000) for s in range(0, 640_000, 128_000)]),
    )
    assert whole.mean() == pytest.approx(0.5, abs=5 * (0.25 / 640_000) ** 0.5)
    assert not np.array_equal(whole, Dare(0.5).sparsifier().kept(1, "w", 0, length=640_000))


def test_dares_entries_depend_on_their_place_alone():
    whole = Dare(0.3, seed=2).sparsifier().kept(1, "w", 0, length=400_000)
    parts = [Dare(0.3, seed=2).sparsifier().kept(1, "w", start, length=100_000) for start in range(0, 400_000, 100_000)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole[:37], Dare(0.3, seed=2).sparsifier().kept(1, "w", 0, length=37))
    assert whole.mean() == pytest.approx(0.3, abs=5 * (0.21 / 400_000) ** 0.5)
    assert not np.array_equal(whole, Dare(0.3, seed=2).sparsifier().kept(1, "v", 0, length=400_000))


def test_one_task_merges_to_itself():
    (vector,) = as_tensors(vectors(1))
    for name in ("task_arithmetic", "mean", "median"):
        assert all(torch.equal(value, vector[key]) for key, value in getattr(merging, name)([vector]).items())


def test_tsv_m_of_orthogonal_tasks_adds_them():
    left, right = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q, torch.eye(6, dtype=torch.float64)
    tasks = [
        {"w": left[:, [a, b]] @ torch.diag(torch.tensor([3.0, 2.0]).double()) @ right[[a, b]]}
        for a, b in ((0, 1), (2, 3), (4, 5))
    ]
    total = sum(task["w"] for task in tasks)
    torch.testing.assert_close(merging.tsv_m(tasks)["w"], total)
    assert merging.interference(tasks)["w"] == pytest.approx(0, abs=1e-12)


def test_interference_is_its_definition():
    arrays = vectors(3)
    found = merging.interference(as_tensors(arrays))
    assert set(found) == {"matrix", "tall"}
    for name, value in found.items():
        rank = min(SHAPES[name]) // 3
        u, s, v = [], [], []
        for array in arrays:
            left, values, right = np.linalg.svd(array[name])
            u += [left[:, place] for place in range(rank)]
            s += list(values[:rank])
            v += [right[place] for place in range(rank)]
        total = 0.0
        for i, j in itertools.product(range(len(s)), repeat=2):
            total += abs(sum(((u[i] @ u[m]) - (i == m)) * s[m] * ((v[m] @ v[j]) - (m == j)) for m in range(len(s))))
        assert value == pytest.approx(total, rel=1e-10)


def test_tune_and_merge_with_one_gradient_step_is_multitask_gradient_descent():
    numbers = np.random.default_rng(5)
    hessians = [np.diag(numbers.uniform(0.1, 1, size=4)) for _ in range(3)]
    targets = [numbers.normal(size=4) for _ in range(3)]

    def task(place):
        def tune(weights, number):
            del number
            gradient = torch.as_tensor(hessians[place]) @ (weights["w"] - torch.as_tensor(targets[place]))
            return {"w": weights["w"] - 0.3 * gradient}

        return tune

    truth = np.zeros(4)
    start = {"w": torch.zeros(4, dtype=torch.float64)}
    for weights in merging.tune_and_merge(start, [task(place) for place in range(3)], rounds=6):
        truth = truth - 0.3 * sum(h @ (truth - t) for h, t in zip(hessians, targets, strict=True)) / 3
        np.testing.assert_allclose(weights["w"].numpy(), truth, rtol=1e-13)
    assert torch.equal(start["w"], torch.zeros(4, dtype=torch.float64))


def _float32(vector):
    return {name: tensor.float() for name, tensor in vector.items()}


def test_a_sum_of_finite_values_may_overflow_though_each_of_them_fits():
    start = {"w": torch.full((4,), 3e38)}
    assert torch.equal(merging.mean([{"w": torch.zeros(4)}], base=start)["w"], start["w"])


def test_refusals_are_one_sentence():
    two = as_tensors(vectors(2))
    poisoned = [two[0], {**two[1], "bias": torch.full((5,), float("nan"), dtype=torch.float64)}]
    cases = [
        (lambda: merging.ties(two[:1]), "ties merges at least 2 tasks"),
        (lambda: merging.tsv_m(two[:1]), "tsv_m merges at least 2 tasks"),
        (lambda: merging.analogy(two), "analogy merges at least 3 tasks"),
        (lambda: merging.analogy(two + two), "analogy takes 3"),
        (lambda: merging.mean([]), "no task vector to merge"),
        (lambda: merging.mean(two[0]), "give a list"),
        (lambda: merging.mean(two, alpha=float("nan")), "alpha must be a finite number"),
        (lambda: merging.mean(two, alpha="much"), "alpha must be a finite number"),
        (lambda: merging.mean(two, alpha=True), "alpha must be a finite number"),
        (lambda: merging.median(poisoned), "'bias' of task vector 2 holds a NaN"),
        (lambda: merging.ties(poisoned), "holds a NaN"),
        (lambda: merging.mean([two[0], {**two[1], "bias": torch.ones(4)}]), "'bias' has shape"),
        (lambda: merging.mean([two[0], {"bias": two[1]["bias"]}]), "is in one and not in the other"),
        (lambda: merging.mean(two, base={"bias": torch.ones(5)}), "the base is not of the same model"),
        (lambda: merging.mean([{"n": torch.ones(2, dtype=torch.int64)}]), "floating-point"),
        (lambda: merging.ties(two, density=0), "density must be"),
        (lambda: merging.dare(two, density=1.5), "density must be"),
        (lambda: merging.breadcrumbs(two, outliers=0.5), "outliers must be"),
        (lambda: merging.dare(two, seed=-1), "seed must be a whole number"),
        (lambda: merging.dare(two, seed=1.5), "seed must be a whole number"),
        (lambda: merging.mean(None), "give a list"),
        (lambda: merging.mean(["run", "run"]), "task vector 1 is of type str: give name -> tensor"),
        (lambda: merging.mean([two[0], {n: t.numpy() for n, t in two[1].items()}]), "task vector 2 is of type ndarray"),
        (lambda: merging.mean(two, base=poisoned[1]), "'bias' of the base holds a NaN"),
        (lambda: merging.mean(two, alpha=1e39, base=_float32(two[0])), "does not fit into float32 at alpha 1e+39"),
        (lambda: list(merging.tune_and_merge(two[0], [], 1)), "no task to tune"),
        (lambda: list(merging.tune_and_merge(two[0], [lambda w, n: w], 0)), "rounds must be"),
    ]
    for attempt, words in cases:
        with pytest.raises(TvgradError) as caught:
            attempt()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def peft_utilities():
    """peft's file of merging functions, which needs torch alone, without importing all of peft."""
    spec = importlib.util.find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("peft is not installed: pip install --no-deps peft")
    path = Path(next(iter(spec.submodule_search_locations))) / "utils" / "merge_utils.py"
    if not path.is_file():
        pytest.skip("this version of peft keeps its merging functions elsewhere")
    file = importlib.util.spec_from_file_location("peft_merge_utils", path)
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module


@pytest.mark.parametrize("density", [0.2, 0.55, 0.9])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_agrees_with_peft(tasks, density):
    peft = peft_utilities()
    stacks = [
        {"w": torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * tasks + place))}
        for place in range(tasks)
    ]
    given = [stack["w"] for stack in stacks]
    weights = torch.ones(tasks, dtype=torch.float64)
    torch.testing.assert_close(merging.task_arithmetic(stacks)["w"], peft.task_arithmetic(given, weights))
    torch.testing.assert_close(merging.ties(stacks, density=density)["w"], peft.ties(given, weights, density))
    # peft has no breadcrumbs; without outliers they are its sum of pruned vectors
    torch.testing.assert_close(
        merging.breadcrumbs(stacks, density=density, outliers=0)["w"], peft.magnitude_prune(given, weights, density)
    )
    # random numbers differ: the same definition shows in the mean over many draws, and in the values
    kept = torch.stack([merging.dare(stacks[:1], density=density, seed=seed)["w"] for seed in range(20)])
    drawn = torch.stack([peft.dare_linear(given[:1], weights[:1], density) for _ in range(20)])
    for sample in (kept, drawn):
        ratio = sample / given[0]
        assert torch.all((ratio.abs() < 1e-12) | ((ratio - 1 / density).abs() < 1e-9))
        assert float((ratio != 0).double().mean()) == pytest.approx(density, abs=0.06)


def test_ties_over_more_than_one_block():
    generator = np.random.default_rng(3)
    tall = (generator.standard_normal((5, 2 * (IN_CACHE // 5) + 7)) * 8).round() / 8  # with many equal magnitudes
    sorted_down = -np.sort(-np.abs(tall), axis=1)
    kept = np.where(np.abs(tall) >= sorted_down[:, [tall.shape[1] // 5 - 1]], tall, 0.0)
    elected = np.where(kept.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = kept * elected > 0
    expected = np.where(agrees, kept, 0.0).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
    found = merging.ties([{"w": torch.from_numpy(row)} for row in tall])["w"]
    torch.testing.assert_close(found, torch.from_numpy(expected))
    assert (expected[-7:] != 0).any()
