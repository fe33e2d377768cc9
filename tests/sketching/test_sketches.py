"""Sketches against the matrix of their projection, its mean and variance, and known cosines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.sketching import flattening
from tvgrad.sketching.flattening import flattened, signs
from tvgrad.sketching.sketch_width import LEAST
from tvgrad.sketching.sketches import Sketch, sketch_of

WIDTH = LEAST
BLOCKS = 40
ENTRIES = WIDTH * BLOCKS - 17


def sketched(vector: np.ndarray | torch.Tensor, width: int = WIDTH) -> Sketch:
    return tvgrad.sketch({"x": torch.as_tensor(vector)}, width)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Draw other signs."""
    return lambda seed: monkeypatch.setattr(flattening, "SEED", seed)


def matrix_of_block(number: int) -> np.ndarray:
    return np.stack([flattened(row.clone(), number).numpy() for row in torch.eye(WIDTH, dtype=torch.float64)], axis=1)


def test_the_matrix_of_a_block() -> None:
    for number in (0, 1, 2**40):
        matrix = matrix_of_block(number)
        assert np.array_equal(np.abs(matrix), np.full((WIDTH, WIDTH), 1 / 16))
        assert np.array_equal(matrix @ matrix.T, np.eye(WIDTH))
    assert not np.array_equal(matrix_of_block(0), matrix_of_block(1))


def test_a_sketch_is_the_product_with_its_matrix() -> None:
    vector = np.random.default_rng(0).normal(size=3 * WIDTH - 5)
    whole = np.concatenate([matrix_of_block(number) for number in range(3)], axis=1)
    expected = whole @ np.concatenate([vector, np.zeros(5)])
    assert np.allclose(sketched(vector).values.numpy(), expected, rtol=0, atol=1e-13)


def test_signs_are_those_of_philox() -> None:
    """The bits are public: another program can make the same sketch."""
    words = np.random.Philox(key=0x7461736B, counter=[0, 7, 0, 0]).random_raw(8)
    bits = [int(word) >> place & 1 for word in words for place in range(64)]
    before, after = signs(7, WIDTH)
    # Of each byte the highest bit comes first.
    order = [8 * byte + 7 - place for byte in range(64) for place in range(8)]
    assert torch.cat([before, after]).tolist() == [1 - 2 * bits[place] for place in order]


def pieces(vector: torch.Tensor, cut: int) -> Callable[[str], Iterator[torch.Tensor]]:
    halves = {"a": vector[:700], "b": vector[700:]}
    return lambda name: iter(halves[name].split(cut))


def test_the_cut_does_not_matter() -> None:
    vector = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    whole = tvgrad.sketch({"b": vector[700:].view(-1, 4), "a": vector[:700]}, WIDTH)
    for cut in (1, 7, 255, 256, 257, 5000):
        again = sketch_of({"a": 700, "b": 4300}, pieces(vector, cut), WIDTH)
        assert torch.equal(again.values, whole.values)
        assert again.squares == whole.squares


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_of_any_format_are_taken_as_they_are(dtype: torch.dtype) -> None:
    vector = torch.randn(3000, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(sketched(vector).values, sketched(vector.double()).values)
    assert sketched(vector).norm == pytest.approx(float(vector.double().norm()), rel=1e-14)


def test_sketches_are_linear() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(2, ENTRIES))
    combined = sketched(2.5 * left - right).values
    assert torch.allclose(combined, 2.5 * sketched(left).values - sketched(right).values, rtol=0, atol=1e-12)


def test_one_entry_keeps_its_length() -> None:
    for place in (0, 1, WIDTH - 1, WIDTH, 5 * WIDTH + 3, ENTRIES - 1):
        vector = np.zeros(ENTRIES)
        vector[place] = -1e-30
        one = sketched(vector)
        assert one.estimated_norm().value == pytest.approx(1e-30, rel=1e-14)
        assert one.norm == 1e-30


