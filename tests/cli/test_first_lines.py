"""Whoever reads only the first line of an output comes away with the truth, which is computed here from raw files.

Nothing of tvgrad computes the truth: run.json, csv and safetensors are read as they lie on disk, and numbers are formed
by numpy in float64.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.integrations.script.script_runs import TRACE
from tests.integrations.script.script_runs import run as run_command

RECIPES = '''
import torch
from torch import nn
import tvgrad

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(40, 5), torch.randint(0, 3, (40,))


def mlp(activation=nn.Tanh, zero=False, dropout=0.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), activation(), nn.Dropout(dropout), nn.Linear(7, 3))
    if zero:
        nn.init.zeros_(model[3].weight)
        nn.init.zeros_(model[3].bias)
    return model


def make(model=None, loss=nn.CrossEntropyLoss(), data=(INPUTS, TARGETS), **options):
    return tvgrad.Recipe(model or mlp(), loss, data, **{"name": "mine", "lr": 0.1, "epochs": 3, **options})


def plain():
    return make()


def two():
    return [make(name="one"), make(name="two", data=(INPUTS * 2, TARGETS))]


def relu():
    return make(mlp(nn.ReLU))


def dropout():
    return make(mlp(dropout=0.5), allow=("dropout",))


def one_sample():
    return make(data=(INPUTS[:1], TARGETS[:1]))


def zero_head():
    return make(mlp(zero=True))


def wild():
    return make(loss=lambda output, target: output.pow(4).mean(), lr=30.0, epochs=4)


class Fragile(nn.Module):
    """Not a number as soon as its first weight has moved by more than a step or two."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()
        self.register_buffer("start", self.layers[0].weight.detach().clone())

    def forward(self, x):
        moved = (self.layers[0].weight - self.start).norm().detach()
        return self.layers(x) * torch.where(moved > 0.02, torch.nan, 1.0)


def late_nan():
    return make(Fragile(), epochs=20)


def masked():
    targets = TARGETS.clone()
    targets[::3] = -100
    return make(data=(INPUTS, targets), count=lambda batch: (batch[1] != -100).sum())


def masked_without_count():
    targets = TARGETS.clone()
    targets[::3] = -100
    return make(data=(INPUTS, targets))


def class_weights():
    return make(loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])))


def class_weights_zero_head():
    return make(mlp(zero=True), loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])))


def class_weights_with_count():
    weights = torch.tensor([1.0, 5.0, 0.1])
    return make(loss=nn.CrossEntropyLoss(weight=weights), count=lambda batch: weights[batch[1]].sum())


def drops_last():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, TARGETS), batch_size=7, drop_last=True)
    return make(data=loader)


def replaces():
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=40)
    return make(data=torch.utils.data.DataLoader(data, batch_size=8, sampler=sampler))
