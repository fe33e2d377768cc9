"""The first screen of the page: a badge for each verdict, four numbers, the run card, and the curves of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from tvgrad.report.empty_columns import whole_model
from tvgrad.report.first_epochs import MEASURES, first_epochs
from tvgrad.report.run_card import run_card, shared_card
from tvgrad.report.run_labels import RunLabel, run_labels, without_common_prefix
from tvgrad.report.summary import pairs_of_tasks
from tvgrad.report.tables import RunTables, distinct_runs, run_names
from tvgrad.store.run import Run
from tvgrad.theory.equivalence import APPLIES_NOT, EXACT, FAILS
from tvgrad.theory.troubles import kind_of
from tvgrad.theory.verdicts import NO, UNKNOWN, YES
from tvgrad.wording import counted, listed, percent

GOOD, BAD, PLAIN = "good", "bad", "plain"
MOST_NAMES = 4
COUNTED_APART = ("seconds",)
"""Metrics that are no curve of training."""


@dataclass(frozen=True)
class Badge:
    """One verdict: what was asked, the answer, of how many runs, and more on hover."""

    question: str
    answer: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Tile:
    """One number with its name and what it is measured against."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class FirstScreen:
    """What a reader sees first.

    Attributes:
        badges: verdicts, the negative ones first.
        tiles: four numbers at most.
        card: field -> words, shared by all runs.
        apart: what differs between runs, one row each.
        curves: columns run, epoch, metric and value.
        last: the summary table: the last epoch, one row a run.
        labels: name of a run -> how it is shown.
        unit: what is counted on the axis of the curves.
    """

    badges: Sequence[Badge] = ()
    tiles: Sequence[Tile] = ()
    card: Mapping[str, str] = field(default_factory=dict)
    apart: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    last: pd.DataFrame = field(default_factory=pd.DataFrame)
    labels: Mapping[str, RunLabel] = field(default_factory=dict)
    unit: str = "epoch"


def first_screen(made: RunTables, runs: Sequence[Run]) -> FirstScreen:
    """Gather the first screen of a report on runs.

    Args:
        made: the report's tables.
        runs: the runs that it is about.

    Returns:
        The screen.
    """
    runs = distinct_runs(runs)
    named = dict(zip(run_names(runs), runs, strict=True))
    labels = run_labels(
        {name: made.tasks.get(name, name) for name in named},
        {name: run.info.get("seed") for name, run in named.items()},
    )
    common, apart = shared_card({labels[name].short: run_card(run) for name, run in named.items()})
    return FirstScreen(
        badges=badges(made.tables["equivalence"]),
        tiles=tiles(made, [run.points[-1].number for run in runs if run.points], runs[0].unit),
        card=common,
        apart=apart,
        curves=curves(named),
        last=last_epochs(made.tables, curves(named)),
        labels=labels,
        unit=runs[0].unit,
    )


def badges(equivalence: pd.DataFrame) -> list[Badge]:
    """One badge for each answer to each question: is it the gradient, was the step exact, is anything wrong.

    Args:
        equivalence: the table of that name.

    Returns:
        Badges, troubles first, then negative answers before positive ones.
    """
    last = equivalence.drop_duplicates("run", keep="last")  # the rule's own form comes last
    found = []
    for kind, part in last[last["trouble"].fillna("") != ""].groupby(last["trouble"].map(kind_of), sort=False):
        said = str(part["trouble"].iloc[0]) if len(last) == 1 else f"{len(part)} of {len(last)} runs"
        found.append(Badge(str(kind), said, BAD, _of(part, last) + "; ".join(dict.fromkeys(part["trouble"]))))
    for answer, kind in ((NO, BAD), (UNKNOWN, PLAIN), (YES, GOOD)):
        part = last[last["gradient_holds"] == answer]
        if len(part):
            worst = part["deviation"].max()
            far = (
                ""
                if answer == UNKNOWN or math.isnan(worst)
                else f", {'up to ' if len(part) > 1 else ''}{percent(worst)}"
            )
            said = answer + (f"{far} away" if far else "")
            why = listed(list(dict.fromkeys(cause for cause in part["cause"] if cause)), 2)
            found.append(Badge("task vector = −lr × gradient", _many(said, part, last), kind, _of(part, last) + why))
    for answer, kind in ((FAILS, BAD), (APPLIES_NOT, PLAIN), (EXACT, GOOD)):
        part = last[last["holds"] == answer]
        if len(part):
            why = part["reason"].iloc[0]
            found.append(Badge("optimizer step", _many(answer, part, last), kind, _of(part, last) + str(why)))
    return found


def _many(said: str, part: pd.DataFrame, whole: pd.DataFrame) -> str:
    if len(whole) == 1:
        return said
    return f"{said} · {f'all {len(whole)}' if len(part) == len(whole) else f'{len(part)} of {len(whole)}'} runs"


def _of(part: pd.DataFrame, whole: pd.DataFrame) -> str:
    return "" if len(whole) == 1 else f"{listed(list(part['run']), MOST_NAMES)}: "


