"""One pass of a script at recorded weights, against the gradient that a second program computes there."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tvgrad
from tests.integrations.script.script_runs import warm
from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.passes import PassOutcome, run_pass
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.record.batch_items import COUNTERS
from tvgrad.record.weighing import Weighing
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import norm

HEADER = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(44, 5)
y = (x[:, 0] > 0).long()
data = TensorDataset(x, y)
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
loss_of = nn.CrossEntropyLoss()
"""
WEIGHTS = 0.3
"""The recorded weights are this far from those that the script begins with."""

ADAMW = """
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=2)
with torch.no_grad():
    model(x)  # a look before training
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        loss_of(model(a), b).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        scheduler.step()
    open("after", "w").close()
"""
ACCUMULATION = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(2):
    for index, (a, b) in enumerate(DataLoader(data, batch_size=6)):
        (loss_of(model(a), b) / 3).backward()
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    open("after", "w").close()
"""
SCALED = """
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
for epoch in range(2):
    for index, (a, b) in enumerate(DataLoader(data, batch_size=8)):
        scaler.scale(loss_of(model(a), b) / 2).backward()
        if index % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_value_(model.parameters(), 1e-4)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    open("after", "w").close()
"""
CLOSURE = """
optimizer = torch.optim.LBFGS(model.parameters())
def closure():
    optimizer.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    return loss
for epoch in range(2):
    optimizer.step(closure)