'''

SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

torch.manual_seed(0)
x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
data = TensorDataset(x, y)
model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
SETUP = None
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(data, batch_size=40)
average = [p.detach().clone() for p in model.parameters()]
{before}
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(a).float(), b)
        loss.backward()
        {between}
        optimizer.step()
    {after}
save_file({{name: p.detach() for name, p in model.named_parameters()}}, sys.argv[1])
"""

SCRIPTS = {
    "clipped": {"between": "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)"},
    "clipped_by_hand": {"between": "[p.grad.mul_(0.01) for p in model.parameters()]"},
    "noise": {"between": "[p.grad.add_(torch.randn_like(p.grad)) for p in model.parameters()]"},
    "float16": {"before": "model.half(); x = x.half(); loader = DataLoader(TensorDataset(x, y), batch_size=40)"},
    "swapped": {"after": "[p.data.copy_(0.5 * p.data + 0.5 * a) for p, a in zip(model.parameters(), average)]"},
    "drop_last": {"before": "loader = DataLoader(data, batch_size=7, drop_last=True)"},
    "replacement": {
        "before": "loader = DataLoader(data, batch_size=40, sampler=RandomSampler(data, replacement=True))"
    },
}


@dataclass(frozen=True)
class Truth:
    """What raw files say of a run's first epoch."""

    deviation: float
    cosine: float
    diverged: bool
    stopped: bool
    others: bool = False  # the script ended with other weights than the last recorded ones

    @property
    def gradient(self) -> str:
        if math.isnan(self.deviation):
            return "unknown"
        return "yes" if self.deviation <= 0.01 else "no"


def flat(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    tensors = load_file(path)
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


def truth_of(root: Path) -> Truth:
    manifest = json.loads((root / "run.json").read_text())
    info = manifest["info"]
    with (root / "metrics.csv").open() as file:
        losses = [row.get("loss") for row in csv.DictReader(file)]
    values = [math.nan if loss in {"", None} else float(loss) for loss in losses]
    recorded = any(loss is not None for loss in losses)
    stopped = not manifest["finished"]
    diverged = recorded and (not all(map(math.isfinite, values)) or max(values) > 2 * values[0])
    gradient, after = root / "gradients" / "epoch-0000.safetensors", root / "weights" / "epoch-0001.safetensors"
    if not gradient.exists():
        return Truth(math.nan, math.nan, diverged, stopped)
    tau = flat(after) - flat(root / "weights" / "epoch-0000.safetensors")
    rate = info["rule"]["lr"]
    step = -(rate if isinstance(rate, float) else rate[0]) * flat(gradient)
    norm = np.linalg.norm
    cosine = float(tau @ step / (norm(tau) * norm(step))) if norm(tau) else math.nan
    return Truth(float(norm(tau - step) / norm(step)), cosine, diverged, stopped)


def number(text: str) -> float:
    if text.endswith("times"):
        return float(text.split()[0].replace(",", ""))
    return float(text.split()[0]) / (100 if text.endswith("%") else 1)


def check_line(line: str, truth: Truth) -> None:
    """One run's first line against the truth, every number to its printed digits."""
    assert line.startswith("Diverged") == truth.diverged, line
    assert line.startswith("Not finished") == (truth.stopped and not truth.diverged), line
    assert ("Not the script's final weights" in line) == truth.others, line
    said = re.search(r"full-batch gradient after the first epoch: (yes|no|unknown)", line)
    assert said is not None, line
    assert said[1] == truth.gradient, (line, truth)
    if truth.gradient == "unknown":
        return
    far = re.search(r"([\d.,e+-]+(?: %| times)?) away", line)
    assert far is not None, line
    assert number(far[1]) == pytest.approx(truth.deviation, rel=0.06, abs=0.006 if "%" in far[1] else 0), (line, truth)
    cosine = re.search(r"cosine (-?\d\.\d\d)", line)
    if not math.isnan(truth.cosine):
        assert cosine is not None, line
        assert float(cosine[1]) == pytest.approx(truth.cosine, abs=0.0051), (line, truth)


RUNS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # name: (recipe, options, what the truth must be, so that a case cannot lose its point)
    "float32": ("plain", (), "yes"),
    "bfloat16": ("plain", ("--dtype", "bfloat16", "--lr", "1e-4"), "no"),
    "adam": ("plain", ("--optimizer", "adam"), "no"),
    "adamw": ("plain", ("--optimizer", "adamw", "--weight-decay", "0.3"), "no"),
    "decay": ("plain", ("--optimizer", "sgd", "--weight-decay", "0.3"), "no"),
    "momentum": ("plain", ("--optimizer", "momentum", "--batch-size", "8"), "no"),
    "tiny rate": ("plain", ("--lr", "1e-9"), "no"),
    "dropout": ("dropout", ("--optimizer", "sgd", "--batch-size", "8"), "no"),
    "relu": ("relu", (), "yes"),
    "one sample": ("one_sample", (), "yes"),
    "zero head": ("zero_head", (), "yes"),
    "masked": ("masked", (), "yes"),
    "class weights with count": ("class_weights_with_count", (), "yes"),
    "diverged": ("wild", (), ""),
    "late nan": ("late_nan", (), ""),
}


@pytest.fixture
def adverse(tmp_path: Path) -> Path:
    path = tmp_path / "adverse.py"
    path.write_text(RECIPES)
    return path


def first_lines(tvgrad: Callable[..., Any], *roots: Path) -> list[str]:
    found = []
    for command in ("verify", "report"):
        outcome = tvgrad(command, *roots)
        assert "Traceback" not in outcome.err
        found.append(outcome.out.splitlines()[0])
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_first_line_of_a_traced_recipe(
    name: str, adverse: Path, tmp_path: Path, tvgrad: Callable[..., Any]
) -> None:
    recipe, options, expected = RUNS[name]
    root = tmp_path / "run"
    tvgrad("trace", f"{adverse}:{recipe}", "--out", root, "--quiet", *options)
    truth = truth_of(root)
    assert expected in {"", truth.gradient}, truth
    assert truth.diverged == (name == "diverged"), truth
    assert truth.stopped == (name in {"diverged", "late nan"}), truth
    for line in first_lines(tvgrad, root):
        check_line(line, truth)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_first_line_of_a_traced_script(name: str, tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    script, root, final = tmp_path / "script.py", tmp_path / "run", tmp_path / "final.safetensors"
    script.write_text(SCRIPT.format(**{"before": "", "between": "", "after": "", **SCRIPTS[name]}))
    done = run_command([*TRACE, "--out", str(root), "--", sys.executable, str(script), str(final)])
    assert done.returncode == 0, done.stderr
    others = not np.array_equal(flat(final), flat(max((root / "weights").iterdir())))
    assert others == (name == "swapped")
    for line in first_lines(tvgrad, root):
        check_line(line, replace(truth_of(root), others=others))


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("class_weights", "count"),
        ("class_weights_zero_head", "count"),
        ("masked_without_count", "count"),
        ("drops_last", "drop_last"),
        ("replaces", "replacement"),
    ],
)
def test_a_set_up_that_makes_a_number_wrong_is_refused(
    recipe: str, named: str, adverse: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert named in refused("trace", f"{adverse}:{recipe}", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_line_of_several_runs(adverse: Path, tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    folder = tmp_path / "runs"
    for name, options in {
        "gd": (),
        "adam": ("--optimizer", "adam"),
        "momentum": ("--optimizer", "momentum", "--batch-size", "8"),
        "seed0": ("--optimizer", "sgd", "--batch-size", "8", "--seed", "0"),
        "seed1": ("--optimizer", "sgd", "--batch-size", "8", "--seed", "1"),
    }.items():
        tvgrad("trace", f"{adverse}:plain", "--out", folder / name, "--quiet", *options)
    roots = sorted(folder.iterdir())
    truths = {root.name: truth_of(root) for root in roots}
    denied = {name: truth for name, truth in truths.items() if truth.gradient == "no"}
    assert len(denied) == 4
    worst = max(denied.values(), key=lambda truth: truth.deviation)
    for line in first_lines(tvgrad, *roots):
        assert re.search(rf"no for {len(denied)} of {len(truths)} runs", line), line
        far = re.search(r"([\d.,]+(?: %| times)?) away, cosine (-?\d\.\d\d)", line)
        assert far is not None
        assert number(far[1]) == pytest.approx(worst.deviation, rel=0.06)
        assert float(far[2]) == pytest.approx(worst.cosine, abs=0.0051)
        assert line.index("no for") < line.index("yes for 1")
