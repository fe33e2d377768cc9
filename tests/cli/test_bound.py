"""`tvgrad bound` on the command line, and the bounds that `tvgrad explain` puts into the report."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tvgrad.cli.terminal import MOST_ROWS

from tvgrad.report.headings import heading
from tvgrad.store.run import Run

FORMS = [
    "closed, uniform",
    "closed, worst case",
    "closed, local",
    "remainder",
    "layer-wise",
    "quadratic",
    "cubic",
    "tube",
]

MORE = """

def relu():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)))


def elu():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ELU(), nn.Linear(7, 3)))


def pooled():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 6), nn.MaxPool1d(2), nn.Linear(3, 3)))


def poisoned():
    broken = model()
    broken[0].weight.data[0, 0] = math.nan
    return make(model=broken)


def nll():
    return make(loss=lambda output, target: nn.functional.nll_loss(output.log_softmax(1), target))


def normalised():
    return make(model=lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)))


def six():
    return [make(name=f"task{i}", data=(INPUTS * (1 + i), TARGETS)) for i in range(6)]
"""


@pytest.fixture
def mine(recipes: Path) -> Path:
    with open(recipes, "a") as file:
        file.write(MORE)
    return recipes


def numbers(tvgrad: Callable[..., Any], *words: object) -> dict[str, Any]:
    done = tvgrad("bound", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return found


def true_error(lr: float, epochs: int) -> float:
    """The error of tau + eta k g_0 for the recipe of the fixture, by a loop in float64."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    start = [p.detach().clone() for p in model.parameters()]
    first = None
    for _ in range(epochs):
        gradient = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), list(model.parameters()))
        first = first or gradient
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p -= lr * g
    assert first is not None
    parts = [p - s + lr * epochs * g for p, s, g in zip(model.parameters(), start, first, strict=True)]
    return float(torch.cat([part.detach().flatten() for part in parts]).norm())


def test_bounds_hold_and_simulation_can_be_left_out(mine: Path, tvgrad: Callable[..., Any]) -> None:
    error = true_error(0.1, 4)
    (both,) = numbers(tvgrad, mine, "--epochs", 4)["bounds"]
    (alone,) = numbers(tvgrad, mine, "--epochs", 4, "--no-simulate")["bounds"]
    assert both["task"] == "mine"
    assert both["lower_bound"] <= error <= both["error_bound"] <= 1.001 * error
    assert both["method"] == "tube"
    assert both["from_start"] == alone["error_bound"] == alone["from_start"] > both["error_bound"]
    assert alone["method"] == "cubic"


def test_printed_bounds_are_rounded_outward(mine: Path, tvgrad: Callable[..., Any]) -> None:
    words = [mine, "--epochs", 4]
    (row,) = numbers(tvgrad, *words)["bounds"]
    # One row is shown as a list of names and values.
    out = tvgrad("bound", *words).out
    listed = dict(line.split("│")[1:3] for line in out.splitlines() if line.startswith("│ "))
    values = {name.strip(): value.strip() for name, value in listed.items()}
    cells = {name: values[heading(name)] for name in row if heading(name) in values}
    low, high = re.search(r"lies between (\S+) % and (\S+) % of the first-order task vector", out).groups()
    assert Decimal(low) <= Decimal(100 * true_error(0.1, 4) / row["first_order_norm"]) <= Decimal(high)
    assert out.splitlines()[-1].startswith("mine: the error after 4 epochs lies between ")
    above = [name for name in ("error_bound", "from_start", "closed_form_bound", "radius") if row[name] is not None]
    assert len(above) >= 3
    for name in above:
        assert Decimal(cells[name]) >= Decimal(row[name])
    assert Decimal(cells["lower_bound"]) <= Decimal(row["lower_bound"])
    assert Decimal(cells["lower_bound"]) <= Decimal(true_error(0.1, 4)) <= Decimal(cells["error_bound"])


