"""The paragraph at the top of a report: what the tables say, in words and numbers."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from tvgrad.report.columns import COLUMNS
from tvgrad.report.empty_columns import whole_model
from tvgrad.report.published import DIFFERENCE, first_epoch_shares
from tvgrad.theory.equivalence import APPLIES_NOT, EXACT, FAILS, UNTRAINED
from tvgrad.theory.troubles import DIVERGED, KINDS, MOVED, NOT_BEGUN, OTHERS, WORSE, kind_of
from tvgrad.theory.verdicts import NO, UNCHANGED, UNKNOWN, EquivalenceRow, headline
from tvgrad.vectors.parameters import ALL
from tvgrad.wording import counted, listed

ALIGNED = 0.95
"""A cosine from which a task vector is called aligned with the first gradient: an angle of 18 degrees."""
GROWN = 2.0
"""From how many times its first length a gradient is called grown."""


def summary_of(
    tables: Mapping[str, pd.DataFrame],
    tasks: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    scripts: Collection[str] = (),
) -> list[str]:
    """Say in a few sentences whether the first epoch is exact, how much it dominates, and what to do next.

    Args:
        tables: norms, directions, equivalence and cross_task.
        tasks: name of a run -> its task, where several runs are of one; by default each run is a task of its own.
        refused: name of a run -> why it cannot be explained.
        scripts: names of the runs that were traced from scripts.

    Returns:
        Sentences, in reading order; those for which there is no data are left out.
    """
    found = [
        *_first_epoch(tables["equivalence"]),
        *_estimates(tables["norms"]),
        *_dominance_in_norm(tables["norms"]),
        *_growth(tables["norms"]),
        *_dominance_in_direction(tables["directions"]),
        *_between_tasks(tables["cross_task"], tasks or {}),
    ]
    return [*found, _next_step(tables, refused or {}, scripts)]


def summary_of_checkpoints(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say how far checkpoints moved, how they lie to each other, and what cannot be told without a run.

    Args:
        tables: those of `tvgrad.report.checkpoints.checkpoint_tables`.

    Returns:
        Sentences, in reading order.
    """
    norms = tables["norms"][tables["norms"]["group"] == ALL]
    far = dict(zip(norms["run"].astype(str), norms["relative_norm"].astype(float), strict=True))
    low, high = _ends(far)
    if len(far) == 1:
        moved = f"The task vector of {low} is {far[low]:.3g} times as long as the pretrained weights."
    else:
        moved = (
            f"The task vectors of {len(far)} checkpoints are {far[low]:.3g} ({low}) to {far[high]:.3g} ({high}) times "
            "as long as the pretrained weights."
        )
    still = [run for run, length in far.items() if length == 0]
    if still:
        moved += f" {listed(still)} did not move at all: is it the pretrained checkpoint?"
    return [
        moved,
        *_between_tasks(tables["cross_task"]),
        "Whether the first epoch is exact, and how much it dominates, checkpoints alone do not tell: that takes "
        "full-batch gradients.",
        "Next: `tvgrad trace --from-checkpoints BASE FINETUNED --recipe TARGET --out DIR` computes the gradients at "
        "these weights, given model and data.",
    ]


def _first_epoch(verdicts: pd.DataFrame) -> list[str]:
    """Both verdicts in a line, then what explains them."""
    rows = [EquivalenceRow(*row) for row in verdicts[list(COLUMNS["equivalence"])].itertuples(index=False, name=None)]
    sentences = [headline(rows)] if rows else []
    shares = dict(zip(verdicts["run"].astype(str), verdicts["frozen_share"].astype(float), strict=True))
    run = max(shares, key=lambda name: -1.0 if math.isnan(shares[name]) else shares[name], default="")
    unchanged = shares.get(run, math.nan)
    if unchanged >= UNCHANGED:
        by_format = bool(_lost_in_the_format(verdicts)[verdicts["run"].astype(str) == run].all())
        why = ": their step was under half the spacing of the number format" if by_format else ""
        sentences.append(
            f"Up to {unchanged:.0%} of the coordinates ({run}) did not move in the first epoch although they have a "
            f"gradient{why}."
        )
    exact = set(verdicts.loc[verdicts["holds"] == EXACT, "run"])
    for holds, opening in (
        (FAILS, "The step fails"),
        (APPLIES_NOT, "The gradient form does not apply"),
    ):
        found = verdicts[verdicts["holds"] == holds]
        # Reasons that differ only in their numbers are one reason.
        alike = found["reason"].map(lambda reason: re.sub(r"\d[\d.,e+%-]*", "#", str(reason)))
        for _, group in found.groupby(alike, sort=False):
            names = list(group["run"].drop_duplicates())
            if holds != FAILS and set(names) <= exact:
                continue
            if group["reason"].nunique() == 1:
                sentences.append(f"{opening} for {listed(names)}: {group['reason'].iloc[0]}.")
            else:
                sentences.append(
                    f"{opening} for {listed(names)}. Of {names[0]}: {group['reason'].iloc[0]}; of the others "
                    "likewise, with the numbers in the table."
                )
    return sentences


