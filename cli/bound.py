"""`tvgrad bound`: rigorous bounds on the second-order error, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvgrad.update_rules.rules import LINEAR_RULES

from . import options

if TYPE_CHECKING:
    from tvgrad.bounds import FeedForward, Program
    from tvgrad.problem.recipe import Recipe
    from tvgrad.update_rules.linear import LinearRule

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
@options.as_json
def bound(target: str, tasks: str | None, simulate: bool, forms: bool, as_json: bool, **given: Any) -> None:
    """Bound, before training, how far the task vectors of TARGET will be from the gradient, or say why there is none.

    The upper and the lower bound hold for the iterates of exact arithmetic, whatever the rounding of this program.
    from_start is the least upper bound that uses gradients and Hessians at the pretrained weights alone. The form
    called tube follows the training in float64, which takes as many gradients as the training itself; `--no-simulate`
    leaves it out. Networks of Linear layers, convolutions, average pooling and smooth activations with a known loss
    have all forms; programs with attention, layer norm and embeddings have the tube, and one closed form where it is
    left out. ReLU has no second derivative and is refused.

    \b
    Examples:
      tvgrad bound digits --lr 1e-4 --epochs 5
      tvgrad bound digits --tasks rotated --lr 1e-5 --epochs 5 --forms
      tvgrad bound digits --tasks low --optimizer momentum --lr 1e-3 --epochs 10 --no-simulate
    """
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.results import json_text

    chosen = load_recipes(target, options.names_in(tasks))
    rows, details, without = _certify([_planned(recipe, given) for recipe in chosen], simulate)
    if as_json:
        click.echo(json_text({"bounds": rows, "none": without} | ({"forms": details} if forms else {})))
    else:
        _show(rows, details if forms else [], without)


def _planned(recipe: Recipe, given: dict[str, Any]) -> tuple[_Row, FeedForward | Program, LinearRule]:
    """What is bounded for a recipe: one full-batch step an epoch, in place of its mini-batches and of Adam."""
    from tvgrad.problem.recipe import positive, positive_integer
    from tvgrad.update_rules.rules import linear_rule, make_rule

    own = recipe.optimizer if recipe.optimizer in LINEAR_RULES else "gd"
    lr = recipe.lr if given["lr"] is None else positive(given["lr"], "--lr")
    rule = linear_rule(make_rule(given["optimizer"] or own, lr, given["momentum"], given["weight_decay"]))
    epochs = recipe.epochs if given["epochs"] is None else positive_integer(given["epochs"], "--epochs")
    row = {"task": recipe.name, "rule": rule.name, "lr": lr, "epochs": epochs}
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
) -> tuple[list[_Row], list[_Row], list[_Row]]:
    """The bounds, all their forms, and the reasons where there are none."""
    from tvgrad.bounds import NoCertificate

    rows, details, without = list[_Row](), list[_Row](), list[_Row]()
    for row, problem, rule in planned:
        task, epochs = row["task"], row["epochs"]
        try:
            found = problem.certificate(rule, epochs, simulate)
        except NoCertificate as reason:
            without.append({"task": task, "reason": str(reason)})
            continue
        size = float(rule.first_order_weights(epochs)[epochs]) * problem.gradient.norm
        rows.append(row | {name: getattr(found, name) for name in COLUMNS} | {"first_order_norm": size})
        details += [
            {"task": task, "form": one.name, "upper": one.upper, "lower": one.lower, "reason": one.reason}
            for one in found.forms
        ]
    return rows, details, without


def _show(rows: list[_Row], details: list[_Row], without: list[_Row]) -> None:
    import pandas as pd
    from tvgrad.cli.terminal import print_table

    title = "Bounds on the norm of tau_k + S_k g_0 (first_order_norm: that of S_k g_0)"
    for name, table in ((title, rows), ("Forms", details)):
        if table:
            print_table(name, pd.DataFrame(table), len(table))
    for one in without:
        click.echo(f"no bound for {one['task']}: {one['reason']}")
