"""Scripts whose parameters are spread over processes (FSDP2): passes hold them whole, with each process's batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.integrations.script.script_runs import TRACE, run, warm_processes
from tvgrad.record.batch_items import COUNTERS
from tvgrad.store.measured import EXACT, measured_at

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset, TensorDataset

rank, count = int(os.environ["RANK"]), int(os.environ["COUNT"])
dist.init_process_group("gloo", init_method="file://" + os.environ["MEET"], rank=rank, world_size=count)
torch.manual_seed(0)
ids = torch.randint(1, 11, (18, 6))
labels = ids.roll(-1, 1).masked_fill(torch.rand(18, 6) < 0.3, -100)
data = TensorDataset(ids, labels)
model = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 11)).double()
model[0].weight.requires_grad_(False)
for layer in (model[2], model[4]):
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
# Two thirds of the samples, in larger batches, are the first process's.
own = range(12) if rank == 0 else range(12 + 6 * (rank - 1) // (count - 1), 12 + 6 * rank // (count - 1))
loader = DataLoader(Subset(data, list(own)), batch_size=-(-len(own) // 3))
for epoch in range(2):
    for index, (a, b) in enumerate(loader):
        model.set_requires_gradient_sync(index > 0)
        (nn.functional.cross_entropy(model(a).transpose(1, 2), b) / 2).backward()
        if index > 0:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
dist.barrier()
os._exit(0)
"""
OWN = "(-model(a).log_softmax(2).gather(2, b.clamp(min=0)[..., None])[..., 0] * (b != -100)).sum() / (b != -100).sum()"
"""The same loss without torch's function of it."""


def processes(folder: Path, count: int) -> list[str]:
    """Start the script as a launcher would, in processes that have torch already."""
    (folder / "script.py").write_text(SCRIPT)
    return warm_processes(folder / "script.py", count)


def full_batch(recorded: tvgrad.Run, epoch: int, rare: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(1, 11, (18, 6))
    labels = ids.roll(-1, 1).masked_fill(torch.rand(18, 6) < 0.3, -100)
    if rare:
        labels = ids.roll(-1, 1)
        labels[15, 2:] = -100
    model = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 11)).double()
    model.load_state_dict(recorded.complete(epoch))
    moving = {name: one for name, one in model.named_parameters() if name != "0.weight"}
    loss = nn.functional.cross_entropy(model(ids).transpose(1, 2), labels)
    return dict(zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True))


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    watched = run([*TRACE, "--out", str(tmp_path / "run"), "--", *processes(tmp_path, 2)])
    assert watched.returncode == 0, watched.stderr
    assert "3 points, the last at epoch 2" in watched.stderr
    return tmp_path / "run"


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_are_the_full_batch_s(recorded: Path, count: int) -> None:
    main(["measure", str(recorded), "--at", "0,last", "--", *processes(recorded.parent, count)])
    measured = tvgrad.Run.open(recorded)
    made = measured_at(measured, 0)
    assert made is not None
    assert (made["kind"], made["samples"], COUNTERS[made["counter"]]) == (EXACT, 18, "tokens")
    for epoch in (0, 2):
        found, truth = measured.gradient(epoch), full_batch(measured, epoch)
        assert list(found) == list(truth)
        for name, tensor in found.items():
            assert float((tensor - truth[name]).norm()) < 1e-13 * float(truth[name].norm()), name


def test_targets_that_one_process_has_alone_tell_how_all_are_weighed(tmp_path: Path) -> None:
    command = processes(tmp_path, 2)
    rare = SCRIPT.replace(".masked_fill(torch.rand(18, 6) < 0.3, -100)", "\nlabels[15, 2:] = -100")
    (tmp_path / "script.py").write_text(rare.replace("nn.functional.cross_entropy(model(a).transpose(1, 2), b)", OWN))
    assert run([*TRACE, "--out", str(tmp_path / "run"), "--", *command]).returncode == 0
    main(["measure", str(tmp_path / "run"), "--at", "0", "--", *command])
    measured = tvgrad.Run.open(tmp_path / "run")
    made = measured_at(measured, 0)
    assert made is not None
    assert (made["kind"], COUNTERS[made["counter"]]) == (EXACT, "tokens")
    found, truth = measured.gradient(0), full_batch(measured, 0, rare=True)
    for name, tensor in found.items():
        assert float((tensor - truth[name]).norm()) < 1e-13 * float(truth[name].norm()), name


@pytest.mark.slow
def test_the_error_budget_of_a_spread_training(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain", str(recorded), "--", *processes(recorded.parent, 3)])
    assert stopped.value.code == 2
    assert "recorded on 2 processes, and the command starts 3" in capsys.readouterr().err
    main(["explain", str(recorded), "--", *processes(recorded.parent, 2)])
    away = capsys.readouterr().out.split("the training done again ended ")[1].split(" away")[0]
    assert float(away) < 1e-13
