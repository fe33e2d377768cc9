"""Odd recipes, numbers and places in commands that compute: a result, or one sentence with exit code 1 or 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcomes import sentence

Tvgrad = Callable[..., Any]
RECIPES = """
import torch, tvgrad
from torch import nn
X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


class Net(nn.Module):
    def __init__(self, **beside):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        for name, tensor in beside.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x):
        output = self.linear(x)
        for tensor in self._parameters.values():
            output = output + tensor.sum() * x[:, :2]
        return output


def of(model): return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (X, Y), name="odd", lr=0.1, epochs=1)
def scalar(): return of(Net(temperature=torch.tensor(1.0)))
def empty(): return of(Net(nothing=torch.zeros(0), more=torch.zeros(3, 0, 2)))
"""


@pytest.fixture
def odd(tmp_path: Path) -> str:
    (tmp_path / "odd.py").write_text(RECIPES)
    return str(tmp_path / "odd.py")


@pytest.mark.parametrize("kind", ["scalar", "empty"])
def test_scalar_and_empty_parameters(tvgrad: Tvgrad, odd: str, tmp_path: Path, kind: str) -> None:
    import json

    of, run = f"{odd}:{kind}", tmp_path / "run"
    assert tvgrad("trace", of, "--out", run, "--quiet").code == 0
    made = tvgrad("attribute", run, "--recipe", of, "--json")
    assert made.code == 0
    told = json.loads(made.out)
    # one full-batch step of gradient descent: the shares are all there is, but for rounding of float32 weights
    assert math.fsum(told["shares"]) + told["rest"] == pytest.approx(1, abs=1e-12)
    assert abs(told["rest"]) < 1e-5
    for more in ((), ("--optimizer", "adamw", "--lr", "1e-3")):
        bounded = tvgrad("bound", of, "--json", *more)
        assert bounded.code == 0
        (row,) = json.loads(bounded.out)["bounds"]
        assert 0 <= row["lower_bound"] <= row["error_bound"] < math.inf


def test_numbers_beyond_all_that_can_be_done(tvgrad: Tvgrad, odd: str, tmp_path: Path) -> None:
    of, many = f"{odd}:scalar", "9" * 30
    for command in (["predict"], ["bound"], ["plan"], ["trace", "--out", tmp_path / "run"]):
        said = sentence(tvgrad(command[0], of, *command[1:], "--epochs", many))
        assert "epochs" in said
        assert said.endswith("is more than can be done: give at most 10,000,000")
    assert tvgrad("bound", of, "--batch-size", many, "--epochs", 1).code == 0  # all samples at once


def test_links_that_lead_round_in_a_circle(tvgrad: Tvgrad, tmp_path: Path) -> None:
    for name in ("loop.py", "loop", "loop.safetensors"):
        (tmp_path / name).symlink_to(name)
    for words in (["predict", "loop.py"], ["verify", "loop"], ["report", "loop"], ["relate", "loop", "loop"],
                  ["report", "--pretrained", "loop.safetensors", "loop.safetensors"]):  # fmt: skip
        said = sentence(tvgrad(*[tmp_path / word if word.startswith("loop") else word for word in words]))
        assert "loop" in said
