"""A run directory read back, by this library and by one that knows numpy and safetensors only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import tvgrad
from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.run import Run, open_runs

Traced = Callable[..., Run]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_alone_finds_the_first_task_vector_in_the_gradient(tmp_path: Path, traced: Traced, dtype: str) -> None:
    """w1 = w0 - lr g0 up to the rounding of one product and one difference."""
    traced(tmp_path, dtype=dtype, lr=0.3)
    start = load_file(tmp_path / "weights" / "epoch-0000.safetensors")
    after = load_file(tmp_path / "weights" / "epoch-0001.safetensors")
    gradient = load_file(tmp_path / "gradients" / "epoch-0000.safetensors")
    lr = json.loads((tmp_path / "run.json").read_text())["info"]["rule"]["lr"]
    assert (lr, set(start)) == (0.3, {"0.weight", "0.bias"})
    half_ulp = np.longdouble(np.finfo(dtype).eps) / 2
    moved = False
    for name, weight in start.items():
        assert weight.dtype == after[name].dtype == gradient[name].dtype == np.dtype(dtype)
        wide, step = weight.astype(np.longdouble), np.longdouble(lr) * gradient[name].astype(np.longdouble)
        # The rate and the product are rounded at most once each, the difference once.
        budget = half_ulp * (np.abs(after[name]) + 2 * np.abs(step)) * 1.000001
        assert (np.abs(after[name].astype(np.longdouble) - (wide - step)) <= budget).all()
        moved |= bool((np.abs(step) > 1000 * budget).any())
    assert moved


def test_what_was_trained_is_what_is_read(tmp_path: Path, make_recipe: Callable[..., tvgrad.Recipe]) -> None:
    """The recorded files against a loop written here with nothing but PyTorch."""
    recipe = make_recipe()
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.training_loop import prepare, trace

    run = trace(prepare(recipe, TraceOptions(epochs=4, dtype="float64", chunk_size=20)), tmp_path)
    model = make_recipe().model.double()
    inputs, targets = recipe.train.batch(0, 20)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for epoch in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.double()), targets)
        loss.backward()
        assert run.metrics["loss"][epoch] == pytest.approx(loss.item(), rel=1e-14)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(run.weights(epoch)[name], parameter.detach(), rtol=0, atol=1e-14)
                torch.testing.assert_close(run.gradient(epoch)[name], parameter.grad, rtol=0, atol=1e-14)
        optimizer.step()
    assert all(torch.equal(run.task_vector(4)[n], run.weights(4)[n] - run.weights(0)[n]) for n in run.parameters)
    assert all(tensor.dtype == torch.float64 for tensor in run.task_vector(1).values())


def test_properties(tmp_path: Path, traced: Traced) -> None:
    run = traced(tmp_path / "here", lr=0.25)
    assert (run.name, run.unit, run.epochs, len(run.points)) == ("small", "epoch", [0, 1, 2, 3], 4)
    assert run.rule == tvgrad.update_rules.GD(0.25)
    assert {name: (p.shape, p.dtype, p.group) for name, p in run.parameters.items()} == {
        "0.weight": ((7, 5), "float32", "0"),
        "0.bias": ((7,), "float32", "0"),
    }
    assert run.groups("(weight|bias)") == {"0.weight": "weight", "0.bias": "bias"}
    assert list(run.static()) == ["2.bias", "2.weight"]
    assert run.manifest.finished
    assert run.info["versions"]["torch"] == torch.__version__
    assert run.info["fingerprint"].startswith("sha256:all:")
    assert (run.info["samples"], run.info["chunk_size"], run.info["seed"]) == (20, 8, 0)
    assert list(run.metrics["epoch"]) == [0, 1, 2, 3]
    assert run.metrics["loss"].is_monotonic_decreasing
    table = (tmp_path / "here" / "metrics.csv").read_text().splitlines()
    assert table[0].split(",")[:2] == ["epoch", "loss"]
    assert table[2].split(",")[1] == repr(float(run.metrics["loss"][1]))


def test_a_complete_checkpoint_loads_into_the_model(
    tmp_path: Path, traced: Traced, make_recipe: Callable[..., Any]
) -> None:
    run = traced(tmp_path)
    model = make_recipe().model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(run.complete(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.load_state_dict(run.complete(3))
    assert torch.equal(model[0].weight, run.weights(3)["0.weight"])
    assert torch.equal(model[2].weight, before["2.weight"])


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[10] ^= 0x40
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip_last,
    "header": flip_header,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["weights/epoch-0002", "gradients/epoch-0000", "static", "state/epoch-0003"])
def test_every_damage_is_found(tmp_path: Path, traced: Traced, kind: str, damage: Callable[[Path], object]) -> None:
    run = traced(tmp_path)
    damage(tmp_path / f"{kind}.safetensors")
    problems = Run.open(tmp_path).problems()
    assert len(problems) == 1
    assert problems[0].startswith(f"{kind}.safetensors ")
    assert run.weights(1)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "header"])
def test_a_damaged_file_is_refused_when_it_is_read(tmp_path: Path, traced: Traced, damage: str) -> None:
    run = traced(tmp_path)
    DAMAGES[damage](tmp_path / "weights" / "epoch-0002.safetensors")
    with pytest.raises(DamagedRun, match=r"epoch-0002\.safetensors") as caught:
        run.weights(2)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_model_is_found(tmp_path: Path, traced: Traced) -> None:
    """A checksum that was made to fit does not make the content fit."""
    from tvgrad.files.writing import write_tensors
    from tvgrad.store.manifest import FileEntry

    run = traced(tmp_path)
    path = write_tensors({"0.weight": torch.zeros(7, 5)}, tmp_path / "weights" / "epoch-0001.safetensors")
    content = json.loads((tmp_path / "run.json").read_text())
    content["points"][1]["files"]["weights"]["parts"] = [list(FileEntry.of(tmp_path, path).parts[0])]
    (tmp_path / "run.json").write_text(json.dumps(content))
    run = Run.open(tmp_path)
    assert run.problems() == ["weights/epoch-0001.safetensors does not hold the run's parameters"]
    with pytest.raises(DamagedRun, match=r"does not fit the run: '0\.bias' is in one and not in the other"):
        run.weights(1)


def test_a_damaged_table_of_steps_is_refused(tmp_path: Path, traced: Traced) -> None:
    run = traced(tmp_path)
    (tmp_path / "steps" / "epoch-0002.csv").write_text("")
    with pytest.raises(DamagedRun, match=r"epoch-0002\.csv cannot be read"):
        run.steps()
    (tmp_path / "steps" / "epoch-0002.csv").unlink()
    with pytest.raises(DamagedRun, match=r"epoch-0002\.csv cannot be read"):
        run.steps()


def test_without_the_pretrained_weights_there_are_no_task_vectors(tmp_path: Path, traced: Traced) -> None:
    traced(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    content["points"] = content["points"][1:]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert Run.open(tmp_path).problems() == ["the pretrained weights (epoch 0) are missing"]


def test_directories_of_runs(tmp_path: Path, traced: Traced) -> None:
    for name in ("b", "a"):
        traced(tmp_path / "runs" / name, epochs=1)
    (tmp_path / "runs" / "empty").mkdir()
    assert [run.root.name for run in open_runs([tmp_path / "runs"])] == ["a", "b"]
    assert [run.root.name for run in open_runs([tmp_path / "runs" / "b", tmp_path / "runs"])] == ["b", "a", "b"]
    with pytest.raises(TvgradError, match="missing does not exist: give the --out of a `tvgrad trace`"):
        open_runs([tmp_path / "missing"])
    with pytest.raises(TvgradError, match="is neither a run directory nor a directory of runs"):
        open_runs([tmp_path / "runs" / "empty"])
