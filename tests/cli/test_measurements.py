"""`tvgrad plan --save FILE.safetensors` and `tvgrad merge --measurements FILE` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tvgrad.merging import load_measurements, regmean
from tvgrad.store.run import Run

WORDS = (
    "digits",
    "--tasks",
    "low,parity",
    "--chunk-size",
    "900",
    "--lr",
    "0.01",
    "--epochs",
    "2",
    "--dtype",
    "float64",
)


def test_measured_here_and_merged_without_data(
    tvgrad: Callable[..., Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    runs, saved, out = tmp_path / "runs", tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    assert tvgrad("trace", *WORDS, "--out", runs, "--quiet").code == 0
    done = tvgrad("plan", runs, "--recipe", "digits", "--save", saved)
    assert done.code == 0, done.err
    said = json.loads(saved.with_suffix(".json").read_text())
    assert (said["tasks"], said["at"], said["fisher"]) == (["low", "parity"], "tuned", ["exact", "exact"])

    backwards = [runs / name for name in ("parity", "low")]  # the tasks are found by their names
    done = tvgrad("merge", *backwards, "--method", "regmean", "--measurements", saved, "--out", out)
    assert done.code == 0, done.err
    opened = [Run.open(path) for path in backwards]
    measured = load_measurements(saved).of(["parity", "low"])
    expected = regmean([run.task_vector(2) for run in opened], measured, base=opened[0].weights(0))
    merged = load_file(out)
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())

    words = ("merge", runs, "--method", "task_arithmetic", "--alpha", "plan")
    done = tvgrad(*words, "--measurements", saved, "--out", tmp_path / "sum.safetensors")
    assert done.code == 0, done.err
    assert "told by measurements" in done.out
    told = float(re.search(r"alpha (\S+): told", done.out)[1])
    plan = json.loads(tvgrad("plan", runs, "--recipe", "digits", "--pairs", "--json").out)
    slopes, pairs = torch.tensor(plan["slopes"]).double(), torch.tensor(plan["pairs"]).double()
    assert told == pytest.approx(float(-slopes.sum() / pairs.sum()), rel=1e-3)

    out.unlink()
    for more, sentence in (
        (("--method", "fisher"), "fisher needs measurements of the tasks: make them with tvgrad plan"),
        (("--method", "fisher", "--measurements", saved, "--density", "0.5"), "fisher has no density"),
        (("--method", "fisher", "--measurements", saved, "--alpha", "plan"), "not along what fisher makes"),
        (("--measurements", saved), "mean takes no measurements"),
        (("--method", "fisher", "--measurements", tmp_path / "no.safetensors"), "no.safetensors is missing"),
        (("--pretrained", runs, "--measurements", saved), "leave them out with --pretrained"),
    ):
        assert sentence in refused("merge", runs, "--out", out, *more)
    assert not out.exists()
