"""torchrun with one process killed in the middle of its work: what is said, what is left, and how the run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.problem import shared_recipes
from tvgrad import Run
from tvgrad.numerics.floats import unit_roundoff
from tvgrad.vectors.parameters import Weights

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]

RECIPES = str(Path(shared_recipes.__file__))
CHUNK = 3
"""Five chunks of 13 samples: two processes have three and two of them, four processes two, one, one and one."""
U = unit_roundoff(torch.float64)
GD = ("--optimizer", "gd", "--chunk-size", str(CHUNK))
ADAMW = ("--optimizer", "adamw", "--lr", "0.01", "--batch-size", "4", "--chunk-size", str(CHUNK))


def torchrun(folder: Path, count: int, model: str, out: str, *more: str, kill: str = "") -> tuple[int, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m"]
    done = subprocess.run(
        [*command, "tvgrad", "trace", f"{RECIPES}:{model}", "--dtype", "float64", "--out", out, *more],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"} | ({"KILL": kill} if kill else {}),
    )  # fmt: skip
    return done.returncode, done.stderr


def flat(vector: Weights) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in vector.values()])


def size_of_sum(model: str, weights: Weights) -> tuple[torch.Tensor, int]:
    """The sum of the sizes of what chunks add to the mean gradient, by a loop of the test's own; chunks with weight."""
    recipe = getattr(shared_recipes, model)()
    net = recipe.model.double()
    for name, parameter in net.named_parameters():
        parameter.data.copy_(weights[name])
    total, summed, chunks = torch.zeros(()), 0.0, 0
    for start in range(0, shared_recipes.SAMPLES, CHUNK):
        x, y = recipe.train.batch(start, start + CHUNK)
        weight = float(shared_recipes.tokens_of((x, y))) if model == "gpt" else float(len(y))
        if weight:
            loss = recipe.loss(net(x.double() if x.is_floating_point() else x), y)
            gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(net.parameters()))])
            total, summed, chunks = total + weight * gradient.abs(), summed + weight, chunks + 1
    return total / summed, chunks


@pytest.mark.parametrize(
    ("model", "how", "count", "killed", "again"),
    [
        ("gpt", GD, 4, 1, 2),  # in the middle of a pass over the data
        ("gpt", ADAMW, 4, 3, 1),  # in the middle of a step
        ("gpt", GD, 2, 0, 4),  # the first process
        ("vit", GD, 2, 1, 3),
        ("mlp", ADAMW, 2, 0, 4),
    ],
)
def test_a_killed_process_ends_all_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    how: tuple[str, ...],
    count: int,
    killed: int,
    again: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = torchrun(tmp_path, 1, model, "never", *how)
    assert code == 0, err
    began = time.monotonic()
    place = f"{killed}:3:{killed}:3" if how is GD else f"0:7:{killed}:4"
    code, err = torchrun(tmp_path, count, model, "run", *how, kill=place)
    assert code != 0
    assert time.monotonic() - began < 60
    said = [line for line in err.splitlines() if line.startswith("Error: ")]
    if count > 2 or killed > 0:
        (sentence,) = said
        assert "--resume" in sentence
        assert "on as many processes as you like: finished epochs are whole" in sentence
    record = Run.open("run")
    assert 0 < len(record.epochs) < 5
    assert not record.problems()
    shutil.copytree("run", "one")
    for processes, out in ((again, "run"), (1, "one")):
        code, err = torchrun(tmp_path, processes, model, out, "--resume")
        assert code == 0, err
    compare(model, record.epochs[-1], how)


def compare(model: str, resumed: int, how: tuple[str, ...]) -> None:
    never, run, one = Run.open("never"), Run.open("run"), Run.open("one")
    assert never.epochs == run.epochs == one.epochs == [0, 1, 2, 3, 4]
    for epoch in never.epochs:
        if how is ADAMW:  # the first process takes the steps
            assert torch.equal(flat(run.weights(epoch)), flat(never.weights(epoch)))
            check_gradients(model, run.weights(epoch), run.gradient(epoch), never.gradient(epoch))
        for read in (Run.weights, Run.gradient):
            truth = flat(read(never, epoch))
            assert float((flat(read(run, epoch)) - truth).norm()) <= 1e-12 * float(truth.norm())
    if how is GD:  # the first step after the resume begins at the same bits, and is as far apart as its gradient may be
        start = run.weights(resumed)
        assert torch.equal(flat(start), flat(one.weights(resumed)))
        apart = check_gradients(model, start, run.gradient(resumed), one.gradient(resumed))
        left, right = (flat(record.weights(resumed + 1)) for record in (run, one))
        step = shared_recipes.HOW["lr"] * flat(run.gradient(resumed)).abs()
        bound = shared_recipes.HOW["lr"] * apart + U * (left.abs() + right.abs()) + 4 * U * step
        assert bool(((left - right).abs() <= bound).all())


def check_gradients(model: str, weights: Weights, one: Weights, other: Weights) -> torch.Tensor:
    """Two sums of the same m terms, in any order: 2 gamma of m + 1 times the sum of their sizes."""
    sizes, chunks = size_of_sum(model, weights)
    terms = chunks + 1  # products, sums of m, and the division
    bound = 2 * terms * U / (1 - terms * U) * sizes
    assert bool(((flat(one) - flat(other)).abs() <= bound).all())
    return bound
