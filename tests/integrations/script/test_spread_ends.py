"""Ends of scripts of FSDP2: by a `break`, by an error of one process, by a group that is taken apart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.integrations.script.script_runs import TRACE, Done, run, warm_processes
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.record import spread_model as spread
from tvgrad.record.spread_model import PATIENCE, SpreadModel

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset, TensorDataset

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + os.environ["MEET"], rank=rank, world_size=2)
torch.manual_seed(0)
data = TensorDataset(torch.randn(16, 5), torch.randint(3, (16,)))
model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
fully_shard(model, reshard_after_forward=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Subset(data, list(range(8 * rank, 8 * rank + 8))), batch_size=2)
for epoch in range(3):
    for index, (a, b) in enumerate(loader):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
        AFTER_STEP
    model.reshard()
    whole = {name: one.full_tensor().detach() for name, one in model.named_parameters()}
    if rank == 0:
        torch.save(whole, f"{os.environ['HERE']}/{epoch + 1}.pt")
    AFTER_EPOCH
dist.destroy_process_group()
"""
BREAK = "if index == 2: break"


def traced(folder: Path, after_step: str, after_epoch: str = "") -> Done:
    (folder / "script.py").write_text(
        SCRIPT.replace("AFTER_STEP", after_step).replace("AFTER_EPOCH", after_epoch or "pass")
    )
    start = warm_processes(folder / "script.py", HERE=str(folder))
    return run([*TRACE, "--out", str(folder / "run"), "--", *start])


def test_a_break_ends_an_epoch_before_the_group_is_gone(tmp_path: Path) -> None:
    watched = traced(tmp_path, BREAK)
    assert watched.returncode == 0, watched.stderr
    recorded = Run.open(tmp_path / "run")
    assert recorded.info["epoch_endings"] == ["break"] * 3
    for epoch in (1, 2, 3):
        for name, tensor in torch.load(tmp_path / f"{epoch}.pt", weights_only=True).items():
            assert torch.equal(recorded.weights(epoch)[name], tensor), name


def test_weights_that_change_after_a_break_are_not_recorded(tmp_path: Path) -> None:
    changed = "\n    with torch.no_grad():\n        for one in model.parameters():\n            one.mul_(0.5)"
    watched = traced(tmp_path, BREAK, changed)
    assert "the script changes its weights between a `break` and its next batch" in watched.stderr


def test_the_error_of_one_process_makes_no_other_wait(tmp_path: Path) -> None:
    began = time.monotonic()
    watched = traced(tmp_path, "assert rank == 0 or epoch < 2 or index < 1")
    assert watched.returncode != 0
    assert time.monotonic() - began < PATIENCE.seconds / 2
    assert list(Run.open(tmp_path / "run").epochs) == [0, 1, 2]


def test_a_process_that_is_alone_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[/a/b/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:48. This is typical.\nmore")

    monkeypatch.setattr(torch.distributed, "all_gather_object", refuse)
    monkeypatch.setattr(spread, "own_group", lambda: None)
    model = SpreadModel.__new__(SpreadModel)
    model.count = 2
    with pytest.raises(TvgradError) as raised:
        model.gathered(None)
    assert str(raised.value) == (
        "another process does not come to the point that is recorded, or has ended (Connection closed by peer "
        "[127.0.0.1]:48); where the processes' loaders end at different steps, --steps-per-epoch tells the ends of "
        "epochs"
    )
