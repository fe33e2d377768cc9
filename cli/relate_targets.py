"""`tvgrad relate TARGET ...`: how tasks will relate, told before any of them is trained, and held against runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvgrad.errors import TvgradError
from tvgrad.wording import near

from . import options

if TYPE_CHECKING:
    from tvgrad.problem.objective import Objective
    from tvgrad.problem.recipe import Recipe
    from tvgrad.record.training_loop import Prepared
    from tvgrad.store.run import Run
    from tvgrad.theory.task_pairs import PairMeasurement, PairPrediction
    from tvgrad.update_rules.base import UpdateRule

ESTIMATES = {
    "cos_gradients", "cos_task_vectors", "first_order_change", "change_of_a", "change_of_b",
    "lambda_low", "lambda_high",
}  # fmt: skip


def relate_targets(
    targets: Sequence[str],
    tasks: str | None,
    given: Mapping[str, Any],
    *,
    cross: bool,
    against: Sequence[Path],
    out: Path | None,
    quiet: bool,
) -> None:
    """Predict all pairs of the targets' tasks, print them, and hold them against runs.

    Args:
        targets: names of recipes.
        tasks: which of their tasks, separated by commas.
        given: options of training.
        cross: take products with the other tasks' gradients too.
        against: trained runs, or directories of runs.
        out: a CSV file for the table.
        quiet: sentences only.

    Raises:
        TvgradError: the tasks, the options or the runs do not go together.
    """
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.files.atomic import write_atomically
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.training_loop import prepare
    from tvgrad.results import frame_of
    from tvgrad.theory.task_pairs import relate_tasks

    allowed = options.names_in(given["allow"])
    recipes = _recipes(targets, options.names_in(tasks))
    prepared = {
        recipe.name: prepare(recipe, TraceOptions(**{**given, "allow": allowed, "target": targets[0]}))
        for recipe in recipes
    }
    runs = _runs(against, prepared)
    rule, epochs = _training(prepared, runs, given)
    objectives = {name: one.objective for name, one in prepared.items()}
    found = relate_tasks(objectives, rule, epochs, cross=cross)
    truth = _measured(objectives, runs)
    table = found.to_frame()
    for name in ("cos_task_vectors", "change_of_a", "change_of_b", "lambda_low", "lambda_high") if runs else ():
        table[f"measured_{name}"] = [
            getattr(truth[key], name) if key in truth else math.nan
            for key in ((r.task_a, r.task_b) for r in found.rows)
        ]
    if out is not None:
        write_atomically(out, lambda temporary: table.to_csv(temporary, index=False))
    if not quiet:
        title = f"Predicted relations after {_epochs(epochs)} of {rule.name} (estimates: about)"
        print_table(title, frame_of(found.rows).drop(columns="epochs"), estimates=ESTIMATES)
        if truth:
            print_table("Measured", frame_of(truth.values()))
    for sentence in found.sentences:
        say(sentence)
    say(_in_words(found.rows, truth))


def _recipes(targets: Sequence[str], names: tuple[str, ...]) -> list[Recipe]:
    from tvgrad.problem.recipe import check_recipes
    from tvgrad.recipes.catalogue import load_recipes

    made: list[Recipe] = []
    for target in dict.fromkeys(targets):
        made += load_recipes(target)
    missing = [name for name in names if name not in {recipe.name for recipe in made}]
    if missing:
        known = [recipe.name for recipe in made]
        told = f"choose from {', '.join(known)}{near(missing[0], known)}"
        raise TvgradError(f"{' and '.join(targets)}: no task is called {missing[0]!r}: {told}")
    # The order of --tasks counts: lambda is the coefficient of the second.
    chosen = [recipe for name in names for recipe in made if recipe.name == name] if names else made
    if len(chosen) < 2:
        raise TvgradError(f"{chosen[0].name} alone has nothing to relate to: name two tasks, or a second TARGET")
    return check_recipes(chosen, " and ".join(dict.fromkeys(targets)))


def _runs(paths: Sequence[Path], prepared: Mapping[str, Prepared]) -> dict[str, Run]:
    """The trained runs by their tasks' names, made sure to begin where the tasks begin."""
    import torch
    from tvgrad.cli.open_runs import open_each, problems_of

    from tvgrad.errors import DamagedRun

    found: dict[str, Run] = {}
    for directory, run, problems in open_each(paths):
        for problem in problems if run is None else problems_of(run, checksums=False):
            raise DamagedRun(f"{directory} is damaged: {problem}; see `tvgrad verify`")
        if run is None or run.name not in prepared:
            continue
        start = prepared[run.name].objective.initial
        recorded = run.weights(0) if 0 in run.epochs else {}
        same = start.keys() == recorded.keys() and all(
            start[name].shape == tensor.shape and torch.equal(start[name].cpu().double(), tensor.double())
            for name, tensor in recorded.items()
        )
        if not same:
            raise TvgradError(
                f"{directory} does not begin at the pretrained weights of {run.name}: trace it again from this recipe, "
                "with the same --dtype"
            )
        if run.name in found:
            raise TvgradError(f"two runs of {run.name} were given, {found[run.name].root} and {directory}: give one")
        found[run.name] = run
    if paths and len(found) < 2:
        raise TvgradError(
            f"--against holds trained runs of {len(found)} of the tasks {', '.join(prepared)}: give runs of two or more"
        )
    return found


