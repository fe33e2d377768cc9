"""Complete checkpoints for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import tvgrad
from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.export import export_checkpoint
from tvgrad.store.run import Run

Traced = Callable[..., Run]


class Configuration:
    """What a Hugging Face configuration looks like from outside."""

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "toy", "hidden_size": 4, "_name_or_path": "base/model: one"}


class Tied(nn.Module):
    """Tied names, a frozen parameter and statistics, as a checkpoint has to carry them."""

    config = Configuration()

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(self.embed(tokens))))


@pytest.fixture
def tied(tmp_path: Path, traced: Traced) -> Run:
    torch.manual_seed(0)
    tokens = torch.arange(18) % 6
    recipe = tvgrad.Recipe(Tied(), nn.CrossEntropyLoss(), (tokens, tokens.flip(0)), allow=("batchnorm",), lr=0.1)
    return traced(tmp_path / "run", recipe, optimizer="sgd", batch_size=6, keep="last:1")


def test_the_checkpoint_is_the_tuned_model(tmp_path: Path, tied: Run) -> None:
    written = export_checkpoint(tied, 3, tmp_path / "out")
    assert [path.name for path in written] == ["model.safetensors", "config.json", "mergekit.yaml"]
    content = load_file(tmp_path / "out" / "model.safetensors")
    model = Tied()
    assert set(content) == set(model.state_dict())
    model.load_state_dict(content)
    assert torch.equal(model.embed.weight, tied.weights(3)["embed.weight"])
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.norm.running_mean, tied.buffers(3)["norm.running_mean"])
    assert model.norm.num_batches_tracked == 9
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        **Configuration().to_dict(),
        "architectures": ["Tied"],
        "dtype": "float32",
    }
    merge = (tmp_path / "out" / "mergekit.yaml").read_text()
    assert 'base_model: "base/model: one"' in merge
    assert f'- model: "{tmp_path / "out"}"' in merge
    assert "dtype: float32" in merge


def test_the_files_of_the_hugging_face_libraries(tmp_path: Path, tied: Run) -> None:
    written = export_checkpoint(tied, 3, tmp_path / "out", base="someone/base")
    with safe_open(written[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}  # their loaders refuse a file without it
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["Tied"], "float32")
    merge = (tmp_path / "out" / "mergekit.yaml").read_text()
    assert 'base_model: "someone/base"\n' in merge
    assert "The run does not say" not in merge


def test_a_base_that_is_not_known_is_told(tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Configuration, "to_dict", lambda self: {"model_type": "toy", "architectures": ["Other"]})
    tokens = torch.arange(6)
    model = Tied().eval()
    recipe = tvgrad.Recipe(model, nn.CrossEntropyLoss(), (tokens, tokens), lr=0.1)
    run = traced(tmp_path / "run", recipe, dtype="float64")
    export_checkpoint(run, 1, tmp_path / "out")
    merge = (tmp_path / "out" / "mergekit.yaml").read_text()
    assert "# The run does not say where the pretrained model is: `tvgrad export RUN --epoch 0` writes it.\n" in merge
    assert "dtype" not in merge  # mergekit knows no float64
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Other"]


@pytest.mark.parametrize("kind", ["static", "buffers", "weights"])
def test_a_damaged_file_is_not_exported(tmp_path: Path, tied: Run, kind: str) -> None:
    entry = tied.manifest.static if kind == "static" else tied.point(3).files[kind]
    assert entry is not None
    path = tied.root / entry.path
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DamagedRun, match=rf"cannot be exported: {entry.path} does not have the checksum"):
        export_checkpoint(tied, 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_pretrained_model_comes_back_bit_for_bit(tmp_path: Path, tied: Run) -> None:
    export_checkpoint(tied, 0, tmp_path / "out")
    torch.manual_seed(0)
    start = Tied().state_dict()
    content = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(content[name], tensor) for name, tensor in start.items())


def test_a_model_without_configuration_is_weights_alone(tmp_path: Path, traced: Traced) -> None:
    run = traced(tmp_path / "run")
    assert [path.name for path in export_checkpoint(run, 1, tmp_path / "out")] == ["model.safetensors"]
    with pytest.raises(TvgradError, match=r"has no Hugging Face configuration, .*: leave out --base"):
        export_checkpoint(run, 1, tmp_path / "again", base="someone/base")


def test_refusals(tmp_path: Path, tied: Run) -> None:
    with pytest.raises(TvgradError, match="has no weights at epoch 1: it has them at 0, 3"):
        export_checkpoint(tied, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TvgradError, match="has no epoch 9"):
        export_checkpoint(tied, 9, tmp_path / "out")
    with pytest.raises(TvgradError, match="run is not an empty folder: choose another --out"):
        export_checkpoint(tied, 3, tmp_path / "run")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TvgradError, match="choose another --out"):
            export_checkpoint(tied, 3, place)
