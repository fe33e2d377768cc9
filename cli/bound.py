"""`tvgrad bound`: rigorous bounds on the second-order error, before training."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("target")
@click.option("--tasks", help="Only these tasks, separated by commas.")
@click.option(
    "--optimizer", type=click.Choice(["gd", "sgd", "momentum", "nesterov"]), help="A linear rule, one step an epoch."
)
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--momentum", type=float, help="For momentum and nesterov (default 0.9).")
@click.option("--weight-decay", type=float, help="Coupled.")
@click.option("--epochs", type=int, help="Full-batch epochs.")
@click.option("--forms", is_flag=True, help="Show every form of the bound, and why some give none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bound(target: str, tasks: str | None, forms: bool, as_json: bool, **given: Any) -> None:
    """Bound, before training, how far the task vectors of TARGET will be from the gradient, or say why there is none.

    The upper and the lower bound hold for the iterates of exact arithmetic, whatever the rounding of this program.
    Networks of Linear layers and smooth activations with a known loss; ReLU has no second derivative and is refused.

    \b
    Examples:
      tvgrad bound digits --lr 1e-4 --epochs 5
      tvgrad bound digits --tasks rotated --lr 1e-5 --epochs 5 --forms
    """
    import json

    import pandas as pd
    from tvgrad.cli.terminal import print_table

    from tvgrad.bounds import NoCertificate
    from tvgrad.recipe import positive, positive_integer
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.theory.certified import feed_forward_of
    from tvgrad.update_rules import linear_rule, make_rule

    names = tuple(part.strip() for part in (tasks or "").split(",") if part.strip())
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    without: list[str] = []
    for recipe in load_recipes(target, names):
        # A recipe's mini-batches and Adam play no part: one full-batch step an epoch is bounded.
        own = recipe.optimizer if recipe.optimizer in {"gd", "sgd", "momentum", "nesterov"} else "gd"
        lr = recipe.lr if given["lr"] is None else positive(given["lr"], "--lr")
        rule = linear_rule(make_rule(given["optimizer"] or own, lr, given["momentum"], given["weight_decay"]))
        epochs = recipe.epochs if given["epochs"] is None else positive_integer(given["epochs"], "--epochs")
        problem = feed_forward_of(recipe)
        try:
            certificate = problem.certificate(rule, epochs)
        except NoCertificate as reason:
            without.append(f"{recipe.name}: {reason}")
            continue
        size = rule.first_order_weight(epochs) * problem.gradient.norm
        rows.append({"task": recipe.name, "lr": lr, "epochs": epochs, **certificate.row(), "first_order_norm": size})
        every += [
            {"task": recipe.name, "form": one.name, "upper": one.upper, "lower": one.lower, "reason": one.reason}
            for one in certificate.forms
        ]
    if as_json:
        click.echo(json.dumps({"bounds": rows, "none": without}, indent=1, default=str))
        return
    if rows:
        table = pd.DataFrame(rows).drop(columns="rounding")
        print_table("Bounds on the norm of tau_k + S_k g_0 (first_order_norm: that of S_k g_0)", table)
    if forms and every:
        print_table("Forms", pd.DataFrame(every))
    for sentence in without:
        click.echo(f"no bound for {sentence}")
