"""Whole ways of an unchanged script: traced, measured and explained, against a second program of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.script.script_runs import run, warm, warm_tvgrad
from tvgrad import Run
from tvgrad.store.measured import EXACT
from tvgrad.theory.explain import read_results
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm

DATA = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(44, 5, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
"""
UNSEEDED = """
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(1):
    for a, b in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""
LIGHTNING = """
import sys
import lightning

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]

torch.manual_seed(1)
module = Module()
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, gradient_clip_val=0.1, accumulate_grad_batches=2,
)
trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True))
torch.save(module.state_dict(), sys.argv[1])
"""
TRAINER = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
torch.manual_seed(1)
rows = []
for row in range(22):
    ids = torch.randint(1, 50, (16,))
    seen = torch.arange(16) < 6 + row % 9
    rows.append({"input_ids": ids, "attention_mask": seen.long(), "labels": torch.where(seen, ids, -100)})
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
))
settings = TrainingArguments(
    "out", per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2, max_grad_norm=0.01,
    report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="cosine",
)
if __name__ == "__main__":
    Trainer(model=model, args=settings, train_dataset=rows).train()
    torch.save(model.state_dict(), sys.argv[1])
"""
LLAMA = "transformers.models.llama.modeling_llama transformers.trainer"


def apart(record: Run, epoch: int, gradient: Weights) -> float:
    return norm(difference(record.gradient(epoch), gradient)) / norm(gradient)


def gradient_of(loss: Callable[[], torch.Tensor], model: nn.Module) -> Weights:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(), parameters), strict=True))


def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, library: str) -> Run:
    """The run of a script that writes its final weights, which are the same without the trace."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(content)
    alone = run(warm("script.py", "alone.pt", library=library), starts=2)
    assert alone.returncode == 0, alone.stderr
    command = warm("script.py", "traced.pt", library=library)
    done = run(warm_tvgrad("trace", "--out", "run", "--gradients", "0,last", "--", *command), starts=6)
    assert done.returncode == 0, done.stderr
    final, before = (torch.load(name, weights_only=True) for name in ("traced.pt", "alone.pt"))
    assert all(torch.equal(tensor, final[name]) for name, tensor in before.items())
    record = Run.open("run")
    assert all(torch.equal(tensor, final[name]) for name, tensor in record.weights(record.epochs[-1]).items())
    return record


def test_a_script_without_a_seed_has_a_row_of_coverage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(DATA + UNSEEDED)
    done = run(warm_tvgrad("trace", "--out", "run", "--gradients", "0", "--", *warm("script.py")), starts=4)
    assert "used 40 samples of a data set of 44" in done.stderr
    told = run(warm_tvgrad("explain", "run", "--", *warm("script.py")), starts=3)
    assert told.returncode == 0, told.stderr
    text = " ".join(told.stdout.split())
    assert "trained on other batches" in text
    assert "a script that seeds its random numbers trains the same way again" in text
    rows = read_results(Run.open("run"))[1]
    assert [row.term for row in rows] == ["unexplained", "coverage"]


FINDER = """
import itertools, sys
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
def step(a, b):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(a), b).backward()
    optimizer.step()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
few = DataLoader(TensorDataset(x[:12], y[:12]), batch_size=4, shuffle=True)
for (a, b), _ in zip(itertools.cycle(few), range(8)):
    step(a, b)
    optimizer.param_groups[0]["lr"] *= 1.5
model.load_state_dict(kept)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True): step(a, b)
torch.save(model.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_search_for_a_rate_on_other_batches_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = traced(tmp_path, monkeypatch, DATA + FINDER, "torch")
    scope: dict[str, Any] = {}
    exec(DATA, scope)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    for epoch in (0, 2):
        net.load_state_dict(record.weights(epoch))
        truth = gradient_of(lambda: nn.functional.cross_entropy(net(scope["x"].double()), scope["y"]), net)
        assert apart(record, epoch, truth) < 1e-6  # float32 batches
        assert record.info["measured_gradients"][str(epoch)]["samples"] == 44
    told = run(warm_tvgrad("explain", "run", "--no-curvature", "--", *warm("script.py", "again.pt")), starts=3)
    assert told.returncode == 0, told.stderr
    assert "trained on other batches" not in " ".join(told.stdout.split())
    rows = read_results(Run.open("run"))[1]
    assert "unexplained" not in {row.term for row in rows}
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-9)


