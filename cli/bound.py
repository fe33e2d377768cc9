"""`tvgrad bound`: rigorous bounds on the second-order error, before training."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tvgrad.errors import TvgradError
from tvgrad.update_rules.rules import LINEAR_RULES, RULES

from . import options, table_formats

if TYPE_CHECKING:
    from torch import Tensor

    from tvgrad.bounds import Certificate, FeedForward, Program
    from tvgrad.problem.recipe import Recipe
    from tvgrad.update_rules.base import UpdateRule

MOST_CLOSING = 6
"""Tasks whose bounds are said in words at the end."""
COLUMNS = ("error_bound", "lower_bound", "method", "from_start", "closed_form_bound", "radius")

_Row = dict[str, Any]


@dataclass(frozen=True)
class _Plan:
    """What is bounded for one task: what the table says of it, the loss, and the training."""

    row: _Row
    problem: FeedForward | Program
    rule: UpdateRule
    epochs: int
    batches: list[list[Tensor]] | None

    @property
    def steps(self) -> int:
        """Steps of the training."""
        return self.epochs if self.batches is None else sum(map(len, self.batches))

    @property
    def theta(self) -> Tensor:
        """The pretrained weights, flat."""
        from tvgrad.bounds import Program

        return self.problem.flat if isinstance(self.problem, Program) else self.problem.network.flat


@click.command()
@click.argument("target")
@options.tasks
@click.option(
    "--optimizer",
    type=click.Choice(tuple(RULES)),
    help="One step an epoch, or with --batch-size one a mini-batch.",
)
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled for all but adamw; not for gd.")
@click.option("--epochs", type=int, help="Passes over the data.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Mini-batches, in the order in which `tvgrad trace` takes them with the same --seed; by default all samples.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of batches.")
@click.option(
    "--simulate/--no-simulate",
    default=True,
    show_default=True,
    help="Simulate the epochs in float64 and bound what rounding can have changed, or use theta_0 alone.",
)
@click.option("--forms", is_flag=True, help="Show every form of the bound, and why some give none.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Train on so many samples of each task alone, evenly spaced; programs with attention take seconds for each.",
)
@options.as_json
@table_formats.option
def bound(
    target: str, tasks: str | None, simulate: bool, forms: bool, samples: int | None, as_json: bool, **given: Any
) -> None:
    """Bound, before training, how far the task vectors of TARGET will be from the gradient, or say why there is none.

    The upper and the lower bound hold for the iterates of exact arithmetic, whatever the rounding of this program.
    from_start is the least upper bound that uses gradients and Hessians at the pretrained weights alone. The form
    called tube follows the training in float64, which takes as many gradients as the training itself; `--no-simulate`
    leaves it out. Networks of Linear layers, convolutions, average pooling and smooth activations with a known loss
    have all forms; programs with attention, layer norm and embeddings have the tube, and one closed form where it is
    left out. Mini-batches and Adam have the tube alone; Adam's error is told from Adam followed on the gradient at the
    pretrained weights. ReLU and its kin have the tube as long as no argument reaches a kink. The first line says how
    far the task vectors can be from the gradient, and how far the bounds can be from the truth.

    \b
    Examples:
      tvgrad bound digits --lr 1e-4 --epochs 5
      tvgrad bound digits --tasks rotated --lr 1e-5 --epochs 5 --forms
      tvgrad bound digits --tasks low --optimizer momentum --lr 1e-3 \\
        --epochs 10 --no-simulate
      tvgrad bound suite-vit --tasks digits --samples 8 --lr 2e-3 --epochs 5
      tvgrad bound digits --tasks low --optimizer sgd --lr 1e-3 --epochs 1 \\
        --batch-size 64 --seed 0
    """
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.results import json_text

    chosen = [_fewer(recipe, samples) for recipe in load_recipes(target, options.names_in(tasks))]
    rows, details, without, shares = _certify([_planned(recipe, given) for recipe in chosen], simulate)
    if as_json:
        click.echo(json_text({"bounds": rows, "none": without} | ({"forms": details} if forms else {})))
    else:
        _show(rows, details if forms else [], without, shares)


def _fewer(recipe: Recipe, samples: int | None) -> Recipe:
    """The same task with fewer samples."""
    there = len(recipe.train)
    if samples is None or samples == there:
        return recipe
    if samples > there:
        raise TvgradError(f"--samples is {samples}, and {recipe.name} has {there} training samples: give at most those")
    fewer = copy.copy(recipe)
    fewer.train = recipe.train.subset([there * number // samples for number in range(samples)])
    return fewer


def _planned(recipe: Recipe, given: dict[str, Any]) -> _Plan:
    """What is bounded for a recipe: full-batch steps in the place of mini-batches of its own."""
    from tvgrad.bounds import Program
    from tvgrad.problem.recipe import positive, positive_integer
    from tvgrad.record.batch_order import batches_of
    from tvgrad.update_rules.rules import Adam, make_rule

    own = recipe.optimizer if recipe.optimizer in LINEAR_RULES else "gd"
    lr = recipe.lr if given["lr"] is None else positive(given["lr"], "--lr")
    samples = len(recipe.train)
    size = given["batch_size"] and min(given["batch_size"], samples)
    name = given["optimizer"] or ("sgd" if size and own == "gd" else own)
    rule = make_rule(name, lr, given["momentum"], given["weight_decay"])
    if size and name == "gd":
        raise TvgradError("gd takes all samples in every step: leave --batch-size out, or use --optimizer sgd")
    epochs = recipe.epochs if given["epochs"] is None else positive_integer(given["epochs"], "--epochs")
    batches = [list(batches_of(samples, size, given["seed"], epoch)) for epoch in range(epochs)] if size else None
    row = {"task": recipe.name, "samples": samples, "rule": rule.name, "lr": lr, "epochs": epochs}
    if size:
        row |= {"batch_size": size, "seed": given["seed"]}
    problem = Program.of_recipe(recipe) if isinstance(rule, Adam) else _read(recipe)
    return _Plan(row, problem, rule, epochs, batches)


def _read(recipe: Recipe) -> FeedForward | Program:
    """A recipe as a feed-forward network, which has more forms, or else as a program."""
    from tvgrad.bounds import FeedForward, Program, UnsupportedNetwork, UnsupportedProgram

    try:
        return FeedForward.of_recipe(recipe)
    except UnsupportedNetwork as reason:
        try:
            return Program.of_recipe(recipe)
        except UnsupportedProgram as other:
            raise UnsupportedNetwork(f"{reason}; nor as a program: {other}") from None


def _certify(planned: list[_Plan], simulate: bool) -> tuple[list[_Row], list[_Row], list[_Row], dict[str, float]]:
    """The bounds, all their forms, the reasons where there are none, and the largest error relative to S_k g_0."""
    from tvgrad.bounds import NoCertificate
    from tvgrad.bounds.certificates.first_order import first_order_norms

    rows, details, without, shares = list[_Row](), list[_Row](), list[_Row](), dict[str, float]()
    for plan in planned:
        task = plan.row["task"]
        try:
            found = _certificate(task, plan, simulate)
        except NoCertificate as reason:
            without.append({"task": task, "reason": str(reason)})
            continue
        size, least = first_order_norms(plan.problem.gradient, plan.theta, plan.rule, plan.steps)
        shares[task] = found.error_bound / least if least else math.inf
        rows.append(plan.row | {name: getattr(found, name) for name in COLUMNS} | {"first_order_norm": size})
        details += [
            {"task": task, "form": one.name, "upper": one.upper, "lower": one.lower, "reason": one.reason}
            for one in found.forms
        ]
    return rows, details, without, shares


def _certificate(task: str, plan: _Plan, simulate: bool) -> Certificate:
    """A program's takes long: it shows how far it is, and says so before."""
    from tvgrad.cli.terminal import percent_bar

    from tvgrad.bounds import Program

    if not isinstance(plan.problem, Program):
        return plan.problem.certificate(plan.rule, plan.epochs, simulate, batches=plan.batches)
    with warnings.catch_warnings(), percent_bar(f"bounding {task}") as progress:
        warnings.showwarning = lambda message, *_, **__: click.echo(f"{task}: {message}", err=True)
        return plan.problem.certificate(plan.rule, plan.epochs, simulate, batches=plan.batches, progress=progress)


