"""Weights that move outside the optimizer's steps are noticed, and those that a script ends with are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integrations.script.script_runs import TRACE, run
from tvgrad import Run
from tvgrad.integrations.script.weights_watch import WeightsWatch, differ

Write = Callable[[str], list[str]]
Move = Callable[[nn.Parameter, int], object]


def watched(between: Move, steps: int = 20, record_every: int = 5) -> int:
    """The count of a watch, where something happens to the weights after each step."""
    weights = nn.Parameter(torch.linspace(-1.0, 1.0, 3000))
    watch = WeightsWatch([weights])
    for step in range(1, steps + 1):
        watch.look()
        with torch.no_grad():
            weights.add_(0.01)
            watch.after_step()
            if step % record_every == 0:
                watch.look_again()
            between(weights, step)
    return watch.moved


def swap_and_back(weights: nn.Parameter, step: int) -> None:
    if step % 5 == 0:
        kept = weights.clone()
        weights.zero_()
        weights.copy_(kept)


CASES: dict[str, tuple[Move, int]] = {
    "nothing": (lambda weights, step: None, 0),
    "a projection": (lambda weights, step: weights.clamp_(-0.5, 0.5) if step < 20 else None, 19),
    "a mask at step 13": (lambda weights, step: weights[::2].zero_() if step == 13 else None, 1),
    "a mask by data": (lambda weights, step: weights.data[:100].zero_(), 8),  # seen where samples are taken
    "a projection in vain": (lambda weights, step: weights.clamp_(-9, 9), 0),
    "a swap and back": (swap_and_back, 0),
    "a loss of all": (lambda weights, step: weights.fill_(torch.nan) if step == 4 else None, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_count(case: str) -> None:
    between, expected = CASES[case]
    assert watched(between) == expected


def test_weights_that_differ() -> None:
    recorded = {"a": torch.tensor([1.0, torch.nan]), "b": torch.tensor(2.0)}
    same = {name: tensor.clone() for name, tensor in recorded.items()}
    assert not differ(recorded, same)
    assert not differ(recorded, {name: tensor.half() for name, tensor in same.items()})
    assert differ(recorded, same | {"b": torch.tensor(2.0000002)})
    assert differ(recorded, same | {"b": torch.ones(1)})
    assert differ(recorded, {"a": same["a"]})


LOOP = """
average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for epoch in range(2):
    for a, b in loader:
        step(a, b)
        EACH
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 0.1)
END
print([tensor.sum().item() for tensor in model.state_dict().values()])
sys.exit(3)
"""
SCRIPTS = {
    "plain": ("pass", "", 0, False),
    "clamp": ("model.weight.data.clamp_(-0.1, 0.1)", "", 4, False),
    "swap": ("pass", "model.load_state_dict(average)", 0, True),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_changes_its_weights(name: str, write: Write, tmp_path: Path) -> None:
    each, end, moved, differs = SCRIPTS[name]
    command = write(LOOP.replace("EACH", each).replace("END", end))
    alone = run(command)
    traced = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert (traced.returncode, traced.stdout) == (3, alone.stdout)
    info = Run.open(tmp_path / "run").info
    assert info["moved_outside_steps"] == moved
    assert info["final_weights_differ"] is differs
    assert "steps_unrecorded" not in info


def test_steps_after_the_last_recorded_point(write: Write, tmp_path: Path) -> None:
    command = write("for a, b in loader:\n    step(a, b)\n")
    run([*TRACE, "--out", str(tmp_path / "run"), "--record-at", "steps:1,3", "--", *command])
    info = Run.open(tmp_path / "run").info
    assert (info["moved_outside_steps"], info["steps_unrecorded"], info["final_weights_differ"]) == (0, 1, True)
