"""Certified spectral norms: never below the truth, as tight as asked, whatever the matrix."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from tvgrad.bounds.network import spectral_norm as spectral
from tvgrad.bounds.network.spectral_norm import BadMatrix, spectral_norm, spectral_norms


def exact_norm(matrix: torch.Tensor) -> mpmath.mpf:
    """Oracle: singular values at 60 digits."""
    with mpmath.workdps(60):
        return max(mpmath.svd_r(mpmath.matrix(matrix.double().tolist()), compute_uv=False))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hadamard(order: int) -> torch.Tensor:
    """Orthogonal up to the factor sqrt(order), in whole numbers: all singular values equal, and known."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def known_norms() -> list[tuple[str, torch.Tensor, Fraction]]:
    """Large matrices of whole numbers whose squared norm is known exactly."""
    diagonal = torch.zeros(300, 700, dtype=torch.float64)
    diagonal[torch.arange(300), torch.randperm(700, generator=torch.Generator().manual_seed(3))[:300]] = torch.arange(
        1, 301, dtype=torch.float64
    )
    left = torch.arange(1, 401, dtype=torch.float64)
    right = torch.arange(-250, 251, dtype=torch.float64)
    repeated = torch.diag(torch.cat([torch.full((200,), 7.0), torch.arange(100) / 100.0]).double())
    return [
        ("permuted diagonal", diagonal, Fraction(300**2)),
        ("Hadamard 512", hadamard(512), Fraction(512)),
        ("Hadamard 256 rows of 1024", hadamard(1024)[:256], Fraction(1024)),
        ("rank one", left[:, None] * right, Fraction(int((left**2).sum()) * int((right**2).sum()))),
        ("all ones", torch.ones(384, 1000, dtype=torch.float64), Fraction(384_000)),
        ("identity", torch.eye(500, dtype=torch.float64), Fraction(1)),
        ("repeated singular values", repeated, Fraction(49)),
        ("one large row", torch.cat([torch.full((1, 600), 2.0), torch.zeros(399, 600)]).double(), Fraction(2400)),
    ]