def _training(
    prepared: Mapping[str, Prepared], runs: Mapping[str, Run], given: Mapping[str, Any]
) -> tuple[UpdateRule, int]:
    """The one rule and the one number of steps that are predicted: those of the runs, unless others were given."""
    from tvgrad.record.planned_rule import require_one_rate
    from tvgrad.update_rules.linear import LinearRule

    own_rule = given["optimizer"] is None and given["lr"] is None
    rules, epochs = {}, {}
    for name, one in prepared.items():
        run = runs.get(name)
        rules[name] = run.rule if run is not None and own_rule and run.rule is not None else one.rule
        steps = None if run is None else max(point.steps for point in run.points if point.number == max(run.epochs))
        epochs[name] = one.epochs if given["epochs"] is not None or steps is None else steps
        if rules[name] is one.rule:
            require_one_rate(one.recipe, one.rule)
        if not isinstance(rules[name], LinearRule):
            raise TvgradError(
                f"{name} is trained by {rules[name].name}, which no prediction follows: give --optimizer gd and --lr "
                "for what gradient descent would do"
            )
    first = next(iter(prepared))
    for name in prepared:
        for what, values in (("--optimizer and --lr", rules), ("--epochs", epochs)):
            if values[name] != values[first]:
                raise TvgradError(
                    f"{first} and {name} are trained differently ({values[first]} and {values[name]}): give {what} "
                    "for both"
                )
    return rules[first], epochs[first]


def _measured(objectives: Mapping[str, Objective], runs: Mapping[str, Run]) -> dict[tuple[str, str], PairMeasurement]:
    from itertools import combinations

    from tvgrad.theory.task_pairs import measure_pair

    vectors = {name: run.task_vector(max(run.epochs)) for name, run in runs.items()}
    return {
        (a, b): measure_pair((a, b), (objectives[a], objectives[b]), (vectors[a], vectors[b]))
        for a, b in combinations([name for name in objectives if name in vectors], 2)
    }


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _in_words(rows: Sequence[PairPrediction], truth: Mapping[tuple[str, str], PairMeasurement]) -> str:
    if len(rows) == 1:
        said = _one_pair(rows[0])
        known = truth.get((rows[0].task_a, rows[0].task_b))
        return said if known is None else f"{said}\n{_held_against(rows[0], known)}"
    kinds = [row.kind for row in rows]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    said = f"Of {len(rows)} pairs, after {_epochs(rows[0].epochs)}, are predicted: {counts}."
    if not truth:
        return said
    right = total = 0
    for row in rows:
        known = truth.get((row.task_a, row.task_b))
        if known is not None:
            for name in ("change_of_a", "change_of_b"):
                right += (getattr(row, name) > 0) == (getattr(known, name) > 0)
                total += 1
    return f"{said} The sign of interference was predicted right in {right} of {total} cases."


def _one_pair(row: PairPrediction) -> str:
    if row.kind == "undefined":
        return f"One of the task vectors of {row.task_a} and {row.task_b} is zero or not finite: they have no relation."
    effects = [
        f"adding the task vector of {other} to the model of {own} {_effect(change)}"
        for own, other, change in (
            (row.task_a, row.task_b, row.change_of_a),
            (row.task_b, row.task_a, row.change_of_b),
        )
    ]
    return (
        f"{row.task_a} and {row.task_b} are predicted to be {row.kind} after {_epochs(row.epochs)} (cosine of the task "
        f"vectors about {row.cos_task_vectors:.3f}; of the gradients {row.cos_gradients:.3f}); "
        f"{' and '.join(effects)}; {_range(row)}."
    )


def _effect(change: float) -> str:
    return f"{'raises' if change > 0 else 'lowers'} its loss by about {abs(change):.2g}"


def _range(row: PairPrediction) -> str:
    words = f"theta_0 + tau_{row.task_a} + lambda tau_{row.task_b}"
    if math.isnan(row.lambda_low):
        return f"no lambda between -3 and 3 makes {words} better than the pretrained model on both tasks"
    return (
        f"{words} is better than the pretrained model on both tasks for lambda from about {row.lambda_low:.2f} to "
        f"{row.lambda_high:.2f} (looked for between -3 and 3)"
    )


def _held_against(row: PairPrediction, known: PairMeasurement) -> str:
    signs = [
        f"{'right' if (guess > 0) == (is_so > 0) else 'wrong'} on {name} ({is_so:+.2g})"
        for name, guess, is_so in (
            (row.task_a, row.change_of_a, known.change_of_a),
            (row.task_b, row.change_of_b, known.change_of_b),
        )
    ]
    ends = (
        "for no lambda"
        if math.isnan(known.lambda_low)
        else f"for lambda from {known.lambda_low:.2f} to {known.lambda_high:.2f}"
    )
    return (
        f"Measured: cosine {known.cos_task_vectors:.3f}; the sign of interference was predicted {signs[0]} and "
        f"{signs[1]}; both losses are below the pretrained ones {ends}."
    )
