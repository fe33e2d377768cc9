"""Scripts that change gradients between backward pass and step: dividing them, or clipping them by their own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.integrations.script.script_runs import TRACE, run, warm
from tvgrad.record.batch_weights import Evidence
from tvgrad.record.changed import as_consumed, factor_of
from tvgrad.record.number_range import NumberRange
from tvgrad.store.measured import EXACT, measured_at

START = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x, y = torch.randn(20, 5), torch.randint(3, (20,))
model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
gathered = 0
for epoch in range(2):
    for index, (a, b) in enumerate(DataLoader(TensorDataset(x.double(), y), batch_size=BATCH)):
"""
SUM = "        nn.functional.cross_entropy(model(a), b, reduction='sum').backward()\n"
MEAN = "        nn.functional.cross_entropy(model(a), b).backward()\n"
END = """
            optimizer.step()
            optimizer.zero_grad()
"""
BY_SAMPLES = f"""{SUM}
        if True:
            for p in model.parameters():
                p.grad /= len(a)
{END}"""
BY_SAMPLES_OF_STEP = f"""{SUM}
        gathered += len(a)
        if index % 2 or index == 6:
            for p in model.parameters():
                p.grad /= gathered
            gathered = 0
{END}"""
BY_BATCHES = f"""{MEAN}
        if index % 2:
            for p in model.parameters():
                p.grad /= 2
{END}"""
BY_BATCHES_OF_STEP = f"""{MEAN}
        if index % 3 == 2 or index == 6:
            for p in model.parameters():
                p.grad /= index % 3 + 1
{END}"""
CLIPPED = f"""{MEAN}
        if True:
            norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
            for p in model.parameters():
                p.grad *= (0.1 / norm).clamp(max=1.0)
{END}"""


def truth(recorded: tvgrad.Run) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model.load_state_dict(recorded.complete(0))
    nn.functional.cross_entropy(model(x.double()), y).backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    ("body", "batch", "exact", "said"),
    [
        (BY_SAMPLES, 3, True, "batches weighted by samples"),
        (BY_SAMPLES_OF_STEP, 3, True, "steps weighted by samples"),
        (BY_BATCHES, 5, True, "batches weighted by samples, 2 batches to a step"),
        (BY_BATCHES_OF_STEP, 3, False, "factors that differ between its steps"),
        (CLIPPED, 3, False, "the weights are not confirmed"),
    ],
    ids=["samples", "samples of a step", "batches", "batches of a step", "clipped"],
)
def test_gradients_are_those_that_steps_consume(tmp_path: Path, body: str, batch: int, exact: bool, said: str) -> None:
    (tmp_path / "script.py").write_text(START.replace("BATCH", str(batch)) + body)
    command = warm(str(tmp_path / "script.py"))
    assert run([*TRACE, "--out", str(tmp_path / "run"), "--", *command]).returncode == 0
    main(["measure", str(tmp_path / "run"), "--at", "0", "--", *command])
    recorded = tvgrad.Run.open(tmp_path / "run")
    made, gradient = measured_at(recorded, 0), recorded.gradient(0)
    assert made is not None
    assert (made["kind"] == EXACT) is exact
    assert said in f"{made['weights']}; {made['reason']}"
    if exact:
        assert all(
            float((gradient[name] - one).norm()) < 1e-13 * float(one.norm()) for name, one in truth(recorded).items()
        )


def evidence(step: int, *gradient: float) -> Evidence:
    return Evidence(step, step, (1.0,), torch.tensor(gradient, dtype=torch.float64))


def test_one_batch_of_a_step_is_what_it_consumes() -> None:
    consumed = torch.tensor([5.0, -1.0], dtype=torch.float64)
    before, one = evidence(0, 1.0, 2.0), evidence(1, 3.0, 4.0)
    (first, last), changed = as_consumed([before, one], 1, consumed, torch.float32)
    assert first is before
    assert torch.equal(last.gradient, consumed)
    assert not changed
    assert as_consumed([before], 1, consumed, torch.float32) == ([before], False)


@pytest.mark.parametrize(("consumed", "changed"), [((2.0, 3.0), False), ((2.0, 3.0 + 1e-5), True), ((4.0, 6.0), False)])
def test_several_batches_of_a_step_are_multiplied_alike(consumed: tuple[float, float], changed: bool) -> None:
    found, unlike = as_consumed(
        [evidence(1, 3.0, 2.0), evidence(1, 1.0, 4.0)], 1, torch.tensor(consumed, dtype=torch.float64), torch.float32
    )
    assert unlike is changed
    factor = consumed[0] / 4.0
    assert torch.allclose(found[1].gradient, factor * torch.tensor([1.0, 4.0], dtype=torch.float64), rtol=1e-5)


def test_rounding_is_no_factor() -> None:
    one = torch.randn(100, dtype=torch.float64)
    assert factor_of(one * (1 + 1e-8), one, torch.float32) == 1.0
    assert factor_of(one * 0.75, one, torch.float32) == pytest.approx(0.75)
    assert factor_of(one * (1 + 1e-3), one, torch.bfloat16) == 1.0
    assert factor_of(one, torch.zeros(100, dtype=torch.float64), torch.float32) == 1.0


def test_ranges_of_several_processes() -> None:
    one, other = NumberRange(), NumberRange()
    assert one.all_within(0.0)
    one.add(3.0)
    other.join([one])
    assert other.all_within(0.0)
    other.add(3.0 + 1e-6)
    assert not other.all_within(0.0)
    assert other.all_within(1e-6)