def _lost_in_the_format(verdicts: pd.DataFrame) -> pd.Series:
    """Whether unchanged coordinates are the format's doing: weights may also be held or put back by something else."""
    exact = verdicts["holds"] == EXACT
    return exact | ((verdicts["holds"] != FAILS) & ~verdicts["trouble"].str.contains(MOVED, regex=False))


def _estimates(norms: pd.DataFrame) -> list[str]:
    """Which gradients are estimates: everything said of their norms and directions is one."""
    if "gradient_error_bar" not in norms:
        return []
    found = norms[(norms["group"] == ALL) & norms["gradient_error_bar"].notna()]
    if found.empty:
        return []
    runs, worst = listed(list(found["run"].drop_duplicates())), found["gradient_error_bar"].max()
    how = (
        f"two measuring passes differ by up to {worst:.2g} of the norm" if math.isfinite(worst) else "of unknown error"
    )
    return [
        f"Estimates from one epoch: {counted(len(found), 'gradient')} of {runs}; {how}, and what follows of the "
        "full-batch gradient is an estimate there."
    ]


def _dominance_in_norm(norms: pd.DataFrame) -> list[str]:
    shares = _shares(norms, "gradient_norm_share")
    if not shares:
        return []
    published = first_epoch_shares()
    ratio = published["share"] * published["epochs"]
    sentences = [
        f"The first epoch's full-batch gradient is the largest in norm in {_how_many_begin_largest(shares)}. Its share "
        f"in the sum of the gradient norms {_range_of_first(shares)}; published for seven vision benchmarks: "
        f"{published['share'].min():.3f} to {published['share'].max():.3f}, {ratio.min():.2f} to {ratio.max():.2f} "
        f"times an even share, the largest in all seven. {DIFFERENCE}."
    ]
    batches = _shares(norms, "mean_batch_gradient_norm_share")
    if batches:
        sentences.append(
            f"By the published measure, recorded for {counted(len(batches), 'run')}, the first epoch's share "
            f"{_range_of_first(batches)}; it is the largest in {_how_many_begin_largest(batches)}."
        )
    return sentences