def test_every_form_of_every_task_is_shown(mine: Path, tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("bound", f"{mine}:six", "--lr", "1e-4", "--forms")
    assert done.code == 0, done.err
    assert 6 * len(FORMS) > MOST_ROWS
    table = done.out[done.out.index("Forms") :]
    for task in range(6):
        for form in FORMS:
            assert any(f"task{task}" in line and f"│ {form} " in line for line in table.splitlines()), (task, form)
    assert "..." not in done.out
    found = numbers(tvgrad, f"{mine}:six", "--lr", "1e-4", "--forms", "--tasks", "task1,task4")
    assert [row["task"] for row in found["bounds"]] == ["task1", "task4"]
    assert [row["form"] for row in found["forms"]] == 2 * FORMS


def test_what_is_no_feed_forward_network_is_bounded_as_a_program(mine: Path, tvgrad: Callable[..., Any]) -> None:
    found = numbers(tvgrad, f"{mine}:normalised", "--lr", "0.1", "--epochs", 4)["bounds"]
    for row in found:
        assert 0 < row["lower_bound"] <= row["error_bound"] <= 1.001 * row["lower_bound"]
        assert (row["method"], row["from_start"]) == ("tube", None)
    (none,) = numbers(tvgrad, f"{mine}:normalised", "--lr", "0.1", "--epochs", 4, "--no-simulate")["none"]
    assert re.search(r"from theta_0 alone no ball .* grows most in \w+ \(.*line \d+", none["reason"])
    words = (f"{mine}:normalised", "--lr", "1e-7", "--epochs", 4, "--no-simulate")
    (alone,) = numbers(tvgrad, *words)["bounds"]
    assert tvgrad("bound", *words).out.splitlines()[0].endswith("; there is no bound from below for mine.")
    assert (alone["method"], alone["lower_bound"]) == ("closed, from theta_0", 0)
    assert alone["error_bound"] == alone["from_start"]


def test_the_first_line_says_how_far_from_the_gradient_and_from_the_truth(
    mine: Path, tvgrad: Callable[..., Any]
) -> None:
    words = (f"{mine}:six", "--tasks", "task1,task4", "--lr", "1e-3", "--samples", "7")
    rows = numbers(tvgrad, *words)["bounds"]
    line = tvgrad("bound", *words).out.splitlines()[0]
    told = re.fullmatch(
        r"In exact arithmetic tau_k differs from -S_k g_0 by at most (.*) % of its norm "
        r"\((.*), the largest of 2 tasks\); the upper bounds are at most (.*) % above the truth\.",
        line,
    )
    assert told, line
    shares = {row["task"]: row["error_bound"] / row["first_order_norm"] for row in rows}
    assert shares[told[2]] == max(shares.values())
    assert 1 <= float(told[1]) / (100 * shares[told[2]]) <= 1.01
    excess = max(row["error_bound"] / row["lower_bound"] - 1 for row in rows)
    assert 0.99 <= float(told[3]) / (100 * excess) <= 1.2
    assert {row["samples"] for row in rows} == {7}


def test_fewer_samples_are_those_of_another_task(mine: Path, tvgrad: Callable[..., Any]) -> None:
    (some,), (all_,) = (numbers(tvgrad, mine, *words)["bounds"] for words in (("--samples", 10), ()))
    assert some["first_order_norm"] != all_["first_order_norm"]
    done = tvgrad("bound", mine, "--samples", "1000")
    assert done.code == 2
    assert "--samples is 1000, and mine has" in done.err


def test_what_does_not_exist_says_why(mine: Path, tvgrad: Callable[..., Any]) -> None:
    words = [mine, "--lr", "1000", "--epochs", "9", "--no-simulate"]
    done = tvgrad("bound", *words)
    assert done.code == 0
    assert done.out.startswith("no bound for mine: there is no certificate, lower the learning rate")
    assert "quadratic" in done.out
    assert "the radius ran to" in done.out
    assert len(done.out.splitlines()) == 1
    (none,) = numbers(tvgrad, *words)["none"]
    assert none["task"] == "mine"


def test_numbers_without_a_value_are_null(mine: Path, tvgrad: Callable[..., Any]) -> None:
    found = numbers(tvgrad, mine, "--lr", "0.3", "--epochs", "5", "--forms")
    forms = {row["form"]: row for row in found["forms"]}
    assert forms["closed, uniform"]["upper"] is None
    assert "radius ran to" in forms["closed, uniform"]["reason"]
    assert found["bounds"][0]["closed_form_bound"] is None


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "sgd"])
def test_other_linear_rules(optimizer: str, mine: Path, tvgrad: Callable[..., Any]) -> None:
    decay = ["--weight-decay", "0.1"] if optimizer == "sgd" else ["--momentum", "0.5"]
    (row,) = numbers(tvgrad, mine, "--optimizer", optimizer, "--lr", "1e-3", "--epochs", "3", *decay)["bounds"]
    assert 0 < row["lower_bound"] <= row["error_bound"] <= row["from_start"]
    assert row["rule"] == optimizer


