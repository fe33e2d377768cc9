"""Scripts that train more than once: a search for a rate, a trial, folds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integrations.script.script_runs import TRACE, run
from tvgrad import Run
from tvgrad.integrations.script.continuation import announce_begun, begun_before
from tvgrad.integrations.script.options import sibling
from tvgrad.integrations.script.step_facts import only_makes_state
from tvgrad.integrations.script.weights_watch import WeightsWatch

Write = Callable[[str], list[str]]


def test_weights_that_are_put_back_are_told() -> None:
    weights = nn.Parameter(torch.linspace(-1.0, 1.0, 3000))
    start = weights.detach().clone()
    watch = WeightsWatch([weights])

    def step(size: float) -> None:
        with torch.no_grad():
            weights.add_(size)
        watch.after_step()

    step(0.0)  # a warm-up that begins with rate 0
    with torch.no_grad():
        weights.copy_(start)
    assert not watch.returned
    for _ in range(3):
        step(0.1)
        assert not watch.returned
    with torch.no_grad():
        weights.copy_(start + 1)
    assert not watch.returned
    with torch.no_grad():
        weights.copy_(start)
    assert watch.returned


def test_the_name_of_a_later_training(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert sibling(out, 2, replaced=False) == f"{out}-2"
    (tmp_path / "run-2").mkdir()
    assert sibling(out, 2, replaced=False) == f"{out}-3"
    assert sibling(out, 2, replaced=True) == f"{out}-2"


TRAINS = """
for epoch in range(2):
    for a, b in loader: step(a, b)
torch.save(model.state_dict(), "last.pt")
"""

TRIALS = {
    "a search for a rate in a cycle": """
kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for (a, b), _ in zip(itertools.cycle(loader), range(6)):
    step(a, b)
    optimizer.param_groups[0]["lr"] *= 1.1
model.load_state_dict(kept)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
""",
    "a search for a rate that is cut off": """
kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for index, (a, b) in enumerate(loader):
    step(a, b)
    if index == 2: break
model.load_state_dict(kept)
""",
    "a trial on one batch of a copy": """
import copy
real, model = model, copy.deepcopy(model)
optimizer = torch.optim.Adam(model.parameters())
a, b = next(iter(loader))
for _ in range(3): step(a, b)
model, optimizer = real, torch.optim.SGD(real.parameters(), lr=0.05)
""",
}


STEPS = {"a search for a rate in a cycle": 6, "a search for a rate that is cut off": 3}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRIALS)
def test_a_trial_is_no_epoch(case: str, write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", "run", "--", *write(TRIALS[case] + TRAINS)], tmp_path)
    assert "training begins" in done.stderr, done.stderr
    assert "3 points, the last at epoch 2\n" in done.stderr
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run"]
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 4, 8]
    truth = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(tensor, truth[name]) for name, tensor in record.weights(2).items())
    assert record.manifest.finished
    assert not record.info["final_weights_differ"]
    assert record.info.get("trial_steps") == STEPS.get(case)


FOLDS = """
for fold in range(2):
    {fresh}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        for a, b in loader: step(a, b)
    torch.save(model.state_dict(), f"fold{{fold}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fresh", ["model = nn.Linear(3, 1)", "model.load_state_dict(kept)"])
def test_each_fold_has_a_run(fresh: str, write: Write, tmp_path: Path) -> None:
    kept = "kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}\n"
    done = run([*TRACE, "--out", "run", "--", *write(kept + FOLDS.format(fresh=fresh))], tmp_path)
    assert "it is recorded in" in done.stderr, done.stderr
    for name, fold in (("run", 0), ("run-2", 1)):
        record = Run.open(tmp_path / name)
        assert [point.steps for point in record.points] == [0, 4, 8]
        truth = torch.load(tmp_path / f"fold{fold}.pt", weights_only=True)
        assert all(torch.equal(tensor, truth[key]) for key, tensor in record.weights(2).items())
        assert record.manifest.finished
        assert f"{name}: 3 points" in done.stderr
        assert record.info.get("training", 1) == fold + 1


PART = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
if os.path.exists("part.pt"):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    get_optimizer_state_dict(model, optimizer)  # as for a checkpoint of parts: a step of rate 0 makes the state
    part = torch.load("part.pt", weights_only=True)
    model.load_state_dict(part["model"]), optimizer.load_state_dict(part["optimizer"])
for a, b in loader: step(a, b)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "part.pt")
"""


def test_a_script_that_loads_its_checkpoint_goes_on_with_its_run(write: Write, tmp_path: Path) -> None:
    command = [*TRACE, "--resume", "--out", "run", "--", *write(PART)]
    assert run(command, tmp_path).returncode == 0
    (tmp_path / "part.pt").rename(tmp_path / "first.pt")
    (tmp_path / "part.pt").write_bytes((tmp_path / "first.pt").read_bytes())
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run goes on from epoch 1, whose weights the script begins with" in done.stderr
    record = Run.open(tmp_path / "run")
    assert ([point.steps for point in record.points], record.info["resumed_at"]) == ([0, 4, 8], [1])
    assert record.info["rule"]["name"] == "momentum"
    assert record.info["epoch_endings"] == ["loader", "loader"]
    assert record.manifest.finished
    assert not record.problems()
    for number, name in ((1, "first.pt"), (2, "part.pt")):
        truth = torch.load(tmp_path / name, weights_only=True)["model"]
        assert all(torch.equal(tensor, truth[key]) for key, tensor in record.weights(number).items())
    (tmp_path / "first.pt").rename(tmp_path / "part.pt")
    refused = run(command, tmp_path)
    assert refused.returncode == 2
    assert "ends with the weights of epoch 2, and the script begins with those of epoch 1: load the" in refused.stderr
    assert Run.open(tmp_path / "run").epochs == [0, 1, 2]


WARMS_UP = """
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
for a, b in loader:
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        return loss
    optimizer.step(closure)
    schedule.step()
"""


def test_a_warm_up_from_rate_0_by_a_closure_counts(write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", "run", "--", *write(WARMS_UP)], tmp_path)
    assert done.returncode == 0, done.stderr
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 4]
    assert record.steps(1)["lr"].tolist() == pytest.approx([0.0, 0.025, 0.05, 0.075])


def test_a_step_that_only_makes_state_is_told() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    assert not only_makes_state(optimizer)  # gradients come from a closure
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert only_makes_state(optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    assert not only_makes_state(optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    model.bias.grad = torch.ones(1)  # made by hand
    assert not only_makes_state(optimizer)


@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "AdamW"])
def test_an_optimizer_that_has_stepped_is_told(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 1)
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    assert not begun_before([optimizer])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    fresh = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    fresh.load_state_dict(optimizer.state_dict())
    assert begun_before([fresh])
    assert announce_begun(Path("run"))["rule"] is None
    assert "`tvgrad trace --resume --out RUN -- COMMAND`" in capfd.readouterr().err
