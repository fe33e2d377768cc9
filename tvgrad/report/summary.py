"""The paragraph at the top of a report: what the tables say, in words and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from tvgrad.parameters import ALL
from tvgrad.report.published import DIFFERENCE, first_epoch_shares

__all__ = ["summary_of"]

ALIGNED = 0.95
"""A cosine from which a task vector is called aligned with the first gradient: an angle of 18 degrees."""


def summary_of(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say in a few sentences whether the first epoch is exact, how much it dominates, and what to do next.

    Args:
        tables: norms, directions, equivalence and cross_task.

    Returns:
        Sentences, in reading order; those for which there is no data are left out.
    """
    found = [
        *_exactness(tables["equivalence"]),
        *_dominance_in_norm(tables["norms"]),
        *_dominance_in_direction(tables["directions"]),
        *_between_tasks(tables["cross_task"]),
    ]
    return [*found, _next_step(tables)]


def _exactness(verdicts: pd.DataFrame) -> list[str]:
    sentences = []
    by_run = {str(run): list(group["holds"]) for run, group in verdicts.groupby("run", sort=False)}
    exact = [run for run, found in by_run.items() if "exact" in found and "fails" not in found]
    if exact:
        every = "every run" if len(exact) == len(by_run) else _listed(exact)
        formulas = verdicts[(verdicts["holds"] == "exact")]["rule"].drop_duplicates()
        sentences.append(
            f"The first epoch of {every} is exact: {_listed(list(formulas))} holds in every coordinate within the "
            "rounding of one optimizer step."
        )
    shares = dict(zip(verdicts["run"].astype(str), verdicts["frozen_share"].astype(float), strict=True))
    run = max(shares, key=lambda name: -1.0 if math.isnan(shares[name]) else shares[name], default="")
    frozen = shares.get(run, math.nan)
    if frozen >= 0.05:
        sentences.append(
            f"Up to {frozen:.0%} of the coordinates ({run}) did not move in the first epoch although they have a "
            "gradient: their step was under half the spacing of the number format."
        )
    for holds, opening in (("fails", "Not exact"), ("does not apply", "The gradient form does not apply")):
        for reason, group in verdicts[verdicts["holds"] == holds].groupby("reason", sort=False):
            if holds == "fails" or not set(group["run"]) <= set(exact):
                sentences.append(f"{opening} for {_listed(list(group['run'].drop_duplicates()))}: {reason}.")
    return sentences


def _dominance_in_norm(norms: pd.DataFrame) -> list[str]:
    table = norms[(norms["group"] == ALL) & norms["gradient_norm_share"].notna()]
    by_run = table.groupby("run", sort=False)
    shares = {str(run): group.set_index("epoch")["gradient_norm_share"] for run, group in by_run}
    shares = {run: share for run, share in shares.items() if len(share) > 1 and 0 in share.index}
    if not shares:
        return []
    largest = [run for run, share in shares.items() if share.idxmax() == 0]
    first = {run: float(share.loc[0]) for run, share in shares.items()}
    times = {run: first[run] * len(share) for run, share in shares.items()}
    low, high = min(first, key=lambda run: first[run]), max(first, key=lambda run: first[run])
    published = first_epoch_shares()
    begins = norms[(norms["group"] == ALL) & (norms["epoch"] == 0)]
    batch = [float(share) for share in begins["mean_batch_gradient_norm_share"].dropna()]
    batches = (
        f" Of the mean batch gradient norm its share lies between {min(batch):.3f} and {max(batch):.3f}."
        if batch
        else ""
    )
    ratio = published["share"] * published["epochs"]
    return [
        f"The first epoch's full-batch gradient is the largest in norm in {len(largest)} of {len(shares)} runs. Its "
        f"share in the sum of the gradient norms lies between {first[low]:.3f} ({low}) and {first[high]:.3f} ({high}), "
        f"that is {min(times.values()):.2f} to {max(times.values()):.2f} times an even share; published for seven "
        f"vision benchmarks: {published['share'].min():.3f} to {published['share'].max():.3f}, "
        f"{ratio.min():.2f} to {ratio.max():.2f} times an even share. {DIFFERENCE}.{batches}"
    ]


def _dominance_in_direction(directions: pd.DataFrame) -> list[str]:
    table = directions[(directions["group"] == ALL) & directions["cos_task_vector_descent"].notna()]
    if table.empty:
        return []
    ordered = table.sort_values("epoch")
    cosines = dict(zip(ordered["run"].astype(str), ordered["cos_task_vector_descent"].astype(float), strict=True))
    low, high = min(cosines, key=lambda run: cosines[run]), max(cosines, key=lambda run: cosines[run])
    if len(cosines) == 1:
        text = f"After {int(ordered['epoch'].max())} epochs cos(task vector, -g_0) is {cosines[low]:.3f}"
    else:
        text = (
            f"At the last epoch cos(task vector, -g_0) lies between {cosines[low]:.3f} ({low}) and "
            f"{cosines[high]:.3f} ({high})"
        )
    within = sum(cosine >= ALIGNED for cosine in cosines.values())
    return [f"{text}; it is at least {ALIGNED:g} in {within} of {len(cosines)} runs."]


def _between_tasks(cross_task: pd.DataFrame) -> list[str]:
    table = cross_task[(cross_task["group"] == ALL) & cross_task["cos_task_vectors"].notna()]
    if table.empty:
        return []
    epoch = int(table["epoch"].max())
    last = table[table["epoch"] == epoch]
    pairs = list(zip(last["run_a"], last["run_b"], last["cos_task_vectors"].astype(float), strict=True))
    left, right, cosine = max(pairs, key=lambda pair: abs(pair[2]))
    median = statistics.median(abs(pair[2]) for pair in pairs)
    return [
        f"Between tasks, the cosine of task vectors at epoch {epoch} is largest in size for {left} and {right} "
        f"({cosine:.2f}); the median of its size over all pairs is {median:.2f}."
    ]


def _next_step(tables: Mapping[str, pd.DataFrame]) -> str:
    verdicts = tables["equivalence"]
    if (verdicts["holds"] == "fails").any():
        return (
            "Next: find what moved the weights besides the optimizer step; `tvgrad verify` names run and worst ratio."
        )
    directions = tables["directions"]
    table = directions[(directions["group"] == ALL) & directions["cos_task_vector_descent"].notna()]
    if table.empty:
        return "Next: record full-batch gradients (`--record gradients`) to compare the task vectors with them."
    lowest = float(table["cos_task_vector_descent"].min())
    if math.isfinite(lowest) and lowest < ALIGNED:
        return (
            "Next: where the cosine is low, the task vector is no longer the first gradient; compare merging after one "
            "epoch with merging after the last."
        )
    return "Next: the first epoch stands for the whole trajectory here; merging after one epoch is worth trying first."


def _listed(words: Sequence[str]) -> str:
    if len(words) <= 1:
        return "".join(map(str, words))
    return f"{', '.join(map(str, words[:-1]))} and {words[-1]}"