def test_vectors_of_one_block_lose_nothing() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(2, WIDTH - 9))
    cosine = sketched(left).cosine(sketched(right))
    truth = left @ right / math.sqrt((left @ left) * (right @ right))
    assert cosine.value == pytest.approx(truth, abs=1e-14)
    assert cosine.low <= truth <= cosine.high < cosine.low + 1e-11
    norm = sketched(left).estimated_norm()
    assert norm.low <= math.sqrt(left @ left) <= norm.high < norm.low * (1 + 1e-11)


def test_a_vector_and_itself() -> None:
    vector = sketched(np.arange(ENTRIES) + 1.0)
    other = sketched(-3.0 * (np.arange(ENTRIES) + 1.0))
    assert vector.cosine(vector).high == 1
    assert vector.cosine(other).low == -1
    assert vector.cosine(other).high < -1 + 1e-9
    zero = sketched(np.zeros(ENTRIES))
    assert math.isnan(vector.cosine(zero).value)
    assert zero.estimated_norm().high == 0


def test_mean_and_variance_are_those_derived(draw: Callable[[int], None]) -> None:
    """Blocks of very unequal size, by the formula of step 4 on the page of sketches."""
    rng = np.random.default_rng(4)
    scale = np.repeat([3.0, 1.0, 0.3, 1.0], WIDTH)
    left = rng.normal(size=4 * WIDTH) * scale
    right = (rng.normal(size=4 * WIDTH) + 0.5 * left) * scale[::-1]
    found = []
    for seed in range(500):
        draw(seed)
        found.append(float(sketched(left).values @ sketched(right).values))
    x, y = left.reshape(4, WIDTH), right.reshape(4, WIDTH)
    squares, inner = np.outer((x**2).sum(1), (y**2).sum(1)), (x * y).sum(1)
    variance = (squares.sum() - np.trace(squares) + inner.sum() ** 2 - (inner**2).sum()) / WIDTH
    assert abs(np.mean(found) - left @ right) < 3.5 * math.sqrt(variance / 500)
    assert np.var(found) == pytest.approx(variance, rel=0.25)  # four standard deviations of a variance of 500 draws


def dense(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, ENTRIES))


def sparse(rng: np.random.Generator) -> np.ndarray:
    """Equal entries at twenty places: what count sketches have no normal law for."""
    made = np.zeros((2, ENTRIES))
    made[:, rng.choice(ENTRIES, 20, replace=False)] = 1.0
    made[1] *= rng.choice([-1.0, 1.0], ENTRIES)
    return made


def aligned(rng: np.random.Generator) -> np.ndarray:
    """The same place of every block."""
    made = np.zeros((2, BLOCKS * WIDTH))
    made[:, 5::WIDTH] = rng.normal(size=(2, BLOCKS))
    return made[:, :ENTRIES]


def equal(rng: np.random.Generator) -> np.ndarray:
    return np.stack([np.ones(ENTRIES), np.sign(rng.normal(size=ENTRIES) + 0.3)])


def ranging(rng: np.random.Generator) -> np.ndarray:
    """Sizes over thirty powers of ten: a few entries are nearly all of the vector."""
    return rng.normal(size=(2, ENTRIES)) * 10.0 ** rng.uniform(-30, 0, size=ENTRIES)


FAMILIES = (dense, sparse, aligned, equal, ranging)
MIXED = (0.0, 0.3, 1.5, 30.0)
"""How much of the first vector is in the second: cosines from 0 to nearly 1."""


def coverage(
    family: Callable[[np.random.Generator], np.ndarray], cases: int, draw: Callable[[int], None]
) -> list[float]:
    """Shares of cosines and norms covered, and the mean width of the cosines' intervals over the limit law's."""
    cosines = norms = 0
    widths = []
    for case in range(cases):
        rng = np.random.default_rng(case)
        left, right = family(rng)
        right = right + MIXED[case % 4] * left
        draw(case)
        one, other = sketched(left), sketched(right)
        truth = left @ right / math.sqrt((left @ left) * (right @ right))
        found, length = one.cosine(other), one.estimated_norm()
        cosines += found.low <= truth <= found.high
        norms += length.low <= math.sqrt(left @ left) <= length.high
        if abs(truth) < 0.999:
            widths.append((found.high - found.low) / (2 * 1.96 * (1 - truth**2) / math.sqrt(WIDTH)))
    return [cosines / cases, norms / cases, float(np.mean(widths))]


