"""`tvgrad predict`: the task vector and its second-order error, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvgrad.problem.recipe import OPTIMIZERS
from tvgrad.wording import bytes_in_words, counted, percent

from . import options, table_formats

if TYPE_CHECKING:
    from tvgrad.record.training_loop import Prepared


@click.command()
@click.argument("target")
@options.tasks
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="A linear rule: gd, sgd, momentum or nesterov.")
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled.")
@click.option("--epochs", type=int, help="Full-batch epochs: one step each.")
@click.option("--threshold", default=0.1, show_default=True, help="Relative error that is still the gradient.")
@click.option("--quadratic", is_flag=True, help="Follow the quadratic model too: one product for each further epoch.")
@click.option("--curvature", is_flag=True, help="Estimate lambda_max, and say whether the rate is over its limit.")
@options.dtype
@options.device
@options.chunk_size
@click.option("--allow", help="Checks to switch off: dropout, batchnorm, augmentation, count.")
@options.cost
@options.as_json
@table_formats.option
def predict(
    target: str,
    tasks: str | None,
    threshold: float,
    quadratic: bool,
    curvature: bool,
    allow: str | None,
    cost: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Predict the task vectors of TARGET before training: their norm, and how far they will be from the gradient.

    Full-batch epochs of a linear update rule, from one gradient and one Hessian-vector product a task. All numbers are
    estimates; `tvgrad bound` is the command for bounds.

    \b
    Examples:
      tvgrad predict digits --cost
      tvgrad predict digits --lr 0.05 --epochs 10
      tvgrad predict digits --tasks low --optimizer momentum --lr 0.01 \\
        --epochs 20 --quadratic --curvature
    """
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.problem.recipe import positive
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.planned_rule import require_one_rate
    from tvgrad.record.training_loop import prepare
    from tvgrad.results import frame_of, json_text
    from tvgrad.theory.second_order import predict as predicted
    from tvgrad.update_rules.rules import linear_rule

    positive(threshold, "--threshold")
    allowed = options.names_in(allow)
    chosen = load_recipes(target, options.names_in(tasks))
    # The recipe's own mini-batches play no part: one step an epoch is predicted.
    prepared = [prepare(recipe, TraceOptions(target=target, allow=allowed, **given)) for recipe in chosen]
    for one in prepared:
        require_one_rate(one.recipe, linear_rule(one.rule))
    if cost:
        for one in prepared:
            click.echo(_cost(one, quadratic, curvature))
        return
    rows, said = [], []
    for one in prepared:
        made = predicted(
            one.objective, one.rule, one.epochs, quadratic=quadratic, curvature=curvature, threshold=threshold
        )
        rows.append(made.row)
        said += [f"{one.recipe.name}: {sentence}" for sentence in (_in_words(made.row), *made.sentences)]
    if as_json:
        click.echo(json_text([{"task": one.recipe.name} | row.row() for one, row in zip(prepared, rows, strict=True)]))
        return
    table = frame_of(rows).dropna(axis="columns", how="all").drop(columns=["threshold", "kind"])
    table.insert(0, "task", [one.recipe.name for one in prepared])
    print_table("Predicted task vectors (estimates: about)", table, estimates=set(table.columns) - {"lr"})
    for sentence in said:
        say(sentence)


def _cost(one: Prepared, quadratic: bool, curvature: bool) -> str:
    """What a prediction takes, in one sentence."""
    from tvgrad.cost import held_bytes
    from tvgrad.problem.evaluations import Evaluations
    from tvgrad.theory.budget_plan import measured_costs
    from tvgrad.theory.explain_cost import VECTORS
    from tvgrad.theory.kinks import kinks_of
    from tvgrad.theory.second_order import planned_cost

    counts, seconds = planned_cost(one.rule, one.epochs, quadratic), measured_costs(one.objective)
    if kinks_of(one.objective):  # whether gates flip is looked at
        counts += Evaluations(gradients=1, hvps=1)
    total = counts.gradients * seconds.gradient + counts.hvps * seconds.hvp
    size = sum(tensor.numel() for tensor in one.objective.initial.values())
    memory = held_bytes() + VECTORS * 8 * size
    return (
        f"{one.recipe.name}: {counted(counts.gradients, 'gradient')} and "
        f"{counted(counts.hvps, 'Hessian-vector product')} over {len(one.samples)} samples, about {total:.2g} s"
        f", about {bytes_in_words(memory)} of memory at the peak, nothing on the disk"
        + (f"; lambda_max takes 40 to 400 products more, {seconds.hvp:.2g} s each" if curvature else "")
    )


def _in_words(row: Any) -> str:
    """The prediction in one sentence."""
    within, threshold = row.epochs_within, f"{row.threshold:.0%}"
    if row.relative_error != row.relative_error:
        return f"no number of epochs can be told at {row.rule} {row.lr:g}"
    if row.frozen_share >= 0.1:
        unmoved = f"the format leaves {percent(row.frozen_share)} of the coordinates unchanged"
        return f"at {row.rule} {row.lr:g} the task vector is not the gradient: {unmoved}"
    if within != within:
        return f"at {row.rule} {row.lr:g} the task vector stays the gradient within {threshold}, however long"
    epochs = "1 epoch" if within == 1 else f"{within:.3g} epochs"
    rate = f"; at {row.epochs} epochs, up to a rate of about {row.lr_within:.2g}" if row.lr_within < 1e9 else ""
    return f"up to about {epochs} at {row.rule} {row.lr:g} the task vector is the gradient within {threshold}{rate}"
