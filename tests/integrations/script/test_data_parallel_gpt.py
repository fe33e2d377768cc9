"""A GPT's script under DistributedDataParallel: killed, resumed and measured on other numbers of processes."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.script.script_runs import SCRIPTS, TRACE, run, warm_tvgrad
from tests.problem.shared_recipes import Gpt
from tvgrad import Run
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import norm

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]


def command(count: int, folder: Path, *more: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    folder.mkdir(exist_ok=True)
    return [*launcher, str(SCRIPTS / "data_parallel_gpt.py"), str(folder), "4", *more]


def traced(out: Path, words: list[str], *more: str) -> Any:
    return run([*TRACE, "--out", str(out), *more, "--", *words])


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_script_goes_on_with_any_number_of_processes(tmp_path: Path, killed: int) -> None:
    assert traced(tmp_path / "never", command(2, tmp_path / "a")).returncode == 0
    never, began = Run.open(tmp_path / "never"), time.monotonic()
    assert never.info["processes"] == 2
    ended = traced(tmp_path / "run", command(2, tmp_path / "b", f"{killed}:2:1"))
    assert ended.returncode != 0
    assert time.monotonic() - began < 60
    assert "3 points, the last at epoch 2" in ended.stderr
    assert not Run.open(tmp_path / "run").problems()
    for count in (4, 1):
        out, folder = tmp_path / f"run{count}", tmp_path / f"b{count}"
        shutil.copytree(tmp_path / "run", out)
        shutil.copytree(tmp_path / "b", folder)
        gone_on = traced(out, command(count, folder), "--resume")
        assert gone_on.returncode == 0, gone_on.stderr
        record = Run.open(out)
        assert record.epochs == never.epochs
        assert record.info["processes"] == count
        for epoch in never.epochs:
            truth = never.weights(epoch)
            assert norm(difference(record.weights(epoch), truth)) <= 1e-12 * norm(truth)


def test_any_number_of_processes_measures_the_full_batch(tmp_path: Path) -> None:
    assert traced(tmp_path / "run", command(2, tmp_path / "a")).returncode == 0
    torch.manual_seed(0)
    ids = torch.randint(17, (24, 7))
    targets = ids.roll(-1, 1).masked_fill(torch.rand(24, 7) < 0.3, -100)
    model = Gpt().double()
    for count in (1, 2, 4):
        out, folder = tmp_path / f"run{count}", tmp_path / f"m{count}"
        shutil.copytree(tmp_path / "run", out)
        done = run(warm_tvgrad("measure", str(out), "--at", "0,4", "--", *command(count, folder)))
        assert done.returncode == 0, done.stderr
        record = Run.open(out)
        for epoch in (0, 4):
            assert record.info["measured_gradients"][str(epoch)]["kind"] == "exact full batch"
            model.load_state_dict(record.complete(epoch))
            value = nn.functional.cross_entropy(model(ids), targets, ignore_index=-100, reduction="sum") / 40
            names, parameters = zip(*model.named_parameters(), strict=True)
            truth = dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
            assert norm(difference(record.gradient(epoch), truth)) <= 1e-12 * norm(truth)
    refused = run(warm_tvgrad("explain", str(tmp_path / "run4"), "--", *command(4, tmp_path / "e")))
    assert refused.returncode == 2
    assert "was recorded on 2 processes, and the command starts 4" in refused.stderr
