"""A run as the first release wrote it, kept in `format_1`: every command that reads runs reads it for ever after.

A linear layer with a batch norm, two epochs of gradient descent with learning rate 1/8; the expected values are of the
files alone, read by the safetensors library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tvgrad.cli.main import main

KEPT = Path(__file__).with_name("format_1")
RATE = 0.125


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(KEPT, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        code: object = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code or 0
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    return run


Call = Callable[..., tuple[int, str, str]]


def test_it_is_of_version_1_and_its_first_step_is_the_formula() -> None:
    assert json.loads((KEPT / "run.json").read_text())["version"] == 1
    start, end = (load_file(KEPT / f"weights/epoch-000{epoch}.safetensors") for epoch in (0, 1))
    gradient = load_file(KEPT / "gradients/epoch-0000.safetensors")
    for name in start:
        torch.testing.assert_close(end[name], start[name] - RATE * gradient[name], rtol=0, atol=1e-7)


def test_it_is_verified_and_reported(root: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call("verify", root)
    assert (code, err) == (0, "")
    assert "The run passes." in out
    code, out, err = call("report", root)
    assert (code, err) == (0, "")
    gradients = (load_file(KEPT / f"gradients/epoch-000{epoch}.safetensors") for epoch in (0, 1))
    for gradient in gradients:
        norm = sum(float((part.double() ** 2).sum()) for part in gradient.values()) ** 0.5
        assert f"{norm:.3g}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_it_is_exported_and_merged(root: Path, call: Call, tmp_path: Path) -> None:
    whole = {**load_file(KEPT / "weights/epoch-0002.safetensors"), **load_file(KEPT / "static.safetensors")}
    assert call("export", root, "--epoch", "2", "--out", tmp_path / "exported")[0] == 0
    (path,) = (tmp_path / "exported").glob("*.safetensors")
    exported = load_file(path)
    assert exported.keys() == whole.keys()
    assert all(torch.equal(exported[name], whole[name]) for name in whole)
    merged = tmp_path / "m.safetensors"
    assert call("merge", root, "--epoch", "2", "--method", "mean", "--out", merged)[0] == 0
    for name, tensor in load_file(merged).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("command", ["verify", "report", "export", "merge"])
def test_a_run_of_a_later_version_is_refused_with_what_to_do(
    root: Path, call: Call, command: str, tmp_path: Path
) -> None:
    content = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps({**content, "version": 999}))
    more = {
        "export": ("--epoch", 1, "--out", tmp_path / "e"),
        "merge": ("--epoch", 1, "--out", tmp_path / "m.safetensors"),
    }
    words = (*more.get(command, ()), *(("--method", "mean") if command == "merge" else ()))
    code, out, err = call(command, root, *words)
    assert code in (1, 2)
    assert "has format version 999 and this tvgrad reads version 1: use the tvgrad that wrote it" in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