def tiles(made: RunTables, epochs: Sequence[int], unit: str) -> list[Tile]:
    """Four numbers: runs, first-epoch share, cosine at the last epoch, largest cosine between tasks.

    Args:
        made: the report's tables.
        epochs: last epoch of each run.
        unit: what they count.

    Returns:
        The tiles; those for which there is no data are left out.
    """
    many = len(set(made.tasks.values()))
    until = "" if not epochs else f", {_range(min(epochs), max(epochs), '{:d}')} {unit}s"
    found = [Tile("Runs", str(len(made.tasks)), f"{counted(many, 'task')}{until}")]
    for column, measure in MEASURES.items():
        rows = first_epochs(made.tables["norms"], column)
        if len(rows):
            low, high = rows["share"].min(), rows["share"].max()
            times = rows["share"] * rows["epochs"]
            note = f"{_range(times.min(), times.max(), '{:.2f}')} times an even share; {measure}"
            found.append(Tile("First epoch's share", _range(low, high, "{:.3f}"), note))
            break
    directions = whole_model(made.tables["directions"], "cos_task_vector_descent").sort_values("epoch")
    name = "cos(τ, −g₀)"  # noqa: RUF001 - a minus is meant
    if directions.empty:
        directions = whole_model(made.tables["directions"], "cos_task_vector_epoch_descent").sort_values("epoch")
        directions = directions.assign(cos_task_vector_descent=directions["cos_task_vector_epoch_descent"])
        name = "cos(τ, −G₀), first epoch gradient"  # noqa: RUF001
    if len(directions):
        last = directions.groupby("run")["cos_task_vector_descent"].last()
        found.append(Tile(f"Cosine at the last {unit}", _range(last.min(), last.max(), "{:.3f}"), name))
    pairs = pairs_of_tasks(made.tables["cross_task"], made.tasks)
    if len(pairs):
        short = without_common_prefix([*made.tasks])
        one = pairs.iloc[int(pairs["cos_task_vectors"].abs().to_numpy().argmax())]
        found.append(
            Tile(
                "Largest cosine between tasks",
                f"{one['cos_task_vectors']:.2f}",
                f"{short[one['run_a']]} and {short[one['run_b']]}",
            )
        )
    return found


def _range(low: float, high: float, form: str) -> str:
    ends = form.format(low), form.format(high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def curves(named: Mapping[str, Run]) -> pd.DataFrame:
    """Gather what was recorded of training: loss, accuracy and their like.

    Args:
        named: name -> run.

    Returns:
        Columns run, epoch, metric and value; a metric that never changes anywhere is left out.
    """
    rows = [
        {"run": name, "epoch": point.number, "metric": metric, "value": float(value)}
        for name, run in named.items()
        for point in run.points
        for metric, value in point.metrics.items()
        if metric not in COUNTED_APART and value is not None and math.isfinite(value)
    ]
    table = pd.DataFrame(rows, columns=["run", "epoch", "metric", "value"])
    order = {"loss": 0, "accuracy": 1, "test_loss": 2}
    return table.sort_values("metric", key=lambda names: names.map(lambda name: order.get(name, 9)), kind="stable")


def last_epochs(tables: Mapping[str, pd.DataFrame], metrics: pd.DataFrame) -> pd.DataFrame:
    """Make the summary table: one row a run, at its last epoch.

    Args:
        tables: those of a report.
        metrics: the curves.

    Returns:
        Columns run, epoch, both verdicts, first epoch's share, norms and cosines of the whole model, and each metric
        before and after; columns without anything are left out.
    """
    verdicts = tables["equivalence"].drop_duplicates("run", keep="last").set_index("run")
    norms = tables["norms"][tables["norms"]["group"] == "all"].sort_values("epoch")
    directions = tables["directions"][tables["directions"]["group"] == "all"].sort_values("epoch")
    rows = []
    for run in verdicts.index:
        own, ways = norms[norms["run"] == run], directions[directions["run"] == run]
        row: dict[str, object] = {
            "run": run,
            "epoch": int(own["epoch"].max()) if len(own) else 0,
            "gradient_holds": verdicts.loc[run, "gradient_holds"],
            "deviation": verdicts.loc[run, "deviation"],
            "holds": verdicts.loc[run, "holds"],
        }
        for name in ("gradient_norm_share", "epoch_gradient_norm_share"):
            row[name] = own[name].iloc[0] if len(own) else math.nan
        for table, name in (
            (own, "task_vector_norm"), (ways, "cos_task_vector_descent"), (ways, "cos_task_vector_epoch_descent"),
            (ways, "relative_residual"),
        ):  # fmt: skip
            row[name] = table[name].iloc[-1] if len(table) else math.nan
        for metric, part in metrics[metrics["run"] == run].groupby("metric", sort=False):
            row[f"{metric} before"], row[f"{metric} after"] = part["value"].iloc[0], part["value"].iloc[-1]
        rows.append(row)
    found = pd.DataFrame(rows).dropna(axis="columns", how="all")
    if {"cos_task_vector_descent", "cos_task_vector_epoch_descent"} <= set(found):
        found = found.drop(columns="cos_task_vector_epoch_descent")
    if {"gradient_norm_share", "epoch_gradient_norm_share"} <= set(found):
        found = found.drop(columns="epoch_gradient_norm_share")
    return found
