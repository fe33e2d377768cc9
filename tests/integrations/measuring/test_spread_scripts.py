"""What scripts of FSDP2 do besides training: their gradients are measured, or a sentence says why they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.integrations.script.script_runs import TRACE, run, warm_processes
from tvgrad.store.measured import ESTIMATE, EXACT, measured_at

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]

START = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader, Subset, TensorDataset

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + os.environ["MEET"], rank=rank, world_size=2)
torch.manual_seed(0)
ids = torch.randint(1, 11, (16, 6))
labels = ids.roll(-1, 1).masked_fill(torch.rand(16, 6) < torch.linspace(0, 1, 16)[:, None], -100)
model = nn.Sequential(nn.Embedding(11, 7), nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 11)).double()
fully_shard(model[1])
fully_shard(model, mp_policy=POLICY)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
loader = DataLoader(Subset(TensorDataset(ids, labels), list(range(8 * rank, 8 * rank + 8))), batch_size=BATCH)
AVERAGES = [p.detach().clone() for p in model.parameters()], [p.detach().to_local().clone() for p in model.parameters()]
for epoch in range(2):
    for index, (a, b) in enumerate(loader):
        optimizer.zero_grad()
"""
LOSS = "        nn.functional.cross_entropy(model(a).transpose(1, 2), b).backward()\n"
STEP = f"{LOSS}        optimizer.step()\n"
END = "dist.barrier()\nos._exit(0)\n"
ODD = f"""{LOSS}
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1).full_tensor().item()
        assert norm >= 0
        assert sum(p.grad.full_tensor().norm() for p in model.parameters()) >= 0
        optimizer.step()
        whole = {{name: tensor.full_tensor() for name, tensor in model.state_dict().items()}}
        assert whole["1.weight"].shape == (13, 7)
        with torch.no_grad():
            for average, p in zip(AVERAGES[0], model.parameters()):
                average.lerp_(p, 0.1)
            for average, p in zip(AVERAGES[1], model.parameters()):
                average.lerp_(p.to_local(), 0.1)
        if index == 0:
            optimizer.zero_grad()
            get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
"""
TOGETHER = """
        count = torch.tensor(len(a))
        dist.all_reduce(count)
        loss = nn.functional.cross_entropy(model(a).transpose(1, 2), b, reduction="sum")
        (2 * loss / count).backward()
        optimizer.step()
"""


def processes(folder: Path, body: str, batch: int, policy: str = "MixedPrecisionPolicy()") -> list[str]:
    """Start a script as a launcher would, in two processes that have torch already."""
    text = START.replace("BATCH", str(batch)).replace("POLICY", policy)
    (folder / "script.py").write_text(text + body + END)
    return warm_processes(folder / "script.py")


def distance(recorded: tvgrad.Run, epoch: int) -> float:
    """How far a measured gradient is from the full batch's, relative."""
    torch.manual_seed(0)
    ids = torch.randint(1, 11, (16, 6))
    labels = ids.roll(-1, 1).masked_fill(torch.rand(16, 6) < torch.linspace(0, 1, 16)[:, None], -100)
    model = nn.Sequential(nn.Embedding(11, 7), nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 11)).double()
    model.load_state_dict(recorded.complete(epoch))
    loss = nn.functional.cross_entropy(model(ids).transpose(1, 2), labels)
    truth = torch.autograd.grad(loss, list(model.parameters()))
    found = recorded.gradient(epoch)
    return max(
        float((found[name] - one).norm() / one.norm())
        for (name, _), one in zip(model.named_parameters(), truth, strict=True)
    )


def traced(folder: Path, command: list[str]) -> str:
    watched = run([*TRACE, "--out", str(folder / "run"), "--", *command])
    assert watched.returncode == 0, watched.stderr
    return str(folder / "run")


@pytest.mark.parametrize(("body", "batch"), [(STEP, 8), (ODD, 3)], ids=["a batch each", "odd"])
def test_gradients_are_the_full_batch_s(tmp_path: Path, body: str, batch: int) -> None:
    command = processes(tmp_path, body, batch, "MixedPrecisionPolicy(param_dtype=torch.float64)")
    main(["measure", traced(tmp_path, command), "--at", "0,last", "--", *command])
    measured = tvgrad.Run.open(tmp_path / "run")
    made = measured_at(measured, 0)
    assert made is not None
    assert (made["kind"], made["samples"], made["weights"]) == (EXACT, 16, "batches weighted by tokens")
    assert made["steps"] == -(-8 // batch)  # and none that made the state which was saved
    assert max(distance(measured, 0), distance(measured, 2)) < 1e-13


def test_a_mean_over_the_samples_of_all_processes_is_an_estimate(tmp_path: Path) -> None:
    command = processes(tmp_path, TOGETHER, 3)
    main(["measure", traced(tmp_path, command), "--at", "0", "--", *command])
    measured = tvgrad.Run.open(tmp_path / "run")
    made = measured_at(measured, 0)
    assert made is not None
    assert made["kind"] == ESTIMATE
    assert "divided by what all processes have at a step" in made["reason"]


def test_a_script_that_raises_in_a_pass_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spread_only = '        assert type(next(model.parameters())).__name__ == "DTensor", "whole"\n'
    command = processes(tmp_path, STEP + spread_only, 3)
    with pytest.raises(SystemExit) as stopped:
        main(["measure", traced(tmp_path, command), "--at", "0", "--", *command])
    assert stopped.value.code == 2
    assert "the command raised AssertionError at line 26 of script.py: whole" in capsys.readouterr().err


def test_outputs_in_a_narrower_format_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = processes(tmp_path, STEP, 3, "MixedPrecisionPolicy(output_dtype=torch.float32)")
    with pytest.raises(SystemExit):
        main(["measure", traced(tmp_path, command), "--at", "0", "--", *command])
    assert "output_dtype is float32" in capsys.readouterr().err
