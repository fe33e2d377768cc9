"""`tvgrad plan`: how far to go along a merge, and what it will do to every task, before or after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import OPTIMIZERS
from tvgrad.wording import counted

from . import options, table_formats

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvgrad.theory.held_out import HeldOutCurve
    from tvgrad.theory.merge_plan import Plan

OF_TRAINING = ("optimizer", "lr", "momentum", "weight_decay", "epochs", "batch_size", "dtype", "tasks")


@click.command()
@click.argument("things", nargs=-1, required=True, metavar="TARGET | RUN ...")
@options.tasks
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Of the training to come.")
@options.lr
@options.momentum
@click.option("--weight-decay", type=float, help="Coupled for all but adamw.")
@click.option("--epochs", type=int, help="Of the training to come.")
@click.option("--batch-size", type=int, help="Samples in a mini-batch of the training to come.")
@click.option("--pairs", is_flag=True, help="Measure all pairs: one Hessian-vector product more for each.")
@click.option(
    "--on",
    type=click.Choice(["training", "validation"]),
    default="training",
    show_default=True,
    help="What the coefficient is best for: the training loss, or the metric on one half of the test samples.",
)
@click.option("--recipe", "target", help="TARGET of the recipe that made RUNs: plan with their task vectors.")
@click.option("--epoch", type=int, help="Epoch of RUNs (default: the last that all keep).")
@options.dtype
@options.device
@options.chunk_size
@options.allow
@click.option("--cost", is_flag=True, help="Tell what it takes, and stop.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan to this JSON file; named .safetensors, all that `merge --measurements` needs elsewhere.",
)
@options.as_json
@table_formats.option
def plan(
    things: tuple[str, ...],
    target: str | None,
    epoch: int | None,
    pairs: bool,
    on: str,
    cost: bool,
    save: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Plan a merge: the coefficient, and every task's loss after merging by task arithmetic with it.

    Before training, TARGET's tasks are looked at from their pretrained weights: two gradients, three Hessian-vector
    products and a few losses a task. The task vectors of the training that the options describe are forecast, SGD and
    Adam included, and how far to go along their sum is told. After training, --recipe takes the true task vectors of
    RUNs. All numbers are estimates, of losses on the training samples.

    The coefficient that is best for the training loss goes further than is good for other samples. --on validation
    measures the recipe's metric along the same merge, on the half of the test samples that --alpha search takes, and
    chooses by it; report on the other half alone.

    \b
    Examples:
      tvgrad plan digits
      tvgrad plan digits --tasks low,parity --optimizer adam --lr 1e-3 \\
        --epochs 1 --batch-size 50 --pairs
      tvgrad plan digits --tasks low,parity --on validation
      tvgrad plan runs/digits --recipe digits --epoch 1 --save plan.json
      tvgrad plan runs/digits --recipe digits --save measured.safetensors
    """
    from tvgrad.theory.merge_plan import plan as planned
    from tvgrad.vectors.algebra import combination

    save = options.file_to_write(save, "--save")
    measures = save is not None and save.suffix == ".safetensors"
    if measures and on != "training":
        raise TvgradError(
            "a file of measurements tells the coefficient that is best for the training losses: leave --on out, or "
            "give --save a name that ends in .json"
        )
    pairs, weights = pairs or measures, None
    if target is None:
        if epoch is not None:
            raise TvgradError("--epoch is for trained RUNs: give their --recipe, or leave it out")
        prepared = _prepared(things, **given)
        if cost:
            click.echo(_cost([one.objective for one in prepared], pairs, on))
            return
        first, objectives = prepared[0], [one.objective for one in prepared]
        names = [one.recipe.name for one in prepared]
        scores = _scores([one.recipe for one in prepared], objectives[0].device) if on == "validation" else None
        made = planned(objectives, first.rule, first.epochs, batch_size=first.batch_size, pairs=pairs, scores=scores)
        title = f"Merging after {counted(first.epochs, 'epoch')} of {first.rule.name} {first.rule.rate(0):g}"
    else:
        for name in OF_TRAINING:
            if given[name] is not None:
                raise TvgradError(f"--{name.replace('_', '-')} is for a training to come: leave it out with --recipe")
        runs, recipes, objectives, chosen = _trained(things, target, epoch, str(given["device"]))
        if cost:
            click.echo(_cost(objectives, pairs, on, trained=True))
            return
        names, vectors = _names(runs, measures), [run.task_vector(chosen) for run in runs]
        scores = _scores(recipes, objectives[0].device, runs) if on == "validation" else None
        made = planned(objectives, task_vectors=vectors, pairs=pairs, scores=scores)
        weights = [combination((1.0, objectives[0].initial), (1.0, vector)) for vector in vectors]
        title = f"Merging runs after epoch {chosen}"
    if save is not None and measures:
        from tvgrad.merging import measure

        told = measure(names, objectives, weights, slopes=made.slopes, pairs=made.pairs, planned=made.coefficient)
        told.save(save)
    elif save is not None:
        from tvgrad.files.atomic import write_text_atomically

        write_text_atomically(save, _text(made, names), option="--save")
    if as_json:
        click.echo(_text(made, names))
        return
    _print(made, names, title)


