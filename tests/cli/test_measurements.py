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

    # All tasks: the very coefficient of the plan. Some of them: what slopes and curvatures tell.
    plan = json.loads(tvgrad("plan", runs, "--recipe", "digits", "--pairs", "--json").out)
    second = -plan["slopes"][0][0] / plan["pairs"][0][0][0]
    for number, (merged_runs, truth, order) in enumerate((
        (runs, plan["coefficient"], "losses (an"),
        (runs / "low", second, "losses to second order (an"),
    )):
        words = ("merge", merged_runs, "--method", "task_arithmetic", "--alpha", "plan", "--measurements", saved)
        done = tvgrad(*words, "--out", tmp_path / f"sum{number}.safetensors")
        assert done.code == 0, done.err
        assert "told by measurements" in done.out
        assert order in done.out
        assert float(re.search(r"alpha (\S+): told", done.out)[1]) == pytest.approx(truth, rel=1e-3)

    for method in ("regmean", "task_arithmetic"):
        more = ("--alpha", "plan") if method == "task_arithmetic" else ()
        words = ("merge", runs, "--method", method, *more, "--measurements", saved, "--out")
        said = refused(*words, tmp_path / f"{method}.safetensors", "--epoch", "1")
        assert "taken after another epoch or training than" in said, said

    twice = tmp_path / "twice"
    assert tvgrad("trace", *WORDS, "--out", twice, "--quiet").code == 0
    both = ("plan", runs / "low", twice / "low", "--recipe", "digits", "--save", tmp_path / "twice.safetensors")
    assert "two tasks are called 'low'" in refused(*both)

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
