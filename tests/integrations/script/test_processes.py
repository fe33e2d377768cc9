"""Scripts that torchrun starts twice: one process is recorded, and its record is the training's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data.distributed import DistributedSampler

from tests.integrations.script.script_runs import SCRIPTS, TRACE, run
from tvgrad import Run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

TWICE = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SHARDED = (sys.executable, str(SCRIPTS / "sharded.py"))
STEPS, BATCH, RATE = 6, 8, 0.1


def test_data_parallel(tmp_path: Path) -> None:
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    plain.mkdir()
    traced.mkdir()
    command = [*TWICE, str(SCRIPTS / "distributed_data.py")]
    alone = run([*command, str(plain)])
    watched = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command, str(traced)])
    assert alone.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout == alone.stdout
    assert "4 points" in watched.stderr

    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2, 3]
    assert not record.problems()
    assert record.manifest.finished
    for epoch in record.epochs:
        truth = torch.load(plain / f"epoch{epoch}.pt", weights_only=True)
        assert (plain / f"epoch{epoch}.pt").read_bytes() == (traced / f"epoch{epoch}.pt").read_bytes()
        assert list(record.weights(epoch)) == list(truth)
        assert all(torch.equal(truth[name], tensor) for name, tensor in record.weights(epoch).items())

    for epoch in (1, 2, 3):
        expected = replayed(epoch, record)
        recorded = record.epoch_gradient(epoch)
        for name, tensor in expected.items():
            # float64, 6 steps whose gradients are of the size 1: rounding is a few hundred units of 2e-16
            assert (recorded[name] - tensor).abs().max() < 1e-13
        assert recorded["0.weight"].abs().max() > 0.1


def replayed(epoch: int, record: Run) -> dict[str, torch.Tensor]:
    """The sum of the epoch's gradients by one process that takes both halves of each batch, without the library."""
    torch.manual_seed(0)
    inputs = torch.randn(96, 8, dtype=torch.float64)
    labels = inputs.sum(1).gt(0).long()
    halves = [DistributedSampler(inputs, num_replicas=2, rank=rank, seed=3) for rank in (0, 1)]
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    net.load_state_dict(record.weights(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    for before in range(epoch):
        total = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
        for half in halves:
            half.set_epoch(before)
        order = [torch.tensor(list(half)) for half in halves]
        for step in range(STEPS):
            batch = torch.cat([half[step * BATCH : (step + 1) * BATCH] for half in order])
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            for name, parameter in net.named_parameters():
                assert parameter.grad is not None
                total[name] += parameter.grad
            optimizer.step()
    return total


def test_a_group_of_one_is_recorded(tmp_path: Path) -> None:
    watched = run([*TRACE, "--out", str(tmp_path / "run"), "--record-at", "steps:1,2", "--", *SHARDED])
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == "trained\n"
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    assert not record.problems()
    assert record.info["processes"] == 1
    assert record.info["modules"] == ["Linear", "Sequential", "Tanh"]
