"""Scripts whose batches hold the same number of targets, but for a few that no probe of spread samples comes upon."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tests.integrations.script.script_runs import TRACE, run, warm
from tvgrad.integrations.measuring.measure import weights_told
from tvgrad.integrations.measuring.passes import PassOutcome
from tvgrad.record.batch_items import COUNTERS
from tvgrad.record.count_ratios import CountRatios
from tvgrad.record.weighing import BatchWeights
from tvgrad.store.measured import ESTIMATE, EXACT, measured_at

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
torch.manual_seed(0)
ids = torch.randint(1, 11, (640, 5))
labels = ids.roll(-1, 1)
RARE
class Stream(IterableDataset):
    def __iter__(self):
        return zip(ids, labels)
model = nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11)).double()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for epoch in range(2):
    for a, b in DataLoader(TensorDataset(ids, labels), batch_size=8):
        optimizer.zero_grad()
        each = nn.functional.cross_entropy(model(a).transpose(1, 2), b, reduction="none")
        if a[0, 0] == 1:
            nn.functional.cross_entropy(model(a).transpose(1, 2), b)  # for a log: no backward pass goes through it
        LOSS
        optimizer.step()
"""
MASKED = "labels[16:19, 1:] = -100"
TOKENS = "nn.functional.cross_entropy(model(a).transpose(1, 2), b).backward()"
IN_RANGE = "labels[labels == 3] = 4; labels[16:19, 1:] = 3"
IGNORING = TOKENS.replace("b)", "b, ignore_index=3)")
SAMPLES = "(each.sum(1) / (b != -100).sum(1)).mean().backward()"


def truth(recorded: tvgrad.Run, rare: str, loss: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(1, 11, (640, 5))
    labels = ids.roll(-1, 1)
    exec(rare, {"labels": labels})
    model = nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11)).double()
    model.load_state_dict(recorded.complete(0))
    each = -model(ids).log_softmax(2).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    used = (labels != (3 if loss == IGNORING else -100)).double()
    rows = (each * used).sum(1), used.sum(1)
    mean = (rows[0] / rows[1]).mean() if loss == SAMPLES else rows[0].sum() / rows[1].sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(mean, parameters), strict=True))


def traced_and_measured(script: Path) -> tuple[tvgrad.Run, dict[str, Any]]:
    """Run a script under the tracer and measure its first gradient: the run, and what it says of that."""
    out = script.with_name("run")
    watched = run([*TRACE, "--out", str(out), "--", *warm(str(script))])
    assert watched.returncode == 0, watched.stderr
    main(["measure", str(out), "--at", "0", "--", *warm(str(script))])
    measured = tvgrad.Run.open(out)
    made = measured_at(measured, 0)
    assert made is not None
    return measured, made


@pytest.mark.parametrize(
    ("rare", "loss", "counter"),
    [
        (MASKED, TOKENS, "tokens"),
        (IN_RANGE, IGNORING, "class weights of targets"),
        pytest.param(MASKED, SAMPLES, "samples", marks=pytest.mark.slow),
        pytest.param("labels[16:19, 1:] = 0", TOKENS, "samples", marks=pytest.mark.slow),
    ],
)
def test_rare_targets_decide_how_batches_are_weighed(tmp_path: Path, rare: str, loss: str, counter: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("RARE", rare).replace("LOSS", loss))
    measured, made = traced_and_measured(script)
    assert (made["kind"], COUNTERS[made["counter"]]) == (EXACT, counter)
    expected = truth(measured, rare, loss)
    for name, tensor in measured.gradient(0).items():
        assert float((tensor - expected[name]).norm()) < 1e-13 * float(expected[name].norm()), name


@pytest.mark.parametrize("data", ["Stream()", pytest.param("TensorDataset(ids, labels)", marks=pytest.mark.slow)])
def test_weights_by_hand_of_rare_targets_are_noticed(tmp_path: Path, data: str) -> None:
    rare = "labels[labels == 3] = 4; labels[17, 2] = 3; by_hand = torch.ones(11); by_hand[3] = 5"
    loss = "((each * by_hand[b]).sum() / by_hand[b].sum()).backward()"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("TensorDataset(ids, labels)", data).replace("RARE", rare).replace("LOSS", loss))
    _, made = traced_and_measured(script)
    assert made["kind"] == ESTIMATE
    assert "with the same samples in other batches: some of them weigh otherwise" in made["reason"]


@pytest.mark.slow
def test_a_script_that_takes_samples_in_order_only(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    ordered = "assert (a[1:, 0] >= a[:-1, 0]).all(), 'in order only'\n        " + TOKENS
    rare = "ids = ids[ids[:, 0].argsort()]; labels = ids.roll(-1, 1)"
    script.write_text(
        SCRIPT.replace("TensorDataset(ids, labels)", "Stream()").replace("RARE", rare).replace("LOSS", ordered)
    )
    _, made = traced_and_measured(script)
    assert made["kind"] == EXACT


def test_counts_that_stay_in_proportion_weigh_alike() -> None:
    ratios, other = CountRatios(0), CountRatios(0)
    ratios.add((2.0, 10.0, 8.0, 10.0, 0.3, 8.0))
    ratios.add((3.0, 15.0, 12.0, 14.0, 0.3 * 1.5, 12.0))
    assert ratios.unlike == [3]
    other.add((1.0, 5.0, 3.0, 5.0, 0.15, 4.0))
    ratios.join([other.ranges])
    assert ratios.unlike == [2, 3]
    ratios.add((0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    assert ratios.unlike == [2, 3, 5]


def test_what_no_batch_tells_apart_is_not_confirmed() -> None:
    seen: dict[str, Any] = {"weighing": "mean", "confirmed": True, "reason": "", "noise": False, "redrawn": False}
    again = PassOutcome({**seen, "counter": 0, "others": [1]}, {})
    weights, first = BatchWeights(confirmed=True, others=(1,)), PassOutcome({"unlike": [1, 3], "apart": []}, {})
    starts = Mock(pass_at=Mock(return_value=again))
    found, passed = weights_told(starts, 0, weights, first)
    assert passed is first
    assert not found.confirmed
    assert found.reason.startswith("samples and tokens weigh its batches differently")
    starts.pass_at.assert_called_once_with(0, probe=True, tell=(0, 1), apart=())
    assert weights_told(starts, 0, weights, PassOutcome({"unlike": [3]}, {})) == (
        weights,
        PassOutcome({"unlike": [3]}, {}),
    )