@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_cover(family: Callable[[np.random.Generator], np.ndarray], draw: Callable[[int], None]) -> None:
    cosines, norms, width = coverage(family, 40, draw)
    assert cosines >= 0.84  # of 40 cases at 96.6 %, seven or more miss once in two thousand times
    assert norms >= 0.84
    assert 1.05 < width < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_cover_a_thousand_cases(
    family: Callable[[np.random.Generator], np.ndarray], draw: Callable[[int], None]
) -> None:
    cosines, norms, width = coverage(family, 1000, draw)
    print(f"{family.__name__}: cosines {cosines:.3f}, norms {norms:.3f}, width {width:.3f} of the limit law's")
    assert cosines >= 0.95
    assert norms >= 0.95
    assert width <= 1.1


def test_what_is_no_sketch_is_refused() -> None:
    for width in (0, 128, 1000, 2**25):
        with pytest.raises(TvgradError, match=f"a sketch of {width} numbers is not possible: give a power of two"):
            tvgrad.sketch({"x": torch.ones(3)}, width)
    one, other = sketched(np.ones(3000)), sketched(np.ones(3001))
    with pytest.raises(TvgradError, match="are not of one projection: sketch vectors of one model, with one width"):
        one.cosine(other)
    with pytest.raises(TvgradError, match="are not of one projection"):
        one.cosine(sketched(np.ones(3000), 512))


def test_vectors_that_are_not_finite_have_no_cosine() -> None:
    vector = np.ones(3000)
    vector[7] = math.inf
    assert math.isnan(sketched(vector).cosine(sketched(np.ones(3000))).value)


@pytest.mark.parametrize("scale", [1e-290, 1e-200, 1e-162, 1e-130, 1e130, 1e155, 1e300])
def test_cosines_and_lengths_know_no_scale(scale: float) -> None:
    """Squares of entries leave float64; the entries do not."""
    rng = np.random.default_rng(11)
    left, right = rng.normal(size=(2, ENTRIES))
    sizes = {"few": 400, "many": ENTRIES - 400}

    def made(vector: np.ndarray) -> Sketch:
        parts = {"few": torch.from_numpy(vector[:400]), "many": torch.from_numpy(vector[400:])}
        return sketch_of(sizes, lambda name: [parts[name]], WIDTH, split=True)

    one, other, plain, beside = (made(vector) for vector in (left * scale, right, left, right))
    assert one.split is not None
    assert other.split is not None
    assert plain.split is not None
    assert beside.split is not None
    pairs = [(one.cosine(other), plain.cosine(beside))]
    names: Sequence[list[str]] = [["few"], ["many"], ["few", "many"]]
    pairs += [(one.split.cosine(other.split, group), plain.split.cosine(beside.split, group)) for group in names]
    lengths = [(one.estimated_norm(), plain.estimated_norm())]
    lengths += [(one.split.estimated_norm(group), plain.split.estimated_norm(group)) for group in names]
    for found, expected in pairs:
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected), rel=1e-11)
    for found, expected in lengths:
        assert [one / scale for one in dataclasses.astuple(found)] == pytest.approx(
            list(dataclasses.astuple(expected)), rel=1e-11
        )


def test_squares_beyond_float64_have_an_infinite_norm() -> None:
    for entry in (5e152, 1e200):  # sums of squares of a block are finite, or not
        assert sketched(np.full(ENTRIES, entry)).norm == math.inf


def test_pairs_of_entries_are_the_exception_of_step_5(draw: Callable[[int], None]) -> None:
    """Their errors are zero in half of the draws, and of twice the variance in the others."""
    left, right = np.zeros((2, 2 * WIDTH))
    left[[8, 9]] = right[[WIDTH + 30, WIDTH + 31]] = math.sqrt(0.5)
    errors = []
    for seed in range(400):
        draw(seed)
        errors.append(float(sketched(left).values @ sketched(right).values))
    zero = sum(abs(error) < 1e-12 for error in errors)
    assert abs(zero - 200) < 4 * 10
    assert np.square(errors).sum() / (400 - zero) == pytest.approx(2 / WIDTH, rel=0.4)