def _shares(norms: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """Run -> shares by epoch, of the runs with more than one epoch."""
    table = whole_model(norms, column)
    found = {str(run): group.set_index("epoch")[column] for run, group in table.groupby("run", sort=False)}
    return {run: share for run, share in found.items() if len(share) > 1 and 0 in share.index}


def _ends(values: Mapping[str, float]) -> tuple[str, str]:
    """The runs with the smallest and the largest value."""
    return min(values, key=values.__getitem__), max(values, key=values.__getitem__)


def _how_many_begin_largest(shares: Mapping[str, pd.Series]) -> str:
    return f"{sum(share.idxmax() == 0 for share in shares.values())} of {counted(len(shares), 'run')}"


def _range_of_first(shares: Mapping[str, pd.Series]) -> str:
    first = {run: float(share.loc[0]) for run, share in shares.items()}
    times = [first[run] * len(share) for run, share in shares.items()]
    low, high = _ends(first)
    if len(first) == 1:
        return f"is {first[low]:.3f}, that is {times[0]:.2f} times an even share"
    return (
        f"lies between {first[low]:.3f} ({low}) and {first[high]:.3f} ({high}), that is {min(times):.2f} to "
        f"{max(times):.2f} times an even share"
    )


def _growth(norms: pd.DataFrame) -> list[str]:
    """Where the gradient grew instead of falling, which dominance has no chance to show."""
    table = whole_model(norms, "gradient_norm").sort_values("epoch")
    grown = {
        str(run): float(group["gradient_norm"].iloc[-1] / group["gradient_norm"].iloc[0])
        for run, group in table.groupby("run", sort=False)
        if group["epoch"].iloc[0] == 0 and group["gradient_norm"].iloc[0] > 0
    }
    grown = {run: factor for run, factor in grown.items() if factor > GROWN}
    if not grown:
        return []
    worst = max(grown, key=lambda run: grown[run])
    return [
        f"The full-batch gradient at the end is more than {GROWN:g} times as long as at the start for "
        f"{listed(list(grown))} (up to {grown[worst]:.3g} times): the learning rate may be too large "
        "(`tvgrad predict` prints the limit of gradient descent)."
    ]


def _dominance_in_direction(directions: pd.DataFrame) -> list[str]:
    table = whole_model(directions, "cos_task_vector_descent")
    if table.empty:
        return []
    ordered = table.sort_values("epoch")
    cosines = dict(zip(ordered["run"].astype(str), ordered["cos_task_vector_descent"].astype(float), strict=True))
    low, high = _ends(cosines)
    if len(cosines) == 1:
        text = f"After {int(ordered['epoch'].max())} epochs cos(task vector, -g_0) is {cosines[low]:.3f}"
    else:
        text = (
            f"At the last epoch cos(task vector, -g_0) lies between {cosines[low]:.3f} ({low}) and "
            f"{cosines[high]:.3f} ({high})"
        )
    within = sum(cosine >= ALIGNED for cosine in cosines.values())
    return [f"{text}; it is at least {ALIGNED:g} in {within} of {counted(len(cosines), 'run')}."]


def pairs_of_tasks(cross_task: pd.DataFrame, tasks: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Keep what is said of different tasks, whole models and the last epoch: two runs of one task say nothing of that.

    Args:
        cross_task: the table of that name.
        tasks: name of a run -> its task; by default each run is a task of its own.

    Returns:
        Rows of the table.
    """
    table, of = whole_model(cross_task, "cos_task_vectors"), tasks or {}
    different = [of.get(a, a) != of.get(b, b) for a, b in zip(table["run_a"], table["run_b"], strict=True)]
    table = table[pd.Series(different, index=table.index, dtype=bool)]
    if table["epoch"].notna().any():
        table = table[table["epoch"] == table["epoch"].max()]
    return table


def _between_tasks(cross_task: pd.DataFrame, tasks: Mapping[str, str] | None = None) -> list[str]:
    """How different tasks lie to each other."""
    last = pairs_of_tasks(cross_task, tasks)
    if last.empty:
        return []
    when = f" at epoch {int(last['epoch'].max())}" if last["epoch"].notna().any() else ""
    pairs = list(zip(last["run_a"], last["run_b"], last["cos_task_vectors"].astype(float), strict=True))
    left, right, cosine = max(pairs, key=lambda pair: abs(pair[2]))
    median = statistics.median(abs(pair[2]) for pair in pairs)
    return [
        f"Between tasks, the cosine of task vectors{when} is largest in size for {left} and {right} "
        f"({cosine:.2f}); the median of its size over all pairs is {median:.2f}."
    ]


def _next_step(tables: Mapping[str, pd.DataFrame], refused: Mapping[str, str], scripts: Collection[str]) -> str:
    verdicts = tables["equivalence"]
    fails = verdicts["holds"] == FAILS
    if fails.any() and verdicts.loc[fails, "reason"].str.startswith(UNTRAINED).all():
        return "Next: train with fused=False: the fused kernel left coordinates as they were."
    if fails.any():
        return (
            "Next: find what moved the weights besides the optimizer step; `tvgrad verify` names run and worst ratio."
        )
    if all(str(trouble).startswith(NOT_BEGUN) for trouble in verdicts["trouble"]):
        return "Next: trace it again, to the end of an epoch at least: a task vector needs one."
    kinds = {kind_of(trouble) for trouble in verdicts["trouble"] if trouble}
    if DIVERGED in kinds:
        return "Next: lower the learning rate; `tvgrad predict` prints the limit of gradient descent."
    if KINDS[WORSE] in kinds:
        return (
            "Next: lower the learning rate, or take an earlier epoch: the pretrained model is better than the last one."
        )
    if KINDS[OTHERS] in kinds:
        return "Next: `tvgrad report --pretrained BASE FINAL` on checkpoints that the script saves: its last weights."
    gradients = f"Next: record full-batch gradients ({_recorded_by(verdicts['run'], scripts)})"
    if "sketches" in tables and (verdicts["gradient_holds"] == UNKNOWN).all():
        return "Next: compare the estimates of the table sketches; --keep-gradients all records what is exact."
    table = whole_model(tables["directions"], "cos_task_vector_descent")
    if (
        verdicts["gradient_holds"] == UNKNOWN
    ).all() and table.empty:  # else the rate is unknown, or an estimate's error
        return f"{gradients}: they are what is missing."
    if (verdicts["gradient_holds"] == NO).any():
        unchanged = (verdicts["gradient_holds"] == NO) & (verdicts["frozen_share"] >= UNCHANGED)
        if (unchanged & _lost_in_the_format(verdicts)).any():
            return "Next: keep the weights in a wider format, or raise the learning rate: then more coordinates move."
        open_runs = set(verdicts.loc[verdicts["gradient_holds"] == NO, "run"]) - refused.keys()
        if tables.get("error_budget", pd.DataFrame()).empty and open_runs:
            how = "-- COMMAND" if open_runs <= set(scripts) else "--recipe TARGET"
            return f"Next: `tvgrad explain RUN {how}` splits the deviation from the gradient into its causes."
    if table.empty:
        return f"{gradients} to compare the task vectors with them."
    lowest = float(table["cos_task_vector_descent"].min())
    if math.isfinite(lowest) and lowest < ALIGNED:
        return (
            "Next: where the cosine is low, the task vector is no longer the first gradient; compare merging after one "
            "epoch with merging after the last."
        )
    return "Next: the first epoch stands for the whole trajectory here; merging after one epoch is worth trying first."


def _recorded_by(runs: Iterable[str], scripts: Collection[str]) -> str:
    """How full-batch gradients of these runs are recorded."""
    of_scripts = {run in scripts for run in runs}
    ways = ["`--record gradients` with a recipe"] if False in of_scripts else []
    ways += ["`tvgrad measure RUN --at 0 -- COMMAND` of a script"] if True in of_scripts else []
    return listed(ways)
