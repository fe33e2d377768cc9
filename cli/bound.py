"""`tvgrad bound`: rigorous bounds on the second-order error, before training."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import click

from tvgrad.update_rules.rules import LINEAR_RULES

from . import options, table_formats

if TYPE_CHECKING:
    from tvgrad.bounds import Certificate, FeedForward, Program
    from tvgrad.problem.recipe import Recipe
    from tvgrad.update_rules.linear import LinearRule

MOST_CLOSING = 6
"""Tasks whose bounds are said in words at the end."""
COLUMNS = ("error_bound", "lower_bound", "method", "from_start", "closed_form_bound", "radius")

_Row = dict[str, Any]


@click.command()
@click.argument("target")
@options.tasks
@click.option("--optimizer", type=click.Choice(LINEAR_RULES), help="A linear rule, one full-batch step an epoch.")
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled; not for gd.")
@click.option("--epochs", type=int, help="Full-batch epochs.")
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
    left out. ReLU has no second derivative and is refused. The first line says how far the task vectors can be from
    the gradient, and how far the bounds can be from the truth.

    \b
    Examples:
      tvgrad bound digits --lr 1e-4 --epochs 5
      tvgrad bound digits --tasks rotated --lr 1e-5 --epochs 5 --forms
      tvgrad bound digits --tasks low --optimizer momentum --lr 1e-3 \\
        --epochs 10 --no-simulate
      tvgrad bound suite-vit --tasks digits --samples 8 --lr 2e-3 --epochs 5
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
    from tvgrad.errors import TvgradError

    there = len(recipe.train)
    if samples is None or samples == there:
        return recipe
    if samples > there:
        raise TvgradError(f"--samples is {samples}, and {recipe.name} has {there} training samples: give at most those")
    fewer = copy.copy(recipe)
    fewer.train = recipe.train.subset([there * number // samples for number in range(samples)])
    return fewer


def _planned(recipe: Recipe, given: dict[str, Any]) -> tuple[_Row, FeedForward | Program, LinearRule]:
    """What is bounded for a recipe: one full-batch step an epoch, in place of its mini-batches and of Adam."""
    from tvgrad.problem.recipe import positive, positive_integer
    from tvgrad.update_rules.rules import linear_rule, make_rule

    own = recipe.optimizer if recipe.optimizer in LINEAR_RULES else "gd"
    lr = recipe.lr if given["lr"] is None else positive(given["lr"], "--lr")
    rule = linear_rule(make_rule(given["optimizer"] or own, lr, given["momentum"], given["weight_decay"]))
    epochs = recipe.epochs if given["epochs"] is None else positive_integer(given["epochs"], "--epochs")
    row = {"task": recipe.name, "samples": len(recipe.train), "rule": rule.name, "lr": lr, "epochs": epochs}
    return row, _read(recipe), rule


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


def _certify(
    planned: list[tuple[_Row, FeedForward | Program, LinearRule]], simulate: bool
) -> tuple[list[_Row], list[_Row], list[_Row], dict[str, float]]:
    """The bounds, all their forms, the reasons where there are none, and the largest error relative to S_k g_0."""
    from tvgrad.bounds import NoCertificate

    rows, details, without, shares = list[_Row](), list[_Row](), list[_Row](), dict[str, float]()
    for row, problem, rule in planned:
        task, epochs = row["task"], row["epochs"]
        try:
            found = _certificate(task, problem, rule, epochs, simulate)
        except NoCertificate as reason:
            without.append({"task": task, "reason": str(reason)})
            continue
        weight = float(rule.first_order_weights(epochs)[epochs])
        size, least = weight * problem.gradient.norm, weight * problem.gradient.lower * (1 - 1e-12)
        shares[task] = found.error_bound / least if least else math.inf
        rows.append(row | {name: getattr(found, name) for name in COLUMNS} | {"first_order_norm": size})
        details += [
            {"task": task, "form": one.name, "upper": one.upper, "lower": one.lower, "reason": one.reason}
            for one in found.forms
        ]
    return rows, details, without, shares


def _certificate(
    task: str, problem: FeedForward | Program, rule: LinearRule, epochs: int, simulate: bool
) -> Certificate:
    """A program's takes long: it shows how far it is, and says so before."""
    from tvgrad.cli.terminal import percent_bar

    from tvgrad.bounds import Program

    if not isinstance(problem, Program):
        return problem.certificate(rule, epochs, simulate)
    with warnings.catch_warnings(), percent_bar(f"bounding {task}") as progress:
        warnings.showwarning = lambda message, *_, **__: click.echo(f"{task}: {message}", err=True)
        return problem.certificate(rule, epochs, simulate, progress=progress)


def _sentence(rows: list[_Row], shares: dict[str, float]) -> str:
    """How far task vectors are from the gradient at most, and bounds from the truth."""
    from tvgrad.wording import printed

    worst = max(shares, key=lambda task: shares[task])
    of = "" if len(rows) == 1 else f" ({worst}, the largest of {len(rows)} tasks)"
    share = printed(100 * shares[worst], "error_bound", 3)
    told = f"In exact arithmetic tau_k differs from -S_k g_0 by at most {share} % of its norm{of}"
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
    title = "Bounds on the norm of tau_k + S_k g_0"
    for name, table in ((title, rows), ("Forms", details)):
        if table:
            print_table(name, pd.DataFrame(table), len(table), name="forms" if name == "Forms" else "bounds")
    for one in without:
        say(f"no bound for {one['task']}: {one['reason']}")
    for row in rows[:MOST_CLOSING]:
        say(_closing(row, shares[row["task"]]))
