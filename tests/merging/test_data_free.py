"""WUDI, isotropic merging and model stock against their definitions, computed in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tvgrad import TvgradError
from tvgrad.merging import METHODS, isotropic, merge_vectors, model_stock, wudi, wudi_objective
from tvgrad.merging.wudi import wudi_iterated

SHAPES = ((5, 7), (7, 5), (12, 4), (3, 30))


def drawn(
    shape: tuple[int, ...], tasks: int = 3, seed: int = 0, rank: int | None = None
) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(tasks):
        matrix = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if rank is not None:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            matrix = u[:, :rank] * s[:rank] @ vt[:rank]
        found.append({"w": matrix, "bias": torch.randn(shape[0], generator=generator, dtype=torch.float64)})
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 1])
def test_wudi_is_below_the_published_iteration(shape: tuple[int, int], rank: int | None) -> None:
    for tasks in (2, 4):
        vectors = drawn(shape, tasks, seed=tasks, rank=rank)
        rows = torch.stack([one["w"] for one in vectors])
        closed = wudi_objective(vectors, wudi(vectors))["w"]
        for rate in (1e-5, 1e-3):
            assert closed < wudi_objective(vectors, {"w": wudi_iterated(rows, rate=rate)})["w"]


@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_is_where_the_gradient_vanishes_nearest_to_the_sum(shape: tuple[int, int]) -> None:
    vectors = drawn(shape, 2, rank=2)
    merged = wudi(vectors)["w"].requires_grad_()
    # The objective written out with norms, and differentiated by autograd.
    terms = [((merged - v["w"]) @ v["w"].T).norm() ** 2 / v["w"].norm() ** 2 for v in vectors]
    [gradient] = torch.autograd.grad(sum(terms), merged)
    assert float(gradient.norm()) < 1e-14
    assert wudi_objective(vectors, {"w": merged.detach()})["w"] == pytest.approx(float(sum(terms)), rel=1e-9)
    # What is added to the sum lies in the span of the tasks' rows: nothing shorter would do.
    basis = torch.linalg.svd(torch.cat([v["w"] for v in vectors]), full_matrices=False)[2][:4]
    step = merged.detach() - sum(v["w"] for v in vectors)
    assert float((step - step @ basis.T @ basis).norm()) < 1e-14


def test_wudi_of_zero_vectors_and_of_vectors() -> None:
    zero = [{"w": torch.zeros(3, 4)}, {"w": torch.zeros(3, 4)}]
    assert not wudi(zero)["w"].any()
    assert wudi_objective(zero, wudi(zero)) == {"w": 0.0}
    vectors = drawn((3, 4))
    mean = sum(one["bias"] for one in vectors) / 3
    for method in (wudi, isotropic):
        assert torch.allclose(method(vectors)["bias"], mean, rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_isotropic_is_the_polar_factor_times_the_mean_singular_value(shape: tuple[int, int]) -> None:
    vectors = drawn(shape)
    summed = sum(one["w"] for one in vectors)
    tall = summed if shape[0] >= shape[1] else summed.T
    values, axes = np.linalg.eigh((tall.T @ tall).numpy())
    root = (axes / np.sqrt(values)) @ axes.T  # (M'M)^(-1/2)
    polar = tall.numpy() @ root * np.sqrt(values).mean()
    found = isotropic(vectors)["w"].numpy()
    assert np.abs(found - (polar if shape[0] >= shape[1] else polar.T)).max() < 1e-13


def test_isotropic_leaves_out_what_no_task_uses() -> None:
    vectors = [{"w": torch.tensor([[3.0, 0.0], [0.0, 0.0]])}, {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}]
    assert torch.allclose(isotropic(vectors)["w"], torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double(), atol=1e-12)


@pytest.mark.parametrize("cosine", [0.0, 0.2, 0.9, 1.0])
def test_model_stock_of_two_is_the_projection_on_their_plane(cosine: float) -> None:
    """Of two vectors of one length the ratio is 2 cos / (1 + cos)."""
    vectors = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0])]
    found = model_stock([{"w": one.double()} for one in vectors])["w"]
    assert torch.allclose(found, 2 * cosine / (1 + cosine) * (vectors[0] + vectors[1]).double() / 2, atol=1e-7)


def test_model_stock_of_several_and_of_opposed_ones() -> None:
    vectors = drawn((4, 6), tasks=4, seed=3)
    shared = 3 * vectors[0]["bias"]
    made = [{"bias": one["bias"] + shared} for one in vectors]
    table = np.stack([one["bias"].numpy() for one in made])
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[np.triu_indices(4, 1)].mean()
    assert np.abs(model_stock(made)["bias"].numpy() - 4 * cosine / (1 + 3 * cosine) * table.mean(0)).max() < 1e-14
    assert not model_stock([{"w": torch.ones(3)}, {"w": -2 * torch.ones(3)}])["w"].any()
    assert not model_stock([{"w": torch.ones(3)}, {"w": torch.zeros(3)}])["w"].any()
    with pytest.raises(TvgradError, match="model_stock merges at least 2 tasks"):
        model_stock([{"w": torch.ones(3)}])


def test_model_stock_merges_parameters_that_are_scalars() -> None:
    def merged(*values: float) -> float:
        found = model_stock([{"scale": torch.tensor(value, dtype=torch.float64)} for value in values])["scale"]
        assert found.shape == ()
        return float(found)

    assert merged(1.0, 2.0) == 1.5  # a cosine of 1: the mean
    assert merged(1.0, 2.0, 3.0) == 2.0
    assert merged(1.0, -2.0) == 0.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("meta_gpt", "the squared lengths of these task vectors do not fit into float64"),
        ("centred_clip", "the squared lengths of these task vectors do not fit into float64"),
        ("vector_bases", "the squared lengths of these task vectors do not fit into float64"),
        ("disentangled", "the squared lengths of these task vectors do not fit into float64"),
    ],
)
@pytest.mark.parametrize("scale", [1e159, 1e150, 1e-170, 1e-300])
def test_what_cannot_be_squared_is_one_sentence(name: str, said: str, scale: float) -> None:
    """Squares of small entries are 0, which made other weights of the tasks; products of large ones overflowed."""
    vectors = [{"w": (torch.arange(12.0).double().reshape(4, 3) + seed) * scale} for seed in range(2)]
    with pytest.raises(TvgradError, match=said) as raised:
        merge_vectors(METHODS[name](), vectors)
    assert "\n" not in str(raised.value)
    zero = {"w": torch.zeros(4, 3)}
    assert not merge_vectors(METHODS[name](), [zero, zero])["w"].any()


@pytest.mark.parametrize("name", ["wudi", "slerp", "model_stock"])
@pytest.mark.parametrize("scale", [2.0**500, 2.0**600, 2.0**-500, 2.0**-600, 2.0**-1000])
def test_methods_of_angles_merge_entries_of_any_size(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = [{"w": torch.randn(4, 3, generator=generator).double()} for _ in range(2)]
    plain = merge_vectors(METHODS[name](), vectors)["w"]
    found = merge_vectors(METHODS[name](), [{"w": one["w"] * scale} for one in vectors])["w"] / scale
    assert float((found - plain).norm() / plain.norm()) < 1e-13
    uneven = merge_vectors(METHODS[name](), [vectors[0], {"w": vectors[1]["w"] * scale}])["w"]
    assert torch.isfinite(uneven).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["meta_gpt", "centred_clip", "vector_bases", "disentangled"])
@pytest.mark.parametrize("scale", [1e138, 1e-138])
def test_lengths_that_fit_are_used_without_overflow(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = [{"w": torch.randn(4, 3, generator=generator).double()} for _ in range(3)]
    found = merge_vectors(METHODS[name](), [{"w": one["w"] * scale} for one in vectors])["w"] / scale
    assert torch.isfinite(found).all()
    if name != "disentangled":  # whose penalty is in units of length
        plain = merge_vectors(METHODS[name](), vectors)["w"]
        assert float((found - plain).norm() / plain.norm()) < 1e-9


def test_the_published_iteration_takes_task_vectors_that_are_zero() -> None:
    """The gradient of its quotient was 0/0, and the result NaN."""
    rows = torch.stack([torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])]).double()
    merged = wudi_iterated(rows)
    vectors = [{"w": row} for row in rows]
    assert torch.isfinite(merged).all()
    assert wudi_objective(vectors, wudi(vectors))["w"] <= wudi_objective(vectors, {"w": merged})["w"]
