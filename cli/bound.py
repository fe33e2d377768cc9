"""`tvgrad bound`: rigorous bounds on the second-order error, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

LINEAR = ("gd", "sgd", "momentum", "nesterov")


@click.command()
@click.argument("target")
@click.option("--tasks", help="Only these tasks, separated by commas.")
@click.option("--optimizer", type=click.Choice(LINEAR), help="A linear rule, one full-batch step an epoch.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--momentum", type=float, help="For momentum and nesterov (default 0.9).")
@click.option("--weight-decay", type=float, help="Coupled; not for gd.")
@click.option("--epochs", type=int, help="Full-batch epochs.")
@click.option(
    "--simulate/--no-simulate",
    default=True,
    show_default=True,
    help="Simulate the epochs in float64 and bound what rounding can have changed, or use theta_0 alone.",
)
@click.option("--forms", is_flag=True, help="Show every form of the bound, and why some give none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; numbers that are infinite or unknown are null.")
def bound(target: str, tasks: str | None, simulate: bool, forms: bool, as_json: bool, **given: Any) -> None:
    """Bound, before training, how far the task vectors of TARGET will be from the gradient, or say why there is none.

    The upper and the lower bound hold for the iterates of exact arithmetic, whatever the rounding of this program.
    from_start is the least upper bound that uses gradients and Hessians at the pretrained weights alone. The form
    called tube follows the training in float64, which takes as many gradients as the training itself; `--no-simulate`
    leaves it out. Networks of Linear layers, convolutions, average pooling and smooth activations with a known loss;
    ReLU has no second derivative and is refused.

    \b
    Examples:
      tvgrad bound digits --lr 1e-4 --epochs 5
      tvgrad bound digits --tasks rotated --lr 1e-5 --epochs 5 --forms
      tvgrad bound digits --tasks low --optimizer momentum --lr 1e-3 --epochs 10 --no-simulate
    """
    import json

    import pandas as pd
    from tvgrad.cli.terminal import print_table

    from tvgrad.bounds import NoCertificate
    from tvgrad.bounds.feedforward import feed_forward_of
    from tvgrad.problem.recipe import positive, positive_integer
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.update_rules.rules import linear_rule, make_rule

    names = tuple(part.strip() for part in (tasks or "").split(",") if part.strip())
    planned = []
    for recipe in load_recipes(target, names):
        # A recipe's mini-batches and Adam play no part: one full-batch step an epoch is bounded.
        own = recipe.optimizer if recipe.optimizer in LINEAR else "gd"
        lr = recipe.lr if given["lr"] is None else positive(given["lr"], "--lr")
        rule = linear_rule(make_rule(given["optimizer"] or own, lr, given["momentum"], given["weight_decay"]))
        epochs = recipe.epochs if given["epochs"] is None else positive_integer(given["epochs"], "--epochs")
        planned.append((recipe.name, feed_forward_of(recipe), rule, lr, epochs))
    rows, every, without = [], [], []
    for name, problem, rule, lr, epochs in planned:
        try:
            certificate = problem.certificate(rule, epochs, simulate)
        except NoCertificate as reason:
            without.append({"task": name, "reason": str(reason)})
            continue
        size = float(rule.first_order_weights(epochs)[epochs]) * problem.gradient.norm
        rows.append({
            "task": name,
            "rule": rule.name,
            "lr": lr,
            "epochs": epochs,
            "error_bound": certificate.error_bound,
            "lower_bound": certificate.lower_bound,
            "method": certificate.method,
            "from_start": certificate.from_start,
            "closed_form_bound": certificate.closed_form_bound,
            "radius": certificate.radius,
            "first_order_norm": size,
        })
        every += [
            {"task": name, "form": one.name, "upper": one.upper, "lower": one.lower, "reason": one.reason}
            for one in certificate.forms
        ]
    table, details = pd.DataFrame(rows), pd.DataFrame(every)
    if as_json:
        found = {"bounds": _plain(table), "none": without}
        click.echo(json.dumps(found | ({"forms": _plain(details)} if forms else {}), indent=1))
        return
    if rows:
        print_table("Bounds on the norm of tau_k + S_k g_0 (first_order_norm: that of S_k g_0)", table, len(table))
    if forms and every:
        print_table("Forms", details, len(details))
    for one in without:
        click.echo(f"no bound for {one['task']}: {one['reason']}")


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which knows neither infinity nor NaN."""
    import math

    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in table.to_dict("records")
    ]
