"""Scripts with several optimizers of one model, and with parameters that begin or cease to train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integrations.script.script_runs import TRACE, run, warm_tvgrad
from tvgrad import Run
from tvgrad.store.export import export_checkpoint
from tvgrad.theory.equivalence import check_one_epoch
from tvgrad.theory.verdicts import verdict_rows

Write = Callable[[str], list[str]]

MUON = """
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
matrices = torch.optim.Muon([p for p in model.parameters() if p.ndim > 1], lr=0.02)
others = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=0.01)
for epoch in range(2):
    for a, b in loader:
        model.zero_grad()
        nn.functional.mse_loss(model(a), b).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        matrices.step()
        others.step()
torch.save(model.state_dict(), "last.pt")
"""


def test_two_optimizers_of_one_model(write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", "run", "--", *write(MUON)], tmp_path)
    assert "3 points, the last at epoch 2" in done.stderr
    record = Run.open(tmp_path / "run")
    truth = torch.load(tmp_path / "last.pt", weights_only=True)
    assert record.weights(2).keys() == truth.keys()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in record.weights(2).items())
    assert not record.info["final_weights_differ"]
    assert not record.info["moved_outside_steps"]
    steps = record.steps()
    assert [point.steps for point in record.points] == [0, 4, 8]
    assert set(steps["lr_0"]) == {0.02}
    assert set(steps["lr_1"]) == {0.01}
    assert set(steps["batch_size"]) == {5}
    assert set(steps["accumulated"]) == {1}
    assert (steps["clip_factor"] < 0.5).all()
    assert steps["gradient_norm_before_clipping"].notna().all()
    verdict = check_one_epoch(record).verdicts[-1]
    assert "the update rule of Muon is not known" in verdict.reason
    export_checkpoint(record, 2, tmp_path / "exported")


HEAD_THEN_ALL = """
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
for a, b in loader: step(a, b)
model[0].requires_grad_(True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for a, b in loader: step(a, b)
model[2].requires_grad_(False)
optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
for a, b in loader: step(a, b)
torch.save(model.state_dict(), "last.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", [[], ["--model", "model"]])
def test_parameters_that_begin_to_train_stop_the_recording(model: list[str], write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", "run", *model, "--", *write(HEAD_THEN_ALL)], tmp_path)
    assert "0.weight was frozen at the first step and is trained from step 5 on" in done.stderr
    assert "--frozen" in done.stderr
    assert Run.open(tmp_path / "run").epochs == [0, 1]


@pytest.mark.slow
def test_parameters_that_begin_and_cease_to_train_are_followed(write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", "run", "--frozen", "--", *write(HEAD_THEN_ALL)], tmp_path)
    assert "the last at epoch 3" in done.stderr
    record = Run.open(tmp_path / "run")
    truth = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(tensor, truth[name]) for name, tensor in record.weights(3).items())
    assert torch.equal(record.weights(1)["0.weight"], record.weights(0)["0.weight"])
    assert [point.steps for point in record.points] == [0, 4, 8, 12]
    assert "made a new optimizer after step 4" in record.info["rule_reason"]
    assert len(record.steps()) == 12
    check_later_parts(record, write)


def check_later_parts(record: Run, write: Write) -> None:
    """What `verify` advises can be done: without --frozen the part is measured; with a recipe all of it is recorded."""
    (row,) = verdict_rows(record)[-1:]
    assert "the command did not train 0.weight at its first step, and a pass measures" in row.cause
    assert "`tvgrad measure" not in row.cause
    refused = run(warm_tvgrad("measure", "run", "--at", "0", "--", *write(HEAD_THEN_ALL)), record.root.parent)
    assert (refused.returncode, "without 0.weight: a pass measures" in refused.stderr) == (2, True), refused.stderr
    run([*TRACE, "--out", "part", "--", *write(HEAD_THEN_ALL)], record.root.parent)
    part = run(warm_tvgrad("measure", "part", "--at", "0", "--", *write(HEAD_THEN_ALL)), record.root.parent)
    assert "exact full batch" in part.stderr, part.stderr
    assert "trained_later" not in Run.open(record.root.parent / "part").info
    (record.root.parent / "recipe.py").write_text(WHOLE)
    whole = ["--out", "whole", "--frozen", "--recipe", "recipe.py", "--record", "gradients", "--"]
    done = run([*TRACE, *whole, *write(HEAD_THEN_ALL)], record.root.parent)
    assert 0 in Run.open(record.root.parent / "whole").having("gradient"), done.stderr


WHOLE = """
import torch, tvgrad
from torch import nn
def recipe():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return tvgrad.Recipe(model, nn.MSELoss(), (x, x.sum(1, keepdim=True)))
"""


GAN = """
del optimizer  # of a model that is not trained
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)
both = Both()
first = torch.optim.SGD(both.critic.parameters(), lr=0.1)
second = torch.optim.SGD(both.generator.parameters(), lr=0.2)
for epoch in range(2):
    for a, _ in loader:
        z = torch.randn(len(a), 2)
        first.zero_grad()
        both.critic(a).mean().backward()
        both.critic(both.generator(z).detach()).mean().neg().backward()
        first.step()
        second.zero_grad()
        both.critic(both.generator(z)).mean().backward()
        second.step()
torch.save(both.state_dict(), "last.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", [None, "generator"])
def test_two_parts_of_one_model(part: str | None, write: Write, tmp_path: Path) -> None:
    model = [] if part is None else ["--model", part]
    run([*TRACE, "--out", "run", *model, "--", *write(GAN)], tmp_path)
    record = Run.open(tmp_path / "run")
    truth = torch.load(tmp_path / "last.pt", weights_only=True)
    names = {name for name in truth if part is None or name.startswith(part)}
    assert record.weights(2).keys() == names
    assert all(torch.equal(record.weights(2)[name], truth[name]) for name in names)
    assert [point.steps for point in record.points] == [0, 4, 8]
    for name, total in record.epoch_gradient(1).items():  # each optimizer consumes its own gradients, once
        rate = 0.1 if name.startswith("critic") else 0.2
        torch.testing.assert_close(total.double(), -record.task_vector(1)[name] / rate, rtol=1e-4, atol=1e-5)
    if part is not None:
        assert set(record.steps()["accumulated"]) == {1}
        assert record.rule is not None


OTHERS = """
kinds = {"adadelta": torch.optim.Adadelta, "adafactor": torch.optim.Adafactor, "nadam": torch.optim.NAdam}
class Lion(torch.optim.Optimizer):
    def __init__(self, parameters, lr=1e-3):
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99)})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.add_((0.9 * m + 0.1 * p.grad).sign(), alpha=-group["lr"])
                    m.mul_(0.99).add_(p.grad, alpha=0.01)
optimizer = {**kinds, "lion": Lion}[sys.argv[1]](model.parameters(), lr=1e-2)
for epoch in range(2):
    for a, b in loader: step(a, b)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adadelta", "adafactor", "lion"])
def test_optimizers_without_a_known_rule(kind: str, write: Write, tmp_path: Path) -> None:
    run([*TRACE, "--out", "run", "--", *write(OTHERS), kind], tmp_path)
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    verdict = check_one_epoch(record).verdicts[-1]
    assert verdict.holds == "does not apply"
    assert f"the update rule of {record.info['optimizer']} is not known" in verdict.reason
    cli = [TRACE[0], "-c", TRACE[2]]
    for arguments in (
        ["report", "run", "--out", "report"],
        ["export", "run", "--epoch", "2", "--out", "exported"],
        ["merge", "run", "--epoch", "2", "--method", "task_arithmetic", "--alpha", "1", "--out", "merged.safetensors"],
        ["verify", "run"],
    ):
        done = run([*cli, *arguments], tmp_path)
        assert done.returncode == 0, done.stderr
