"""The error budget of a script, against one that a plain loop computes from the formulas."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tvgrad
from tests.integrations.script.script_runs import TRACE, run, warm, warm_tvgrad
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.pass_files import read_sums, write_sum
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.record.step_sums import StepSums
from tvgrad.store.writer import RunWriter
from tvgrad.theory.explain import read_results
from tvgrad.theory.script_budget import script_budget, step_plan
from tvgrad.wording import printable

ESCAPE = "\x1b[2J"

BEGINNING = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(44, 8).double()
y = x.sum(1).long() % 2
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
"""
REST = """
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        scheduler.step()
"""
CLOSURE = """
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
for epoch in range(2):
    for a, b in loader:
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(a), b)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            return loss
        optimizer.step(closure)
        scheduler.step()
"""
TERMS = (
    "update rounding",
    "weight decay",
    "preconditioner",
    "clipping",
    "remainder + batch curvature (estimate)",
    "curvature (estimate)",
    "batch order",
    "unequal batches",
    "coverage",
)


def rows_by_hand() -> tuple[dict[str, float], torch.Tensor]:
    """Norms of the rows of epoch 1, and g_0, from the formulas of AdamW, in one flat float64 vector."""
    scope: dict[str, Any] = {}
    exec(BEGINNING, scope)
    model, x, y, loader = (scope[name] for name in ("model", "x", "y", "loader"))
    parameters = list(model.parameters())
    start = torch.cat([p.detach().reshape(-1) for p in parameters]).clone()

    def gradient(theta: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for p, part in zip(parameters, theta.split([p.numel() for p in parameters]), strict=True):
                p.copy_(part.view_as(p))
        loss = torch.nn.functional.cross_entropy(model(a), b)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    batches = list(loader)
    count, (b1, b2), decay = len(batches), (0.9, 0.999), 0.1
    rates = [0.005 * (1 + math.cos(math.pi * s / 12)) for s in range(count)]
    theta, plain = start.clone(), torch.zeros_like(start)
    m, v = torch.zeros_like(start), torch.zeros_like(start)
    consumed, unclipped, at_start, moves = [], [], [], []
    for s, (a, b) in enumerate(batches):
        g = gradient(theta, a, b)
        unclipped.append(g)
        moves.append(theta - start)
        consumed.append(g * min(1.0, 0.3 / (float(g.norm()) + 1e-6)))
        m, v = b1 * m + (1 - b1) * consumed[-1], b2 * v + (1 - b2) * consumed[-1] ** 2
        moved = rates[s] * (m / (1 - b1 ** (s + 1))) / ((v / (1 - b2 ** (s + 1))).sqrt() + 1e-8)
        theta = theta * (1 - rates[s] * decay) - moved
        plain = plain - moved
        at_start.append(gradient(start, a, b))
    c = [sum(rates[e] * (1 - b1) * b1 ** (e - s) / (1 - b1 ** (e + 1)) for e in range(s, count)) for s in range(count)]
    full = gradient(start, x, y)
    loss = torch.nn.functional.cross_entropy(model(x), y)  # at the start
    graph = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])

    def hessian_times(vector: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(graph, parameters, vector, retain_graph=True)])

    def along(vectors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
        return sum((w * vector for w, vector in zip(weights, vectors, strict=True)), torch.zeros_like(start))

    kappa = -float(plain @ along(consumed, c)) / float(along(consumed, c).square().sum())
    sizes = [len(a) for a, _ in batches]
    nodes = [
        theta - start,
        theta - start,
        plain,
        -kappa * along(consumed, c),
        -kappa * along(unclipped, c),
        -kappa * (along(at_start, c) + hessian_times(along(moves, c))),
        -kappa * along(at_start, c),
        -kappa * along(at_start, [sum(c) / count] * count),
        -kappa * along(at_start, [sum(c) * size / 44 for size in sizes]),
        -kappa * sum(c) * full,
    ]
    rows = [float((before - after).norm()) for before, after in itertools.pairwise(nodes)]
    return dict(zip(TERMS, rows, strict=True)), full


@pytest.mark.parametrize("rest", [REST, CLOSURE], ids=["plain", "closure"])  # Lightning's steps all take a closure
def test_a_script_is_explained_by_starting_it_again(rest: str, tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / f"run{ESCAPE}"
    script.write_text(BEGINNING + rest)
    command = warm(str(script))
    assert run([*TRACE, "--out", str(out), "--", *command]).returncode == 0
    expected, full = rows_by_hand()
    shapes = {name: torch.Size(one.shape) for name, one in Run.open(out).parameters.items()}
    parts = full.split([shape.numel() for shape in shapes.values()])
    writer = RunWriter.resume(out)
    writer.amend(0, {"gradient": {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}}, {})
    writer.close()

    done = run(warm_tvgrad("explain", str(out), "--", *command), starts=5)
    assert done.returncode == 0, done.stderr
    assert "two starts of the command, each of 1 epoch of forward and backward, and up to 2 more" in done.stderr
    assert "curvature of epoch 1 is an estimate, by a central difference" in done.stdout
    assert f"kept in {str(out / 'results').replace(ESCAPE, printable(ESCAPE))}\n" in done.stdout
    assert ESCAPE not in done.stdout + done.stderr
    rows = read_results(Run.open(out))[1]
    assert [row.term for row in rows] == list(TERMS)
    length = float(torch.cat([t.reshape(-1) for t in Run.open(out).task_vector(1).values()]).norm())
    for row in rows:
        # A central difference errs by about the square of the cube root of float64's unit, some 2e-11.
        rounding = 1e-9 if "estimate" in row.term else 1e-12
        assert row.norm == pytest.approx(expected[row.term], abs=rounding * length)
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-9)

    if rest == REST:
        script.write_text(BEGINNING.replace("randn(44, 8)", "randn(44, 8).mul(2)") + rest)
        other = run(warm_tvgrad("explain", str(out), "--", *command), starts=2)
        assert (other.returncode, other.stdout) == (2, "")
        assert "data is not what" in other.stderr
        assert "seeds" not in other.stderr


@pytest.fixture
def descent(tmp_path: Path) -> Run:
    """Gradient descent of two epochs, each one step."""
    return recorded(tmp_path, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def recorded(folder: Path, make: Any, **noted: float) -> Run:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    optimizer = make(model.parameters())
    with tvgrad.Recorder(folder / "run", model, optimizer, record=("epoch-gradients",)) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(4, 3).double()).square().mean().backward()
            optimizer.step()
            recorder.note_step(**noted)
            recorder.end_epoch()
    run = Run.open(folder / "run")
    writer = RunWriter.resume(run.root)
    writer.amend(0, {"gradient": run.epoch_gradient(1)}, {})
    writer.close()
    return Run.open(run.root)


def sums_of(run: Run, plan: StepPlan) -> tuple[Any, Any]:
    """The sums of the run's own steps, and those of a pass at theta_0 whose gradient is 1.5 times the run's.

    They come from files, as those of a script that was started again do.
    """
    folders = [run.root.with_name(f"{run.root.name}-{name}") for name in ("trained", "frozen")]
    for folder in folders:
        folder.mkdir()
    trained, frozen = (
        StepSums(plan, run.weights(0), keep=partial(write_sum, str(folder)), folder=folder) for folder in folders
    )
    for epoch in range(1, len(plan.ends)):
        trained.add_training_step(run.epoch_gradient(epoch), run.weights(epoch - 1))
        trained.end_training_step(run.weights(epoch))
        other = {name: 1.5 * tensor for name, tensor in run.gradient(0).items()}
        assert frozen.add_batch(other)
        frozen.add_epoch(other)
    assert trained.complete
    assert frozen.complete
    trained_sums, frozen_sums = map(read_sums, folders)
    return trained_sums, frozen_sums


def test_without_a_seed_only_coverage_has_a_row(descent: Run) -> None:
    plan = step_plan(descent, [2])
    budget = script_budget(descent, plan, *sums_of(descent, plan), same_batches=False)
    assert [row.term for row in budget.rows] == ["unexplained", "coverage"]
    coverage = 0.5 * 0.2 * float(torch.cat([t.reshape(-1) for t in descent.gradient(0).values()]).norm())
    assert budget.rows[1].norm == pytest.approx(coverage, rel=1e-12)
    assert any("seeds its random numbers" in sentence for sentence in budget.sentences)


def test_a_training_that_ends_elsewhere_has_a_row_of_its_own(descent: Run) -> None:
    plan = step_plan(descent, [1, 2])
    trained, frozen = sums_of(descent, plan)
    shift = {name: 1e-3 * tensor for name, tensor in descent.task_vector(2).items()}
    trained[2][ScriptSum.AFTER] = {name: tensor + shift[name] for name, tensor in descent.weights(2).items()}
    budget = script_budget(descent, plan, trained, frozen, same_batches=True)
    assert next(row.term for row in budget.rows if row.epoch == 2) == "replay mismatch"
    assert next(row.term for row in budget.rows if row.epoch == 1) == "update rounding"
    assert any("a row of its own" in sentence for sentence in budget.sentences)
    assert budget.closure < 1e-12


def test_a_preconditioner_takes_the_same_training(tmp_path: Path) -> None:
    run = recorded(tmp_path, lambda parameters: torch.optim.Adam(parameters, lr=0.1))
    plan = step_plan(run, [1])
    with pytest.raises(TvgradError, match="fix its seeds"):
        script_budget(run, plan, *sums_of(run, plan), same_batches=False)


def test_adam_without_decay_is_explained(tmp_path: Path) -> None:
    run = recorded(tmp_path, lambda parameters: torch.optim.Adam(parameters, lr=0.1))
    plan = step_plan(run, [1, 2])
    budget = script_budget(run, plan, *sums_of(run, plan), same_batches=True)
    rows = {row.term: row.norm for row in budget.rows if row.epoch == 2}
    assert rows["preconditioner"] < 1e-12, "every coordinate has the same gradient: a multiple of it"
    assert rows["weight decay"] == 0
    assert budget.closure < 1e-12


def test_clipping_by_several_factors_is_part_of_the_next_row(tmp_path: Path) -> None:
    run = recorded(tmp_path, lambda parameters: torch.optim.SGD(parameters, lr=0.1), clipped_in_parts=2)
    plan = step_plan(run, [1])
    budget = script_budget(run, plan, *sums_of(run, plan), same_batches=True)
    terms = [row.term for row in budget.rows]
    assert "clipping + remainder + batch curvature + curvature" in terms
    assert "clipping" not in terms


def test_epochs_that_were_not_kept_are_refused(descent: Run) -> None:
    with pytest.raises(TvgradError, match=r"keeps no weights after epoch \[7\]: choose from \[1, 2\]"):
        step_plan(descent, [1, 7])


def test_a_plan_is_the_same_after_a_trip_through_json(descent: Run) -> None:
    plan = step_plan(descent, [1, 2])
    assert StepPlan.from_json(plan.to_json()) == plan
    assert [plan.of_epoch(2, number) for number in (1, 2)] == pytest.approx([0.1, 0.1])