TWO = """
import sys
torch.manual_seed(1)
def train(one, two, optimizer):
    for a, b in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(two(one(a)), b).backward()
        optimizer.step()
encoder, head = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 2)
optimizer = torch.optim.SGD([*head.parameters(), *encoder.parameters()], lr=0.1)
for epoch in range(2):
    train(encoder, head, optimizer)
parts = {"encoder": encoder, "head": head}
torch.save({f"{p}.{name}": t for p, part in parts.items() for name, t in part.state_dict().items()}, sys.argv[1])
"""


@pytest.mark.slow
def test_two_modules_that_no_module_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = traced(tmp_path, monkeypatch, DATA + TWO, "torch")
    scope: dict[str, Any] = {}
    exec(DATA, scope)
    net = nn.Sequential(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 2)).double()
    for epoch in (0, 2):
        weights = {name: record.weights(epoch)[name] for name in ("encoder.0.weight", "encoder.0.bias")}
        net[0].load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
        net[1].load_state_dict({name: record.weights(epoch)[f"head.{name}"] for name in ("weight", "bias")})
        found = gradient_of(lambda: nn.functional.cross_entropy(net(scope["x"].double()), scope["y"]), net)
        names = {"0.0": "encoder.0", "1": "head"}
        truth = {names[name.rpartition(".")[0]] + "." + name.rpartition(".")[2]: g for name, g in found.items()}
        assert apart(record, epoch, truth) < 1e-6  # float32 batches


FOLDS = """
def fold():
    model = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for a, b in DataLoader(TensorDataset(x, y), batch_size=8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
torch.manual_seed(1)
for _ in range(2): fold()
"""


def test_later_trainings_are_said_not_to_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(DATA + FOLDS)
    done = run(warm_tvgrad("trace", "--out", "run", "--gradients", "0", "--", *warm("script.py")), starts=4)
    assert done.returncode == 0, done.stderr
    assert Run.open("run-2").epochs == [0, 1]
    assert "no gradient of run-2 was measured: it is a later training" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_lightning_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    record = traced(tmp_path, monkeypatch, DATA + LIGHTNING, "lightning")
    scope: dict[str, Any] = {}
    exec(DATA, scope)
    for epoch in (0, 2):
        model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))}).double()
        model.load_state_dict(record.weights(epoch))
        truth = gradient_of(
            lambda net=model["net"]: nn.functional.cross_entropy(net(scope["x"].double()), scope["y"]), model
        )
        assert apart(record, epoch, truth) < 1e-6  # float32 batches
        assert record.info["measured_gradients"][str(epoch)]["kind"] == EXACT


@pytest.mark.slow
def test_a_script_of_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a step weigh, which the probe finds out; a last group of batches is shorter."""
    pytest.importorskip("accelerate")
    record = traced(tmp_path, monkeypatch, DATA + TRAINER, LLAMA)
    scope: dict[str, Any] = {"__name__": "second"}
    exec(DATA + TRAINER.replace("sys.argv[1]", "''"), scope)
    whole = {name: torch.stack([row[name] for row in scope["rows"]]) for name in scope["rows"][0]}
    model = scope["model"].double()
    for epoch in (0, 2):
        model.load_state_dict(record.complete(epoch))
        logits = model(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), whole["labels"][:, 1:].flatten())
        assert apart(record, epoch, gradient_of(lambda loss=loss: loss, model)) < 1e-5  # float32, two layers
        kept = record.info["measured_gradients"][str(epoch)]
        assert (kept["kind"], kept["samples"]) == (EXACT, 22)
        assert "tokens after the first" in kept["weights"]
    told = run(warm_tvgrad("explain", "run", "--", *warm("script.py", "again.pt", library=LLAMA)), starts=5)
    assert told.returncode == 0, told.stderr
    rows = read_results(Run.open("run"))[1]
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-9)
    assert not Path("again.pt").exists()