def _predicted(rows: list[_Row]) -> str:
    """What task vectors are compared with: for Adam its steps along g_0."""
    return "-S_k g_0 / (|g_0| + eps)" if rows[0]["rule"].startswith("adam") else "-S_k g_0"


def _sentence(rows: list[_Row], shares: dict[str, float]) -> str:
    """How far task vectors are from the gradient at most, and bounds from the truth."""
    from tvgrad.wording import printed

    worst = max(shares, key=lambda task: shares[task])
    of = "" if len(rows) == 1 else f" ({worst}, the largest of {len(rows)} tasks)"
    share = printed(100 * shares[worst], "error_bound", 3)
    told = f"In exact arithmetic tau_k differs from {_predicted(rows)} by at most {share} % of its norm{of}"
    without = [row["task"] for row in rows if not row["lower_bound"] > 0]
    if without:
        return f"{told}; there is no bound from below for {', '.join(without)}."
    excess = max(100 * (row["error_bound"] - row["lower_bound"]) / row["lower_bound"] for row in rows)
    return f"{told}; the upper bounds are at most {printed(excess, 'error_bound', 2)} % above the truth."


def _closing(row: _Row, share: float) -> str:
    """Between what the error lies, as a share of the task vector to first order; rounded outward."""
    from tvgrad.wording import counted, rounded_down, rounded_up

    after = f"{row['task']}: the error after {counted(row['epochs'], 'epoch')}"
    high = rounded_up(100 * share, 4)
    if not row["lower_bound"] > 0:
        return f"{after} is at most {high} % of the first-order task vector"
    low = rounded_down(100 * row["lower_bound"] / (row["first_order_norm"] * (1 + 1e-12)) * (1 - 1e-15), 4)
    return f"{after} lies between {low} % and {high} % of the first-order task vector"


def _show(rows: list[_Row], details: list[_Row], without: list[_Row], shares: dict[str, float]) -> None:
    import pandas as pd
    from tvgrad.cli.terminal import print_table, say

    if rows:
        say(_sentence(rows, shares))
    title = f"Bounds on the norm of tau_k + {_predicted(rows).removeprefix('-')}" if rows else ""
    for name, table in ((title, rows), ("Forms", details)):
        if table:
            print_table(name, pd.DataFrame(table), len(table), name="forms" if name == "Forms" else "bounds")
    for one in without:
        say(f"no bound for {one['task']}: {one['reason']}")
    for row in rows[:MOST_CLOSING]:
        say(_closing(row, shares[row["task"]]))
