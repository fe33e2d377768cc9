"""Six scripts as people write them, traced unchanged: the same numbers, output and exit code, and a true record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.script.script_runs import SCRIPTS, TRACE, run, warm
from tvgrad import Run
from tvgrad.report.tables import run_tables
from tvgrad.update_rules.grouped import GroupedRule

CASES = {
    "adamw_cosine": (["--out"], []),
    "sgd_nesterov": ([], []),
    "accumulation": ([], ["--record", "epoch-gradients,gradient-norms"]),
    "autocast_bf16": ([], []),
    "two_optimizers": ([], ["--model", "generator"]),
    "steps_break": ([], []),
}

AFRESH = "adamw_cosine"
"""This script is run by Pythons that start afresh."""


def weights_at(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"epoch{epoch}.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_script(name: str, tmp_path: Path) -> None:
    before, options = CASES[name]
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    plain.mkdir()
    traced.mkdir()
    script = str(SCRIPTS / f"{name}.py")
    command = [*([sys.executable, script] if name == AFRESH else warm(script)), *before]
    alone = run([*command, str(plain)])
    watched = run([*TRACE, "--out", str(tmp_path / "run"), *options, "--", *command, str(traced)])
    assert watched.returncode == alone.returncode, watched.stderr
    assert watched.stdout == alone.stdout
    saved = sorted(path.name for path in plain.iterdir())
    assert sorted(path.name for path in traced.iterdir()) == saved
    assert all((plain / file).read_bytes() == (traced / file).read_bytes() for file in saved)

    record = Run.open(tmp_path / "run")
    assert record.epochs == list(range(len(saved)))
    assert not record.problems()
    assert record.manifest.finished
    for epoch in record.epochs:
        truth = weights_at(plain, epoch)
        assert all(torch.equal(truth[key], tensor) for key, tensor in record.weights(epoch).items())
        if epoch:
            complete = record.complete(epoch)
            assert set(complete) == set(truth)
            assert all(torch.equal(truth[key], complete[key]) for key in truth)
    assert record.having("epoch_gradient") == record.epochs[1:]
    assert len(run_tables([record]).tables["norms"])
    CHECKS.get(name, lambda *_: None)(record, plain)


def check_adamw(record: Run, folder: Path) -> None:
    steps = record.steps()
    assert record.info["rule"]["name"] == "adamw"
    assert steps["batch_size"].tolist() == [8, 8, 8, 8, 8, 8, 2] * 3
    assert steps["lr"].iloc[0] == record.info["rule"]["lr"]
    assert steps["lr"].is_monotonic_decreasing
    assert (steps["clip_factor"] <= 1).all()
    assert (steps["clip_factor"] < 1).any()


def check_nesterov(record: Run, folder: Path) -> None:
    steps = record.steps()
    assert isinstance(record.rule, GroupedRule)
    assert {part.name for part in record.rule.used} == {"nesterov"}
    assert set(steps["lr_0"]) == {0.02}
    assert set(steps["lr_1"]) == {0.1}
    assert "stem.weight" in record.static()
    assert "stem.weight" not in record.weights(1)


def check_accumulation(record: Run, folder: Path) -> None:
    """With plain SGD at one rate, the sum of the consumed gradients is the displacement over minus the rate."""
    assert record.steps()["accumulated"].tolist() == [3, 3, 2, 3, 3, 2]
    assert record.steps()["batch_size"].tolist() == [18, 18, 8, 18, 18, 8]
    norms = record.steps()["gradient_norm"]
    assert len(norms) == 6
    assert norms.gt(0).all()
    shown = run_tables([record]).tables["norms"].query("group == 'all'")["mean_batch_gradient_norm"]
    assert shown.tolist()[:2] == pytest.approx([norms[:3].mean(), norms[3:].mean()], rel=1e-12)
    for epoch in (1, 2):
        before, after = weights_at(folder, epoch - 1), weights_at(folder, epoch)
        for key, total in record.epoch_gradient(epoch).items():
            moved = (before[key].double() - after[key].double()) / 0.05
            torch.testing.assert_close(total.double(), moved, rtol=0, atol=2e-5)


def check_two(record: Run, folder: Path) -> None:
    assert record.info["model"] == "generator"
    assert record.info["rule"]["betas"] == [0.5, 0.999]
    assert "0.weight" in record.weights(0)


def check_break(record: Run, folder: Path) -> None:
    assert record.info["epoch_endings"] == ["break"] * 3
    assert [point.steps for point in record.points] == [0, 5, 10, 12]


CHECKS = {
    "adamw_cosine": check_adamw,
    "sgd_nesterov": check_nesterov,
    "accumulation": check_accumulation,
    "two_optimizers": check_two,
    "steps_break": check_break,
}
