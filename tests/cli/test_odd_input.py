"""Odd recipes, numbers and places in commands that compute: a result, or one sentence with exit code 1 or 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.cli.outcomes import sentence
from tvgrad.record import trace_cost

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


METRICS = """

def two(metric):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return [tvgrad.Recipe(model, nn.CrossEntropyLoss(), (X, Y), name=name, lr=0.1, epochs=1, test=(X, Y),
                          metric=metric) for name in ("one", "two")]


def word(): return two(lambda output, target: "good")
def rows(): return two(lambda output, target: output)
def fails(): return two(lambda output, target: output[99])
def none(): return two(lambda output, target: float("nan"))
def fine(): return two(None)
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("word", "the recipe's metric <lambda> gives a str: let it give one number, the mean over the batch"),
        ("rows", "the recipe's metric <lambda> gives a tensor of shape (6, 2): let it give one number"),
        ("fails", "the recipe's metric <lambda> failed (IndexError: "),
        ("none", ""),
    ],
)
def test_a_metric_that_gives_no_number(tvgrad: Tvgrad, odd: str, tmp_path: Path, kind: str, said: str) -> None:
    Path(odd).write_text(RECIPES + METRICS)
    assert tvgrad("trace", f"{odd}:fine", "--out", tmp_path / "runs", "--quiet").code == 0
    of, runs = f"{odd}:{kind}", [tmp_path / "runs" / name for name in ("one", "two")]
    search = ["merge", *runs, "--alpha", "search", "--recipe", of, "--out", tmp_path / "x.safetensors"]
    if kind == "none":
        assert "a score is not finite at the pretrained weights" in sentence(tvgrad("plan", of, "--on", "validation"))
        assert sentence(tvgrad(*search)).endswith(
            "no coefficient has a finite score: check the recipe's metric and its samples"
        )
        return
    for words in (["trace", of, "--out", tmp_path / "new", "--quiet"], ["plan", of, "--on", "validation"], search):
        found = sentence(tvgrad(*words))
        # one sample at a time, the shape is of one
        assert said.replace("6", "") in found.replace("6", "") or said.replace("6", "3") in found
    assert not (tmp_path / "x.safetensors").exists()


def test_many_epochs_are_reckoned_and_not_walked_through(
    tvgrad: Tvgrad, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = Mock(side_effect=trace_cost.bytes_on_disk)
    monkeypatch.setattr(trace_cost, "bytes_on_disk", sized)
    words = ["trace", f"{odd}:scalar", "--out", tmp_path / "run", "--cost", "--epochs", 1_000_000]
    told = tvgrad(*words, "--record", "gradients,epoch-gradients")
    assert told.code == 0
    assert "of tensor files (exact)" in told.out
    assert sized.call_count <= 10  # once for each length of a number
    assert not (tmp_path / "run").exists()


def test_rates_beyond_the_numbers(tvgrad: Tvgrad, odd: str) -> None:
    for rate, remedy in (("1e300", ": lower it, or give --dtype float64"), ("1e39", "give --dtype float64")):
        said = sentence(tvgrad("plan", f"{odd}:scalar", "--lr", rate))
        assert "is beyond the largest float32 number" in said
        assert said.endswith(remedy)
    bounded = tvgrad("bound", f"{odd}:scalar", "--lr", "1e30", "--epochs", 2)
    assert bounded.code == 0
    assert "Warning" not in bounded.err
