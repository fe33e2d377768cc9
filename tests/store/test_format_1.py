"""Format 1 stays readable: a run directory as version 0.1 wrote it, put together here by hand, without the writer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tvgrad
from tvgrad.store.run import Run

START = {"layer.weight": np.array([[1.0, -2.0], [0.5, 4.0]]), "layer.bias": np.array([0.25, -0.5])}
GRADIENT = {"layer.weight": np.array([[0.5, 0.25], [-1.0, 2.0]]), "layer.bias": np.array([1.0, 0.0])}
RATE = 0.125


def written(root: Path, relative: str, content: dict[str, np.ndarray[Any, Any]] | str) -> dict[str, Any]:
    path = root / relative
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        save_file(content, path)
    return {
        "path": relative,
        "parts": [[relative, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size]],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "old"
    root.mkdir()
    tuned = {name: START[name] - RATE * GRADIENT[name] for name in START}  # exact: powers of two
    points: list[dict[str, Any]] = [
        {
            "number": 0,
            "steps": 0,
            "files": {
                "weights": written(root, "weights/epoch-0000.safetensors", START),
                "gradient": written(root, "gradients/epoch-0000.safetensors", GRADIENT),
            },
            "metrics": {"loss": 1.5, "seconds": 0.25},
        },
        {
            "number": 1,
            "steps": 1,
            "files": {
                "weights": written(root, "weights/epoch-0001.safetensors", tuned),
                "steps": written(
                    root,
                    "steps/epoch-0001.csv",
                    f"step,lr,batch_size,clip_factor,loss_scale,skipped\n1,{RATE},20,,,\n",
                ),
            },
            "metrics": {"loss": "nan"},
        },
    ]
    content = {
        "format": "tvgrad run",
        "version": 1,
        "info": {
            "name": "old",
            "rule": {"name": "gd", "lr": RATE},
            "dtype": "float64",
            "device": "cpu",
            "record": ["gradients"],
            "consumes_recorded_gradient": True,
            "a fact that a later version adds": [1, 2],
        },
        "unit": "epoch",
        "parameters": {
            "layer.weight": {"shape": [2, 2], "dtype": "float64", "group": "layer"},
            "layer.bias": {"shape": [2], "dtype": "float64", "group": "layer"},
        },
        "tied": {"alias.bias": "layer.bias"},
        "points": points,
        "static": written(root, "static.safetensors", {"head.weight": np.ones(3)}),
        "state": None,
        "finished": True,
    }
    (root / "run.json").write_text(json.dumps(content))
    return root


def test_it_opens_whole(root: Path) -> None:
    run = Run.open(root)
    assert run.problems() == []
    assert (run.name, run.unit, run.epochs, run.manifest.finished) == ("old", "epoch", [0, 1], True)
    assert list(run.parameters) == ["layer.weight", "layer.bias"]
    for name, tensor in run.task_vector(1).items():
        np.testing.assert_array_equal(tensor.numpy(), -RATE * GRADIENT[name])
    assert set(run.complete(1)) == {"layer.weight", "layer.bias", "alias.bias", "head.weight"}
    assert run.steps(1)["lr"].tolist() == [RATE]
    assert run.metrics["loss"][0] == 1.5
    assert np.isnan(run.metrics["loss"][1])


def test_it_verifies_and_reports(root: Path) -> None:
    (verdict,) = tvgrad.check_one_epoch(Run.open(root)).verdicts
    assert (verdict.holds, verdict.worst_ratio_to_budget, verdict.frozen_share) == ("exact", 0.0, 0.0)
    found = tvgrad.gram(root)
    assert found.cosine("old:gradient:0", "old:task_vector:1") == -1.0
    assert found.norm("old:gradient:0") == pytest.approx(np.sqrt(sum((g**2).sum() for g in GRADIENT.values())))
