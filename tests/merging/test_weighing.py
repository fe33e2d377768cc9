"""Methods that weigh whole task vectors, against their definitions in numpy on flattened vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from tvgrad import TvgradError, merging
from tvgrad.merging.disentangled import _rounded, entanglement, shared_coefficients
from tvgrad.merging.lines import block_depths
from tvgrad.merging.vector_bases import task_vector_bases
from tvgrad.vectors.algebra import flatten

SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "4.weight": (70_000,)}


def drawn(tasks: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    numbers = np.random.default_rng(seed)
    scales = numbers.uniform(0.2, 2.0, size=tasks)
    return [{name: torch.from_numpy(c * numbers.normal(size=shape)) for name, shape in SHAPES.items()} for c in scales]


def table(vectors: list[dict[str, torch.Tensor]]) -> Any:
    return np.stack([flatten(one) for one in vectors])


def meta_gpt(rows: Any) -> Any:
    squares = np.linalg.norm(rows, axis=1) ** 2
    return squares / squares.sum() @ rows


def fed_nova(rows: Any) -> Any:
    steps = np.array([4, 1, 9, 2])[: len(rows)]
    return sum(row / step for row, step in zip(rows, steps, strict=True)) * steps.mean() / len(rows)


def clipped(rows: Any, radius: float) -> Any:
    total = np.zeros(rows.shape[1])
    for row in rows:
        length = np.linalg.norm(row)
        total += row if length <= radius else row * radius / length
    return total / len(rows)


@pytest.mark.parametrize("tasks", [1, 4])
def test_whole_vectors_are_weighed_as_defined(tasks: int) -> None:
    vectors = drawn(tasks)
    rows = table(vectors)
    middle = float(np.median(np.linalg.norm(rows, axis=1)))
    cases = [
        (merging.meta_gpt(vectors), meta_gpt(rows)),
        (merging.fed_nova(vectors, steps=(4, 1, 9, 2)[:tasks]), fed_nova(rows)),
        (merging.fed_nova(vectors), rows.mean(0)),
        (merging.centred_clip(vectors), clipped(rows, middle)),
        (merging.centred_clip(vectors, radius=50.0), clipped(rows, 50.0)),
    ]
    for found, truth in cases:
        np.testing.assert_allclose(flatten(found), truth, rtol=1e-12, atol=1e-14)


def test_vectors_of_zeros_are_merged_to_zero() -> None:
    zeros = [{"w": torch.zeros(3)}] * 2
    for method in (merging.meta_gpt, merging.centred_clip, merging.disentangled, merging.vector_bases, merging.slerp):
        assert torch.equal(method(zeros)["w"], torch.zeros(3).double())


@pytest.mark.parametrize("toward", [0.0, 0.25, 0.5, 1.0])
def test_slerp_goes_along_the_arc(toward: float) -> None:
    """Vectors of one length: the result has it too, and the angles to both are in proportion."""
    first, other = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second = other * first.norm() / other.norm()
    angle = float(torch.arccos((first * second).sum() / first.norm() ** 2))
    found = merging.slerp([{"w": first}, {"w": second}], toward=toward)["w"]
    assert float(found.norm()) == pytest.approx(float(first.norm()), rel=1e-12)
    cosine = float((found * first).sum() / first.norm() ** 2)
    assert np.arccos(np.clip(cosine, -1, 1)) == pytest.approx(toward * angle, abs=1e-7)
    # and it lies in their plane
    plane = torch.stack([first.flatten(), second.flatten()]).T
    rest = found.flatten() - plane @ torch.linalg.lstsq(plane, found.flatten()[:, None]).solution[:, 0]
    assert float(rest.norm()) < 1e-12


def test_slerp_of_parallel_and_opposed_vectors_is_on_the_line() -> None:
    one = torch.tensor([1.0, 2.0])
    assert torch.allclose(merging.slerp([{"w": one}, {"w": 3 * one}], toward=0.25)["w"], 1.5 * one.double())
    assert torch.allclose(merging.slerp([{"w": one}, {"w": -one}], toward=0.25)["w"], 0.5 * one.double())


def test_lines_goes_deeper_with_depth() -> None:
    vectors = drawn(2)
    found = merging.lines(vectors, first=0.2, last=1.2)
    for name, factor in {"0.weight": 0.2, "0.bias": 0.2, "2.weight": 0.7, "4.weight": 1.2}.items():
        torch.testing.assert_close(found[name], factor * (vectors[0][name] + vectors[1][name]), rtol=1e-14, atol=0)
    assert torch.equal(merging.lines(vectors)["0.bias"], (vectors[0]["0.bias"] + vectors[1]["0.bias"]) * 0.5)
    assert torch.equal(merging.lines([{"w": torch.ones(2)}], last=3.0)["w"], torch.full((2,), 3.0).double())


def test_depths_of_files_that_are_sorted_by_name() -> None:
    names = ["embed.w", *sorted(f"m.layers.{n}.{part}" for n in range(12) for part in "ab"), "norm.w"]
    depths = block_depths(names)
    assert all(depths[f"m.layers.{n}.a"] == depths[f"m.layers.{n}.b"] == n for n in range(12))
    assert (depths["embed.w"], depths["norm.w"]) == (0, 11)
    assert block_depths(names[::-1]) == depths
    assert block_depths(["conv.w", "conv.b", "head.w"]) == {"conv.w": 0, "conv.b": 0, "head.w": 1}


def test_entanglement_is_that_of_whole_vectors() -> None:
    numbers = np.random.default_rng(3)
    rows, outside = numbers.normal(size=(4, 20)), numbers.normal(size=20)
    outside -= np.linalg.lstsq(rows.T, outside, rcond=None)[0] @ rows
    shared = numbers.normal(size=4)
    delta = shared @ rows + outside
    left = rows - delta
    cosines = [
        abs(left[i] @ left[j]) / np.linalg.norm(left[i]) / np.linalg.norm(left[j])
        for i, j in itertools.permutations(range(4), 2)
    ]
    truth = np.mean(cosines) + 0.1 * np.linalg.norm(delta)
    assert entanglement(rows @ rows.T, shared, float(outside @ outside)) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_shared_is_a_minimum_below_the_published_steps(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    rows = 0.05 * (numbers.normal(size=(3, 40)) + numbers.normal(size=40))
    gram = rows @ rows.T
    found = shared_coefficients(gram)
    least = entanglement(gram, found)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(20):
            assert entanglement(gram, found + size * numbers.normal(size=3)) >= least - 1e-8
    # Adam on the whole vector, from zero, as published.
    given, delta = torch.from_numpy(rows), torch.zeros(40, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        unit = torch.nn.functional.normalize(given - delta, dim=1)
        value = ((unit @ unit.T).abs().sum() - 3) / 6 + 0.1 * (delta.square().sum() + 1e-30).sqrt()
        value.backward()
        optimizer.step()
    assert least <= float(value.detach()) + 1e-9
    merged = merging.disentangled([{"w": torch.from_numpy(row)} for row in rows])["w"].numpy()
    np.testing.assert_allclose(merged, (rows - found @ rows).sum(0), atol=1e-12)


def test_the_rounded_objective_has_its_gradient() -> None:
    numbers = np.random.default_rng(0)
    rows = numbers.normal(size=(4, 9))
    point, gram = 0.1 * numbers.normal(size=4), rows @ rows.T
    slope = approx_fprime(point, lambda c: _rounded(gram, c, 0.1, 1e-2)[0], 1e-7)
    np.testing.assert_allclose(_rounded(gram, point, 0.1, 1e-2)[1], slope, atol=1e-5)


@pytest.mark.parametrize("bases", [1, 2, 3])
def test_bases_are_mixtures_not_below_the_floor(bases: int) -> None:
    rows = np.random.default_rng(bases).normal(size=(5, 30)) + 1
    gram = rows @ rows.T
    mixtures, decoder = task_vector_bases(gram, bases)
    assert mixtures.shape == (5, bases)
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.sum(0), 1)
    error = np.linalg.norm(decoder.T @ mixtures.T @ rows - rows) ** 2
    floor = np.linalg.eigvalsh(gram)[: 5 - bases].sum()
    assert floor <= error * (1 + 1e-10)
    # Of no choice of that many task vectors themselves, with least squares, is the error smaller.
    for chosen in itertools.combinations(range(5), bases):
        basis = rows[list(chosen)]
        rest = rows - np.linalg.lstsq(basis.T, rows.T, rcond=None)[0].T @ basis
        assert error <= np.linalg.norm(rest) ** 2 * (1 + 1e-9)
    merged = merging.vector_bases([{"w": torch.from_numpy(row)} for row in rows], bases=bases)["w"].numpy()
    np.testing.assert_allclose(merged, (decoder.T @ mixtures.T @ rows).sum(0), atol=1e-10)


def test_refusals_are_one_sentence() -> None:
    two = [{"w": torch.ones(2)}] * 2
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: merging.slerp([*two, two[0]]), "slerp takes 2 tasks, and 3 were given"),
        (lambda: merging.slerp(two[:1]), "slerp merges at least 2 tasks"),
        (lambda: merging.slerp(two, toward=1.5), "toward must be a finite number of at least 0 and at most 1, not 1.5"),
        (lambda: merging.lines(two, first=float("nan")), "first must be a finite number"),
        (lambda: merging.fed_nova(two, steps=(1, 2, 3)), "3 numbers of steps were given for 2 tasks"),
        (lambda: merging.fed_nova(two, steps=(1, 0)), "steps must be a whole number of at least 1, not 0"),
        (lambda: merging.centred_clip(two, radius=-1.0), "radius must be a finite number of at least 0"),
        (lambda: merging.centred_clip(two, radius=0.0), "a radius of 0 leaves nothing"),
        (lambda: merging.disentangled(two[:1]), "disentangled merges at least 2 tasks"),
        (lambda: merging.vector_bases(two, bases=3), "3 bases for 2 tasks are no compression"),
        (lambda: merging.vector_bases(two, bases=0), "bases must be a whole number of at least 1"),
        (lambda: merging.METHODS["meta_gpt"]().combine(torch.ones(2, 2), "w", 0), "looks at whole task vectors first"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError) as raised:
            run()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
