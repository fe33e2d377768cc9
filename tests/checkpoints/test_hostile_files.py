"""Checkpoints of strangers: archives that unpack to more than they are, tensors larger than their file, and links."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tvgrad.checkpoints.adapter_config import scale_of
from tvgrad.checkpoints.carried import carried_files
from tvgrad.checkpoints.opening import read_checkpoint
from tvgrad.checkpoints.torch_files import load_tensors
from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import group_names

pytestmark = pytest.mark.timeout(20)


def test_an_archive_that_is_packed_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 18)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    assert load_tensors(tmp_path / "plain.pt")["w"].numel() == 1 << 18
    with pytest.raises(TvgradError, match=r"bomb\.pt unpacks to more than its size"):
        load_tensors(tmp_path / "bomb.pt")


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt")
    with pytest.raises(TvgradError, match="has a tensor 'w' that is larger than the file"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(2).to_sparse(), "a sparse_coo one"),
        (lambda: torch.eye(2).to_sparse_csr(), "a sparse_csr one"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "a nested one"),
        (lambda: torch.empty(2, device="meta"), r"an empty one \(on the meta device\)"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"quantised \(qint8\)"),
    ],
)
def test_a_tensor_without_plain_values(tmp_path: Path, make: Callable[[], torch.Tensor], what: str) -> None:
    torch.save({"b": torch.ones(1), "w": make()}, tmp_path / "x.pt")
    with pytest.raises(TvgradError, match=rf"x\.pt has a tensor 'w' that is {what}: write dense tensors"):
        read_checkpoint(tmp_path / "x.pt")


def test_many_tensors_that_are_larger_together_than_their_file(tmp_path: Path) -> None:
    one = torch.zeros(1 << 10)
    torch.save({f"w{i}": one.expand(1 << 13, -1) for i in range(4)}, tmp_path / "x.pt")  # 32 MB each, once copied
    with pytest.raises(TvgradError, match="larger than the file"):
        load_tensors(tmp_path / "x.pt")
    torch.save({"w": torch.arange(6.0).reshape(2, 3).t(), "v": one.expand(8, -1)}, tmp_path / "y.pt")
    assert read_checkpoint(tmp_path / "y.pt")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("pattern", ["a{99999999999999999999}", "(" * 5000 + ")" * 5000])
def test_a_pattern_that_cannot_be_compiled(pattern: str) -> None:
    with pytest.raises(TvgradError, match="alpha_pattern of the adapter cannot be read"):
        scale_of({"alpha_pattern": {pattern: 8}}, "q_proj", 2)
    with pytest.raises(TvgradError, match="is not a regular expression"):
        group_names(["q_proj"], pattern)


@pytest.mark.parametrize(
    "pattern", ["(.*a+)+b", "a?" * 40 + "a" * 40, "(a|a)" * 40, ".*.*.*.*.*.*b", "(a|b|ab)*c", "(a{1,9}){1,9}b"]
)
def test_a_pattern_that_may_never_end(pattern: str) -> None:
    with pytest.raises(TvgradError, match="may take too long to compare with a name of 40 letters"):
        scale_of({"alpha_pattern": {pattern: 8}}, "a" * 40, 2)


@pytest.mark.parametrize("pattern", ["q_proj", r"layers\.(0|1|2|3)\.(q|k|v)_proj", r".*layers.\d+.q_proj", "^.*q_proj"])
def test_patterns_of_names_are_compared(pattern: str) -> None:
    found = scale_of({"alpha_pattern": {pattern: 6}}, "model.layers.3.q_proj", 2)
    assert found == 3


def test_shards_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for index, shard in (("model.safetensors", "pipe.safetensors"), ("pytorch_model.bin", "pipe.bin")):
        path = tmp_path / f"{index}.index.json"
        path.write_text(json.dumps({"weight_map": {"w": shard}}))
        with pytest.raises(TvgradError, match="it is a pipe and no regular file"):
            read_checkpoint(path)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(TvgradError, match="does not exist"):
            read_checkpoint(path)


def test_a_merge_carries_no_file_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    cache = tmp_path / "models--x"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0a").write_text("{}")
    snapshot = cache / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0a")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    (snapshot / "vocab.json").write_text("{}")
    assert carried_files(snapshot) == ["config.json", "vocab.json"]