open("after", "w").close()
"""
GAN = """
critic = nn.Linear(2, 1)
first = torch.optim.Adam(critic.parameters(), lr=0.1)
second = torch.optim.Adam(model.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(data, batch_size=8):
        first.zero_grad()
        (critic(torch.ones(len(a), 2)) - critic(model(a).detach())).mean().backward()
        first.step()
        second.zero_grad()
        (loss_of(model(a), b) + 0.0 * critic(model(a)).mean()).backward()
        second.step()
    open("after", "w").close()
"""
CRITIC = """
maker = nn.Linear(5, 5)
first = torch.optim.Adam(model.parameters(), lr=0.1)
second = torch.optim.Adam(maker.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(data, batch_size=8):
        first.zero_grad()
        loss_of(model(a), b).mul(0.75).backward()  # two backward passes for one batch and step
        loss_of(model(a), b).mul(0.25).backward()
        first.step()
        second.zero_grad()
        loss_of(model(maker(a)), 1 - b).backward()  # reaches the model too, whose optimizer drops it
        second.step()
    open("after", "w").close()
"""


@pytest.fixture
def passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[PassOutcome, dict[str, Any]]]:
    """passed(body, **plan) -> what a pass of HEADER and the body finds, and the names that HEADER makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(
        body: str, steps: int | None = None, afresh: bool = False, command: Any = None, **plan: Any
    ) -> tuple[PassOutcome, dict[str, Any]]:
        scope: dict[str, Any] = {}
        exec(HEADER, scope)
        with torch.no_grad():
            for parameter in scope["model"].parameters():
                parameter.add_(WEIGHTS)
        if not Path("run").exists():
            with tvgrad.Recorder("run", scope["model"]):
                pass
        Path("script.py").write_text(HEADER + body)
        command = command or ((sys.executable, "script.py") if afresh else tuple(warm("script.py")))
        options = ScriptOptions(out=str(tmp_path / "run"), notes="", command=command, steps_per_epoch=steps)
        told = PassOptions(run=options.out, number=0, parent=os.getpid(), **plan)
        return run_pass(options, told, patience=60, keep=tmp_path), scope

    return run


def apart(found: PassOutcome, loss: torch.Tensor, model: torch.nn.Module) -> float:
    """Relative distance of a measured gradient from the one that autograd computes of a loss."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, (g.double() for g in torch.autograd.grad(loss, parameters)), strict=True))
    return norm(difference(found.gradient, expected)) / norm(expected)


@pytest.mark.parametrize(
    ("body", "plan", "batches"),
    [
        (ADAMW, {"afresh": True}, 1),
        (ACCUMULATION, {}, 3),
        (SCALED, {}, 2),
        (GAN, {}, 1),
        (CRITIC, {}, 1),
        (CLOSURE, {"steps": 1, "weighing": Weighing.STEP.value}, 1),
    ],
    ids=["adamw", "accumulation", "scaled", "gan", "critic", "closure"],
)
def test_the_gradient_is_the_full_batch_s(passed: Any, body: str, plan: dict[str, Any], batches: int) -> None:
    found, scope = passed(body, **plan)
    loss = scope["loss_of"](scope["model"](scope["x"]), scope["y"])
    assert apart(found, loss, scope["model"]) < 2e-6  # of float32 batches: 44 samples, some 16 roundings each
    assert found.facts["batches_a_step"] == batches
    assert not Path("after").exists(), "code after the epoch has run"
    assert load_file("run/weights/epoch-0000.safetensors").keys() == dict(scope["model"].named_parameters()).keys()


def test_bfloat16_autocast_is_the_script_s_own(passed: Any) -> None:
    body = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for a, b in DataLoader(data, batch_size=11):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model(a), b)
    loss.backward()
    optimizer.step()
"""
    found, scope = passed(body)
    model, summed = scope["model"], []
    for a, b in zip(scope["x"].split(11), scope["y"].split(11), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = scope["loss_of"](model(a), b)
        summed.append(torch.autograd.grad(loss, list(model.parameters())))
    own = [sum(part.double() for part in parts) / 4 for parts in zip(*summed, strict=True)]
    expected = dict(zip(dict(model.named_parameters()), own, strict=True))
    assert norm(difference(found.gradient, expected)) < 1e-14 * norm(expected)  # the same gradients, summed in float64
    full = scope["loss_of"](scope["model"](scope["x"]), scope["y"])
    assert apart(found, full, scope["model"]) > 1e-4, "float32 would not have been the script's"
    assert found.facts["dtype"] == "bfloat16"


def test_a_trainer_of_transformers(passed: Any) -> None:
    pytest.importorskip("accelerate")
    body = """
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
rows = []
for row in range(22):
    ids = torch.randint(1, 50, (16,))
    seen = torch.arange(16) < 6 + row % 9
    rows.append({"input_ids": ids, "attention_mask": seen.long(), "labels": torch.where(seen, ids, -100)})
small = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(small)
"""
    train = """
settings = TrainingArguments("out", per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2,
                             max_grad_norm=0.01, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True)
Trainer(model=model, args=settings, train_dataset=rows).train()
"""
    scope: dict[str, Any] = {}
    exec(HEADER + body, scope)
    model, rows = scope["model"], scope["rows"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with tvgrad.Recorder("run", model):
        pass
    found, _ = passed(body + train, weighing=Weighing.STEP.value, counter=2)
    whole = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    logits = model(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), whole["labels"][:, 1:].flatten())
    assert apart(found, loss, model) < 1e-5  # float32, two layers
    assert (found.facts["samples"], found.facts["steps"], found.facts["batches_a_step"]) == (22, 3, 2)


def test_other_random_numbers_draw_order_and_dropout_anew(passed: Any) -> None:
    body = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
for a, b in loader:
    optimizer.zero_grad()
    loss_of(nn.functional.dropout(model(a), 0.5), b).backward()
    optimizer.step()
"""
    first, _ = passed(body)
    again, _ = passed(body)
    other, _ = passed(body, reseed=5)
    assert norm(difference(first.gradient, again.gradient)) == 0
    assert first.facts["fingerprints"] == again.facts["fingerprints"]
    assert norm(difference(first.gradient, other.gradient)) > 0.01 * norm(first.gradient)
    assert first.facts["fingerprints"] != other.facts["fingerprints"]
    assert first.facts["content"] == other.facts["content"], "the samples are the same in another order"


WEIGHTED = """
loss_of = nn.CrossEntropyLoss(weight=torch.tensor([0.25, 4.0]))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for a, b in DataLoader(data, batch_size=8):
        optimizer.zero_grad()
        loss_of(model(a), b).backward()
        loss_of(model(a).detach(), 1 - b)  # a number for a log
        optimizer.step()
    open("after", "w").close()
"""


TWICE = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(data, batch_size=8, sampler=[0, 0, *range(len(data) - 2)], num_workers=WORKERS)
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_come_twice_are_counted(passed: Any, workers: int) -> None:
    facts = passed(TWICE.replace("WORKERS", str(workers)))[0].facts
    assert (facts["samples"], facts["drawn_again"]) == (facts["data"], 2)


def test_class_weights_weigh_the_batches(passed: Any) -> None:
    probe, _ = passed(WEIGHTED, probe=True)
    assert (probe.facts["confirmed"], COUNTERS[probe.facts["counter"]]) == (True, "class weights of targets")
    found, scope = passed(WEIGHTED, counter=probe.facts["counter"])
    weighted = torch.nn.functional.cross_entropy(scope["model"](scope["x"]), scope["y"], torch.tensor([0.25, 4.0]))
    assert apart(found, weighted, scope["model"]) < 2e-6


DISTRIBUTED = """
import os
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + os.environ["MEET"], rank=rank, world_size=2)
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
loader = DataLoader(data, batch_size=6, sampler=DistributedSampler(data))
for epoch in range(2):
    for index, (a, b) in enumerate(loader):
        last = index % 2 == 1
        with contextlib.nullcontext() if last else wrapped.no_sync():
            (loss_of(wrapped(a), b) / 2).backward()
        if last:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
        logged = torch.ones(1)
        dist.all_reduce(logged)  # a collective of the script's own
    open("after", "w").close()
"""


def two_ranks(*words: str) -> tuple[str, ...]:
    """Start a script as a launcher would, in two processes that have torch already."""
    start = shlex.join(warm(*words))
    return "sh", "-c", f"export MEET=$PWD/meet.$$; RANK=0 {start} & RANK=1 {start}; wait"


@pytest.mark.distributed
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_measure_the_samples_of_both(passed: Any) -> None:
    found, scope = passed("import contextlib\n" + DISTRIBUTED, command=two_ranks("script.py"))
    loss = scope["loss_of"](scope["model"](scope["x"]), scope["y"])
    assert apart(found, loss, scope["model"]) < 2e-6
    assert (found.facts["samples"], found.facts["own_samples"], found.facts["data"]) == (44, 22, 44)
    assert (found.facts["batches"], found.facts["batches_a_step"]) == (8, 2)
    assert not Path("after").exists()
    probe, _ = passed("import contextlib\n" + DISTRIBUTED, command=two_ranks("script.py"), probe=True)
    assert (probe.facts["confirmed"], probe.facts["weighing"], probe.facts["noise"]) == (True, "mean", False)


STEPS = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "model = nn.Linear(5, 2)\n" + STEPS + "loss_of(model(x), y).backward()\noptimizer.step()\n",
            "the command trains another model than the run records: it does not train 0.weight",
        ),
        (
            "model[0].requires_grad_(False)\noptimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)\n"
            "loss_of(model(x), y).backward()\noptimizer.step()\n",
            "the command trains in its first epoch only a part of what the run records, without 0.weight: ",
        ),
        (STEPS + "loss_of(model(x), y)\n", "ended before an epoch was measured; its optimizer took no step"),
        (
            STEPS + "for e in range(3):\n    for a, b in DataLoader(data, batch_size=8):\n"
            "        loss_of(model(a), b).backward()\noptimizer.step()\n",
            "its optimizer took no step in the whole of an epoch",
        ),
        (
            STEPS + "for a, b in DataLoader(data, batch_size=8):\n    optimizer.zero_grad()\n"
            "    loss_of(model(a), b).backward()\n    optimizer.step()\n    model[0].weight.data.mul_(0.9)\n",
            "moved the weights by something besides its optimizer's steps",
        ),
        ("raise SystemExit('no data here')", "ended with exit code 1 before its epoch did; it said: no data here"),
    ],
    ids=["other_model", "frozen_part", "no_step", "longer_than_an_epoch", "moved", "failed"],
)
def test_what_cannot_be_measured_is_one_sentence(passed: Any, body: str, message: str) -> None:
    with pytest.raises(TvgradError) as caught:
        passed(body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvgrad.integrations.measuring.passes.LOOK", 0.01)
    options = ScriptOptions(out="run", notes="", command=(sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(TvgradError, match=r"no backward pass within 0.2 s; give it longer by --patience"):
        run_pass(options, PassOptions(run="run", number=0, parent=os.getpid()), patience=0.2, keep=tmp_path)


AUGMENTED = """
from torch.utils.data import Dataset
class Noisy(Dataset):
    drawing = torch.Generator().manual_seed(5)
    def __len__(self):
        return 44
    def __getitem__(self, number):
        return READ, y[number]
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Noisy(), batch_size=8, num_workers=WORKERS, MORE)
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        loss_of(model(a), b).backward()
        optimizer.step()
"""
OWN = "x[number] + 0.1 * torch.randn(5, generator=self.drawing)"
SEEDED = "x[number] + 0.1 * torch.randn(5, generator=torch.Generator().manual_seed(number))"
COLLATED = (
    "collate_fn=lambda rows: [torch.stack([a for a, _ in rows]) * (1 + torch.rand((), generator=Noisy.drawing)), "
    "torch.stack([b for _, b in rows])]"
)


@pytest.mark.parametrize(
    ("read", "more", "workers", "differ"),
    [
        (OWN, "", 0, True),
        pytest.param(OWN, "", 1, True, marks=pytest.mark.slow),
        pytest.param("x[number]", COLLATED, 0, True, marks=pytest.mark.slow),
        pytest.param(OWN, "batch_sampler=[[1, 2], [3]]", 0, True, marks=pytest.mark.slow),
        (SEEDED, "", 0, False),
    ],
)
def test_samples_that_are_read_again_are_compared(
    passed: Any, read: str, more: str, workers: int, differ: bool
) -> None:
    """Two passes draw the same of a generator that the script itself seeds: only reading twice tells."""
    body = AUGMENTED.replace("READ", read).replace("MORE", more).replace("WORKERS", str(workers))
    if "batch_sampler" in more:
        body = body.replace("batch_size=8, ", "")
    assert passed(body, probe=True)[0].facts["redrawn"] is differ