def test_mini_batches_are_those_of_trace(mine: Path, tvgrad: Callable[..., Any], tmp_path: Path) -> None:
    words = [mine, "--optimizer", "sgd", "--lr", "0.1", "--epochs", "2", "--batch-size", "8", "--seed", "3"]
    (row,) = numbers(tvgrad, *words)["bounds"]
    assert (row["batch_size"], row["seed"], row["method"], row["from_start"]) == (8, 3, "tube", None)
    done = tvgrad("trace", *words, "--dtype", "float64", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    run = Run.open(tmp_path / "run")
    moved, first = run.task_vector(2), run.gradient(0)
    error = float(torch.cat([(moved[name] + 6 * 0.1 * first[name]).flatten() for name in moved]).norm())
    assert row["lower_bound"] * (1 - 1e-9) <= error <= row["error_bound"] * (1 + 1e-9)
    assert "gd takes all samples" in tvgrad("bound", mine, "--optimizer", "gd", "--batch-size", "8").err


def test_adam_is_compared_with_its_own_steps_along_the_gradient(mine: Path, tvgrad: Callable[..., Any]) -> None:
    words = [mine, "--optimizer", "adam", "--lr", "1e-3", "--epochs", "2"]
    (row,) = numbers(tvgrad, *words)["bounds"]
    assert 0 < row["lower_bound"] <= row["error_bound"] <= 1.001 * row["lower_bound"]
    # every coordinate moves by the rate in each of two steps: 66 numbers
    assert row["first_order_norm"] == pytest.approx(2e-3 * 66**0.5, rel=1e-3)
    out = tvgrad("bound", *words).out
    assert out.startswith("In exact arithmetic tau_k differs from -S_k g_0 / (|g_0| + eps) by at most ")


@pytest.mark.parametrize(
    ("recipe", "words", "sentence"),
    [
        ("elu", [], "has no bounds here"),
        ("pooled", [], "MaxPool1d"),
        ("poisoned", [], "nan"),
        ("nll", [], "no bounds are known for the loss"),
        ("mapping", [], "its batches are not"),
        ("no_data", [], "empty"),
        ("recipe", ["--lr", "0"], "--lr must be a positive number"),
        ("recipe", ["--lr", "nan"], "--lr must be a positive number"),
        ("recipe", ["--epochs", "0"], "--epochs must be a whole number of at least 1"),
        ("recipe", ["--optimizer", "adagrad"], "is not one of 'gd', 'sgd', 'momentum', 'nesterov', 'adam', 'adamw'"),
        ("recipe", ["--momentum", "0.9"], "takes no momentum"),
        ("tasks", ["--tasks", "three"], "no task called"),
    ],
)
def test_bad_input(recipe: str, words: list[str], sentence: str, mine: Path, refused: Callable[..., str]) -> None:
    assert sentence in refused("bound", f"{mine}:{recipe}", *words)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_explain_puts_bounds_into_the_report(
    dtype: str, recipes: Path, tmp_path: Path, tvgrad: Callable[..., Any]
) -> None:
    out, report = tmp_path / "run", tmp_path / "report"
    assert tvgrad("trace", recipes, "--out", out, "--quiet", "--dtype", dtype, "--chunk-size", "20").code == 0
    done = tvgrad("explain", out, "--recipe", recipes, "--dtype", "float32")
    assert done.code == 0, done.err
    assert "no bound" not in done.out
    assert tvgrad("report", out, "--out", report, "--format", "csv").code == 0
    with open(report / "second_order.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        assert float(row["error_norm"]) <= float(row["bound"]) <= 1.01 * float(row["error_norm"]) + 1e-5
    assert float(rows[2]["bound"]) == pytest.approx(true_error(0.1, 3), rel=1e-2)


def test_explain_without_bounds(recipes: Path, tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    out, report = tmp_path / "run", tmp_path / "report"
    assert tvgrad("trace", recipes, "--out", out, "--quiet", "--chunk-size", "20").code == 0
    assert tvgrad("explain", out, "--recipe", recipes, "--no-bounds").code == 0
    assert tvgrad("report", out, "--out", report, "--format", "csv").code == 0
    with open(report / "second_order.csv") as file:
        assert [row["bound"] for row in csv.DictReader(file)] == ["", "", ""]