@pytest.mark.parametrize("matrix", [pytest.param(m, id=name) for name, m, _ in known_norms()])
@pytest.mark.parametrize("scale", [0, -1000, 900], ids=lambda e: f"2^{e}")
def test_bound_holds_and_is_tight_on_known_norms(matrix: torch.Tensor, scale: int) -> None:
    square = next(s for _, m, s in known_norms() if m.shape == matrix.shape and torch.equal(m, matrix))
    for oriented in (matrix, matrix.mT):
        bound, estimate = spectral_norm(torch.from_numpy(np.ldexp(oriented.numpy(), scale)))
        unscaled = Fraction(bound) / Fraction(2) ** scale
        assert unscaled**2 >= square
        assert unscaled**2 <= square * Fraction(1 + 1e-6) ** 2
        assert estimate == pytest.approx(math.sqrt(square) * 2.0**scale, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (5, 3), (8, 8), (12, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_bound_holds_at_60_digits(shape: tuple[int, int], seed: int) -> None:
    matrix = gaussian(*shape, seed=seed)
    spread = matrix * torch.logspace(0, -9, shape[1], dtype=torch.float64)
    for example in (matrix, spread, matrix.float(), matrix.bfloat16(), matrix.half()):
        truth = exact_norm(example)
        for tightness in (1e-6, 1e-9, 1e-13, 0.05, 2.0):
            found = spectral_norm(example, tightness)
            assert found.bound >= truth
            assert found.bound <= truth * (1 + max(tightness, 1e-11))
            assert abs(found.estimate / truth - 1) <= max(tightness, 1e-11)


@pytest.mark.parametrize("magnitude", [1e300, 1e-300, 1e-310, 5e-324, 1.7e308, 2.0**-1022])
def test_extreme_magnitudes(magnitude: float) -> None:
    matrix = torch.tensor([[0.9, -0.3], [0.25, 0.7], [0.1, 1.0]], dtype=torch.float64) * magnitude
    with mpmath.workdps(60):
        truth = exact_norm(matrix)
        bound, _ = spectral_norm(matrix)
        assert bound >= truth
        assert math.isinf(bound) or bound <= truth * (1 + mpmath.mpf("1e-6")) + mpmath.mpf(5e-324)
        assert float(spectral_norms(matrix[None])[0]) >= truth
    # sqrt 2 times the smallest subnormal is rounded up, to twice it
    assert spectral_norm(torch.full((1, 2), 5e-324, dtype=torch.float64)).bound.hex() == (1e-323).hex()


def test_entries_of_mixed_magnitude() -> None:
    matrix = torch.tensor([[1e200, 1e-200], [1e-160, 1e-320]], dtype=torch.float64)
    assert spectral_norm(matrix).bound >= exact_norm(matrix)
    assert spectral_norm(torch.tensor([[1e308, 1e308], [1e308, 1e308]], dtype=torch.float64)).bound == math.inf


def test_large_gaussian_against_svd() -> None:
    for shape in ((200, 500), (450, 390), (193, 193)):
        matrix = gaussian(*shape)
        truth = float(torch.linalg.svdvals(matrix)[0])
        found = spectral_norm(matrix)
        assert found.method == "cholesky"
        # the decomposition itself is right to 1e-12
        assert truth * (1 - 1e-12) <= found.bound <= truth * (1 + 1e-6)
        tight = spectral_norm(matrix, 1e-12)
        assert truth * (1 - 1e-12) <= tight.bound <= truth * (1 + 1e-9)


def test_an_estimate_that_is_too_low_does_not_become_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gaussian(300, 400)
    truth = float(torch.linalg.svdvals(matrix)[0])
    for factor in (0.5, 0.99, 1 - 3e-6):

        def too_low(gram: torch.Tensor, accuracy: float, factor: float = factor) -> float:
            return factor * float(torch.linalg.eigvalsh(gram)[-1])

        monkeypatch.setattr(spectral, "_estimated", too_low)
        assert truth * (1 - 1e-12) <= spectral_norm(matrix).bound <= truth * (1 + 1e-6)
    monkeypatch.setattr(spectral, "_estimated", lambda gram, accuracy: 0.0)
    assert truth * (1 - 1e-12) <= spectral_norm(matrix).bound <= truth * (1 + 1e-6)


def test_start_vector_orthogonal_to_the_top_singular_vector() -> None:
    """The worst case of every Krylov method: what it cannot see must not be missing from the bound."""
    size = 256
    start = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = gaussian(size, seed=9)
    top = other - (other @ start) / (start @ start) * start
    top = top / torch.linalg.vector_norm(top)
    matrix = 10 * top[:, None] * top + 0.1 * hadamard(size) / 16
    truth = float(torch.linalg.svdvals(matrix)[0])
    assert truth * (1 - 1e-12) <= spectral_norm(matrix).bound <= truth * (1 + 1e-6)


def test_gram_certificate_alone() -> None:
    """Random and orthogonal matrices, with the worst-case excess rank^(1/2^(j+2))."""
    for seed in range(4):
        matrices = gaussian(5, 6, 9, seed=seed)
        truth = [exact_norm(matrix) for matrix in matrices]
        for squarings in (0, 1, 4, 8, 12, 30):
            for example in (matrices, matrices.mT):
                bounds = spectral_norms(example, squarings).tolist()
                for bound, norm in zip(bounds, truth, strict=True):
                    assert norm <= bound <= norm * 6 ** (1 / 2 ** (squarings + 2)) * (1 + 1e-12)
    for squarings in (0, 3, 8, 20):
        bound = float(spectral_norms(hadamard(64)[None], squarings)[0])
        assert 8 <= bound <= 8 * 64 ** (1 / 2 ** (squarings + 2)) * (1 + 1e-11)


def test_batches_keep_shape_scale_and_zeros() -> None:
    batch = gaussian(2, 3, 4, 5)
    batch[0, 1] = 0
    batch[1, 2] *= 1e-250
    batch[1, 0] *= 1e250
    bounds = spectral_norms(batch)
    assert bounds.shape == (2, 3)
    assert bounds[0, 1] == 0
    for index in np.ndindex(2, 3):
        if index != (0, 1):
            truth = exact_norm(batch[index])
            assert truth <= float(bounds[index]) <= truth * (1 + 2e-3)
    assert spectral_norms(torch.zeros(0, 3, 2)).shape == (0,)


def test_methods_and_zero() -> None:
    assert tuple(spectral_norm(torch.zeros(4, 3))) == (0.0, 0.0)
    assert spectral_norm(torch.zeros(4, 3)).method == "zero"
    assert spectral_norm(gaussian(1, 9)).method == "vector"
    assert spectral_norm(gaussian(30, 40), tightness=1.0).method == "gram"
    assert spectral_norm(gaussian(30, 40)).method == "cholesky"
    assert spectral_norm(torch.nn.Linear(5, 4).weight).bound > 0
    assert spectral_norm(gaussian(30, 40)) == spectral_norm(gaussian(30, 40))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(3), "needs a matrix"),
        (torch.ones(0, 3), "no entries"),
        (torch.ones(3, 0), "no entries"),
        (torch.tensor([[1.0, math.nan]]), "NaN or infinity"),
        (torch.tensor([[1.0], [math.inf]]), "NaN or infinity"),
        (torch.ones(2, 2, dtype=torch.int64), "real floating-point"),
        (torch.ones(2, 2, dtype=torch.complex64), "real floating-point"),
    ],
)
def test_refusals(matrix: torch.Tensor, message: str) -> None:
    with pytest.raises(BadMatrix, match=message):
        spectral_norm(matrix)
    with pytest.raises(BadMatrix):
        spectral_norms(matrix)


def test_tightness_must_be_positive() -> None:
    with pytest.raises(BadMatrix, match="tightness"):
        spectral_norm(torch.ones(2, 2), tightness=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("order", [2048, 4096])
def test_very_large(order: int) -> None:
    bound, _ = spectral_norm(hadamard(order))
    assert order <= Fraction(bound) ** 2 <= order * Fraction(1 + 1e-6) ** 2


@pytest.mark.slow
def test_many_random_matrices_at_60_digits() -> None:
    generator = torch.Generator().manual_seed(11)
    for trial in range(1500):
        rows, columns = (int(torch.randint(1, 9, (1,), generator=generator)) for _ in range(2))
        matrix = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        if trial % 3 == 0:
            matrix = torch.linalg.qr(matrix)[0]
        if trial % 3 == 1:
            matrix = matrix[:, :1] * matrix[:1]
        truth = exact_norm(matrix)
        assert spectral_norm(matrix).bound >= truth
        assert spectral_norm(matrix, 1e-15).bound >= truth
        assert float(spectral_norms(matrix[None], trial % 40)[0]) >= truth
