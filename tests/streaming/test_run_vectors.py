"""`tvgrad.gram` on runs and files, against numpy on the same tensors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tvgrad
from tests.traced_runs import Traced, digits, digits_cache, tampered, traced
from tvgrad.errors import TvgradError
from tvgrad.store.run import Run
from tvgrad.streaming.run_vectors import vectors_of
from tvgrad.streaming.vector_key import VectorKey

__all__ = ["digits", "digits_cache", "tampered", "traced"]


def flat(path: Path) -> NDArray[np.float64]:
    content = load_file(path)
    return np.concatenate([content[name].double().numpy().ravel() for name in sorted(content)])


def by_label(run: Run) -> dict[str, NDArray[np.float64]]:
    """label -> vector, for a run with all of its epochs."""
    weights = [flat(path) for path in sorted((run.root / "weights").iterdir())]
    found = {}
    for folder, kind, start in (("gradients", "gradient", 0), ("epoch_gradients", "epoch_gradient", 1)):
        for epoch, path in enumerate(sorted((run.root / folder).glob("*.safetensors")), start):
            found[f"{run.name}:{kind}:{epoch}"] = flat(path)
    for epoch in range(1, len(weights)):
        found[f"{run.name}:task_vector:{epoch}"] = weights[epoch] - weights[0]
        if epoch > 1:
            found[f"{run.name}:displacement:{epoch}"] = weights[epoch] - weights[epoch - 1]
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-7), ("bfloat16", 1e-7)])
def test_inner_products_of_two_runs(traced: Traced, dtype: str, tolerance: float) -> None:
    record = ("gradients", "epoch-gradients")
    runs = [traced("low", dtype=dtype, record=record), traced("rotated", dtype=dtype)]
    result = tvgrad.gram(runs)
    expected = by_label(runs[0]) | by_label(runs[1])
    assert set(result.labels) == set(expected)
    rows = np.stack([expected[label] for label in result.labels])
    scale = np.sqrt(np.outer(np.sum(rows**2, 1), np.sum(rows**2, 1)))
    assert np.max(np.abs(result.matrix - rows @ rows.T) / scale) < tolerance
    np.testing.assert_allclose(sum(result.groups.values()), result.matrix, rtol=1e-12, atol=1e-12 * scale.max())


def test_residuals_of_every_task_vector(traced: Traced) -> None:
    run = traced("rotated", dtype="float64")
    result, expected = tvgrad.gram(run), by_label(run)
    gradient = expected["rotated:gradient:0"]
    for epoch in (1, 2, 3):
        tau = expected[f"rotated:task_vector:{epoch}"]
        residual = np.linalg.norm(tau - (tau @ gradient) / (gradient @ gradient) * gradient)
        pair = result.index(f"rotated:task_vector:{epoch}"), result.index("rotated:gradient:0")
        assert result.residuals[pair]["all"] == pytest.approx(residual, rel=1e-6, abs=1e-16)
        assert pair == (result.index(VectorKey("rotated", "task_vector", epoch)), result.index(result.keys[pair[1]]))


def test_every_way_to_name_a_run(traced: Traced) -> None:
    run = traced("rotated")
    whole = tvgrad.gram(run)
    for given in (run.root, str(run.root), [run], (run.root,), run.root.parent):
        assert np.array_equal(tvgrad.gram(given).matrix, whole.matrix)
    assert tvgrad.gram(run, groups="bias|weight").groups.keys() == {"bias", "weight"}


def test_runs_of_one_name_get_labels_of_their_own(traced: Traced) -> None:
    result = tvgrad.gram(traced("rotated"), traced("rotated", dtype="float64"))
    assert "rotated:gradient:0" in result.labels
    assert "rotated (2):gradient:0" in result.labels


def test_plain_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        content = {f"layer.{i}.weight": torch.randn(7, 3, generator=generator) for i in range(2)}
        save_file(content, tmp_path / f"{name}.safetensors")
    result = tvgrad.gram(tmp_path / "a.safetensors", str(tmp_path / "b.safetensors"))
    rows = np.stack([flat(tmp_path / "a.safetensors"), flat(tmp_path / "b.safetensors")])
    assert result.labels == ("a.safetensors", "b.safetensors")
    assert set(result.groups) == {"layer.0", "layer.1"}
    np.testing.assert_allclose(result.matrix, rows @ rows.T, rtol=1e-7)
    twice = tvgrad.gram(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    assert len(set(twice.labels)) == 2
    assert twice.matrix[0, 1] == twice.matrix[0, 0]


def test_a_run_and_a_file_of_the_same_model(traced: Traced) -> None:
    run = traced("rotated")
    result = tvgrad.gram(run, run.root / "gradients/epoch-0000.safetensors")
    assert result.cosine("rotated:gradient:0", "epoch-0000.safetensors") == pytest.approx(1.0, abs=1e-12)


def test_refusals(tmp_path: Path, traced: Traced) -> None:
    with pytest.raises(TvgradError, match="nothing to multiply"):
        tvgrad.gram()
    with pytest.raises(TvgradError, match="nothing to multiply"):
        tvgrad.gram([])
    with pytest.raises(TvgradError, match="does not exist"):
        tvgrad.gram(tmp_path / "nowhere")
    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(TvgradError, match="give files of the same model"):
        tvgrad.gram(traced("rotated"), tmp_path / "other.safetensors")


def test_displacements_join_what_was_kept(traced: Traced) -> None:
    with ExitStack() as stack:
        found = vectors_of(traced("rotated", epochs=6, keep="epochs:0,1,2,5"), stack, "x")
        assert found.before == {1: 0, 2: 1, 6: 5}
        assert found.keys["displacement", 1] == found.keys["task_vector", 1] == VectorKey("x", "task_vector", 1)
        assert str(found.keys["displacement", 2]) == "x:displacement:2"
        assert ("displacement", 5) not in found.keys
        first = VectorKey("x", "gradient", 0)
        assert found.projections == [(VectorKey("x", "task_vector", epoch), first) for epoch in (1, 2, 5, 6)]
    with ExitStack() as stack:
        run = traced("rotated", epochs=2, optimizer="sgd", batch_size=300, record_at="steps:2,5")
        found = vectors_of(run, stack)
        assert found.before == {2: 0, 5: 2}
        assert found.keys["displacement", 2] == VectorKey("rotated", "task_vector", 2)


def test_a_run_without_pretrained_weights_is_refused(traced: Traced) -> None:
    run = Run.open(traced("rotated").root)
    run.having = lambda kind: [1, 2]  # type: ignore[method-assign]
    with ExitStack() as stack, pytest.raises(TvgradError, match="has no pretrained weights"):
        vectors_of(run, stack)