def _names(runs: list[Any], measures: bool) -> list[str]:
    """Names that tell the runs apart; before any work, whether measurements can be found by those of the tasks."""
    from tvgrad.files.regular import real_path
    from tvgrad.merging.measuring import check_names
    from tvgrad.report.tables import run_names

    places = [real_path(run.root) for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise TvgradError(f"{run.root} is given twice, and would count twice: give each run once")
    if measures:
        names = [run.name for run in runs]
        check_names(names)
        return names
    return run_names(runs)


def _prepared(things: tuple[str, ...], **given: Any) -> list[Any]:
    from tvgrad.recipes.catalogue import load_recipes
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.planned_rule import require_one_rate
    from tvgrad.record.training_loop import prepare

    if len(things) > 1 or (Path(things[0]).is_dir() and things[0] not in _built_in()):
        raise TvgradError("before training give one TARGET; for trained RUNs say which --recipe made them")
    tasks, allow = given.pop("tasks"), given.pop("allow")
    allowed = options.names_in(allow)
    recipes = load_recipes(things[0], options.names_in(tasks))
    prepared = [prepare(one, TraceOptions(target=things[0], allow=allowed, **given)) for one in recipes]
    first = prepared[0]
    for one in prepared:
        require_one_rate(one.recipe, one.rule)
        if (one.rule, one.epochs, one.batch_size) != (first.rule, first.epochs, first.batch_size):
            raise TvgradError(
                f"{first.recipe.name} and {one.recipe.name} are not trained alike by default: give --optimizer, --lr, "
                "--epochs and --batch-size"
            )
    return prepared


def _built_in() -> Any:
    from tvgrad.recipes.catalogue import BUILT_IN

    return BUILT_IN


def _trained(
    things: tuple[str, ...], target: str, epoch: int | None, device: str
) -> tuple[list[Any], list[Any], list[Any], int]:
    from tvgrad.merging.runs import common_epoch
    from tvgrad.recipes.of_run import objective_of, recipe_of
    from tvgrad.store.run import open_runs

    opened = open_runs([Path(thing) for thing in things])
    chosen = common_epoch(opened) if epoch is None else epoch
    recipes = [recipe_of(run, target) for run in opened]
    objectives = [objective_of(run, recipe, device=device) for run, recipe in zip(opened, recipes, strict=True)]
    return opened, recipes, objectives, chosen


def _scores(recipes: list[Any], device: Any, runs: list[Any] | None = None) -> list[Callable[[Any], float]]:
    """Each task's metric on the half of its test samples that alpha is searched on, with the run's own heads."""
    from functools import partial

    from tvgrad.merging.evaluation import Scorer, halves

    states = [None] * len(recipes) if runs is None else [run.complete(0) for run in runs]
    scorers = [Scorer(recipe, state, device) for recipe, state in zip(recipes, states, strict=True)]
    return [partial(one.score, samples=halves(one.test)[0]) for one in scorers]


def _cost(objectives: list[Any], pairs: bool, on: str, *, trained: bool = False) -> str:
    """What a plan takes, in one sentence; task vectors of trained runs need no forecast."""
    from tvgrad.theory.budget_plan import measured_costs
    from tvgrad.theory.held_out import STEPS
    from tvgrad.theory.merge_line import DOUBLINGS, SEARCHES, SEARCHES_FAR

    gradients, forecast = (1, 0) if trained else (2, 2)
    products = forecast + (len(objectives) if pairs else 2 if trained else 1)
    seconds = sum((gradients + 5 / 3) * one.gradient + products * one.hvp for one in map(measured_costs, objectives))
    return (
        f"{counted(gradients, 'gradient')}, {counted(products, 'Hessian-vector product')} and up to 5 losses "
        f"({SEARCHES + SEARCHES_FAR + 2} where the coefficient must be searched, {2 * SEARCHES + DOUBLINGS + 3} where "
        "it is above 1) for each of "
        f"{counted(len(objectives), 'task')}, about {seconds:.2g} s"
        + (f", and {STEPS + 1} passes over its validation samples" if on == "validation" else "")
    )


def _text(made: Plan, names: list[str]) -> str:
    from tvgrad.results import json_text

    return json_text({
        "coefficient": made.coefficient,
        "coefficients": dict(zip(names, made.coefficients, strict=True)),
        "relative_second_order_error": made.relative_second_order_error,
        "holds": made.holds,
        "tasks": [row.row() | {"task": name} for name, row in zip(names, made.rows, strict=True)],
        "slopes": made.slopes.tolist(),
        "pairs": None if made.pairs is None else made.pairs.tolist(),
        "sentences": made.sentences,
        "held_out": made.held_out and {"coefficients": made.held_out.coefficients, "scores": made.held_out.scores},
        "kind": "estimate",
    })


def _print(made: Plan, names: list[str], title: str) -> None:
    from tvgrad.cli.terminal import print_table, say

    table = made.to_frame().dropna(axis="columns", how="all").drop(columns="kind")
    table["task"] = names
    print_table(f"{title} (estimates: about)", table, estimates=set(table.columns) - {"task", "loss"})
    if made.pairs is not None:
        changes = _changes(made, names)
        title = "What adding a task vector changes in another task's loss, to second order (estimates: about)"
        print_table(title, changes, estimates=set(names))
    for sentence in (*made.sentences, _in_words(made, names)):
        say(sentence)


def _changes(made: Plan, names: list[str]) -> Any:
    """To second order, `L_s(tau_s + tau_u) - L_s(tau_s)`, at coefficient 1."""
    import pandas as pd

    assert made.pairs is not None
    rows: list[dict[str, Any]] = []
    for s, name in enumerate(names):
        curved = made.pairs[s]
        changes = {
            other: made.slopes[s, u] + curved[s, u] + curved[u, u] / 2 if u != s else float("nan")
            for u, other in enumerate(names)
        }
        rows.append({"loss of": name} | changes)
    return pd.DataFrame(rows)


def _in_words(made: Plan, names: list[str]) -> str:
    """The plan in one sentence."""
    if made.held_out is not None:
        return _by_score(made, made.held_out)
    if made.coefficient == 0:
        return "no merge is told to lower the summed training loss of these tasks: leave their task vectors apart"
    before = sum(row.loss for row in made.rows)
    drop = before - sum(made.predicted_losses)
    hurt = [name for name, row in zip(names, made.rows, strict=True) if row.predicted_loss >= row.loss]
    what = (
        f"merge with coefficient {made.coefficient:.3g}: the summed training loss is predicted to fall from "
        f"{before:.4g} by about {drop:.2g}"
    )
    harm = f", with {' and '.join(hurt)} no better than pretrained" if hurt else ", and every task's loss with it"
    error = made.relative_second_order_error
    if error != error:
        return what + harm
    trust = (
        f"; task vectors are predicted to be within {error:.0%} of first order"
        if made.holds
        else f"; but a task vector is predicted to be {error:.0%} away from first order, where this is a rough guess"
    )
    return what + harm + trust


def _by_score(made: Plan, curve: HeldOutCurve) -> str:
    """The plan in one sentence, where it was chosen on validation samples."""
    tried = f"of {len(curve.coefficients)} tried up to {curve.coefficients[-1]:.3g}"
    if made.coefficient == 0:
        return f"no coefficient {tried} scores better on the validation samples than the pretrained weights: leave them"
    return (
        f"merge with coefficient {made.coefficient:.3g}, the best on the validation samples {tried}: their mean score "
        f"is {curve.scores[0]:.4g} at the pretrained weights and about {curve.best:.4g} after merging; losses above "
        "are of the training samples"
    )
