"""Models with tensors of other kinds: recorded whole, or refused in one sentence before any training."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad.errors import DiskFull, TvgradError
from tvgrad.files import writing
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import _estimated_bytes, prepare, trace
from tvgrad.store.run import Run

INPUTS, TARGETS = torch.linspace(-1, 1, 60).reshape(12, 5), torch.arange(12) % 3
WORDS = torch.arange(48).reshape(12, 4) % 20


class Holder(nn.Module):
    """A linear model with something beside it."""

    def __init__(self, beside: torch.Tensor | nn.Module, name: str = "beside", *, persistent: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)
        if isinstance(beside, nn.Module):
            self.add_module(name, beside)
        elif isinstance(beside, nn.Parameter):
            self.register_parameter(name, beside)
        else:
            self.register_buffer(name, beside, persistent=persistent)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) + sum(part.sum() for part in self._parameters.values() if part.is_floating_point())


class Bag(nn.Module):
    """An embedding whose gradient is sparse, or dense."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(20, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(words).mean(1))


def recipe(model: nn.Module, inputs: torch.Tensor = INPUTS, **options: Any) -> tvgrad.Recipe:
    return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (inputs, TARGETS), name="odd", lr=0.1, **options)


def traced(model: nn.Module, directory: Path, inputs: torch.Tensor = INPUTS, **options: Any) -> Run:
    return trace(prepare(recipe(model, inputs), TraceOptions(epochs=2, chunk_size=4, **options)), directory)


def looped(model: nn.Module, directory: Path) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(directory, model, optimizer) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(INPUTS), TARGETS).backward()
            optimizer.step()
            recorder.end_epoch()
    return Run.open(directory)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sparse": (lambda: Holder(torch.eye(3).to_sparse()), "beside is a sparse_coo tensor"),
    "compressed": (lambda: Holder(torch.eye(3).to_sparse_csr()), "beside is a sparse_csr tensor"),
    "complex": (lambda: Holder(torch.zeros(3, dtype=torch.complex128)), "beside is of dtype complex128"),
    "quantised": (lambda: Holder(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "is of dtype qint8"),
    "meta buffer": (lambda: Holder(torch.zeros(3, device="meta")), "beside is on the meta device"),
    "meta": (lambda: Holder(nn.Linear(2, 2, device="meta")), "beside.weight is on the meta device"),
    "float8": (lambda: Holder(torch.zeros(3).to(torch.float8_e4m3fnuz)), "is of dtype float8_e4m3fnuz"),
    "reserved": (lambda: Holder(nn.Parameter(torch.zeros(3)), "__metadata__"), "__metadata__ has a name that"),
    "reserved buffer": (lambda: Holder(torch.zeros(3), "__metadata__"), "__metadata__ has a name that"),
    "half a character": (lambda: Holder(torch.zeros(3), "a\udcff"), "has a name with half a character"),
    "complex parameter": (
        lambda: Holder(nn.Parameter(torch.zeros(3, dtype=torch.complex64))),
        "beside is a complex parameter",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_file_holds_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    for record in (traced, looped):
        with pytest.raises(TvgradError, match=words) as caught:
            record(make(), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_a_lazy_parameter_is_refused_until_it_has_a_shape(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(TvgradError, match=r"0\.weight has no shape yet: run the model once on a batch"):
        tvgrad.Recorder(tmp_path / "run", model)
    model(INPUTS)
    assert looped(model, tmp_path / "run").problems() == []


RECORDED: dict[str, Callable[[], nn.Module]] = {
    "complex64": lambda: Holder(torch.arange(3).to(torch.complex64) * 1j),
    "float8": lambda: Holder(torch.arange(3.0).to(torch.float8_e5m2)),
    "unsigned": lambda: Holder(torch.arange(3).to(torch.uint16)),
    "no numbers": lambda: Holder(torch.full((3,), torch.nan)),
    "expanded": lambda: Holder(torch.ones(1).expand(4)),
    "sparse, not kept": lambda: Holder(torch.eye(3).to_sparse(), persistent=False),
    "scalar": lambda: Holder(nn.Parameter(torch.tensor(1.5))),
    "of size 0": lambda: Holder(nn.Parameter(torch.zeros(0, 3))),
    "integer": lambda: Holder(nn.Parameter(torch.arange(3), requires_grad=False)),
    "a long name": lambda: Holder(nn.Parameter(torch.zeros(3)), "n" * 10_000),
    "a line break": lambda: Holder(nn.Parameter(torch.zeros(3)), "a\nb"),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_what_files_hold_comes_back(tmp_path: Path, kind: str) -> None:
    for record in (traced, looped):
        run = record(RECORDED[kind](), tmp_path / record.__name__)
        assert run.problems() == []
        expected, found = RECORDED[kind]().state_dict(), run.complete(0)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert bytes_of(tensor) == bytes_of(found[name])


def bytes_of(tensor: torch.Tensor) -> list[int]:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


@pytest.mark.parametrize("options", [{"optimizer": "gd"}, {"optimizer": "adam", "batch_size": 4}])
def test_a_sparse_gradient_is_recorded_like_a_dense_one(tmp_path: Path, options: dict[str, Any]) -> None:
    record = ("gradients", "epoch-gradients")
    runs = [traced(Bag(sparse), tmp_path / str(sparse), WORDS, record=record, **options) for sparse in (False, True)]
    for number in (0, 1, 2):
        dense, sparse = (run.weights(number) for run in runs)
        assert all(torch.equal(dense[name], sparse[name]) for name in dense)
        dense, sparse = (run.gradient(number) for run in runs)
        assert all(torch.equal(dense[name], sparse[name]) for name in dense)
    dense, sparse = (run.epoch_gradient(1) for run in runs)
    assert all(torch.equal(dense[name], sparse[name]) for name in dense)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_space_that_is_asked_for_is_enough(tmp_path: Path, dtype: str) -> None:
    record = ("gradients", "epoch-gradients")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 400), nn.Tanh(), nn.Linear(400, 3))
    options = TraceOptions(epochs=6, dtype=dtype, record=record, chunk_size=4, optimizer="adam", batch_size=4)
    prepared = prepare(recipe(model), options)
    asked = _estimated_bytes(prepared, tmp_path / "run")
    trace(prepared, tmp_path / "run")
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    headers = 6000 + 8 * sum(1 for _ in (tmp_path / "run").rglob("*.safetensors")) * 64
    assert taken - headers < asked < 2 * taken


@pytest.mark.parametrize("step", ["write", "fsync", "chmod", "replace"])
def test_frozen_parameters_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if step == "write":
        monkeypatch.setattr(writing, "_save_stream", fails)
    else:
        monkeypatch.setattr(os, step, fails)
    with pytest.raises(DiskFull, match=r"run cannot be written \(.*Input/output error.*\)"):
        looped(Holder(torch.zeros(3)), tmp_path / "run")
