"""How two fine-tunings of one model relate: their directions, their signs, and what each does to the other's task.

Every number is read from one Gram matrix of the vectors of both runs. The cosines and the agreement in sign are the
cross-task columns of a report. Interference is beside them because a cosine forgets lengths and what a task cares for:
to first order, adding `tau_b` changes the loss of task a by `<g_a, tau_b>`, where its own vector brings `<g_a, tau_a>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from tvgrad.errors import TvgradError
from tvgrad.report.lora_relation import (
    IN_BOTH_SPACES,
    IN_WEIGHT_SPACE,
    is_plain_lora,
    same_adapted_weights,
    same_factors,
    weight_space_cosines,
    weight_space_table,
)
from tvgrad.report.tables import distinct_runs, run_names, run_tables
from tvgrad.results import Shown
from tvgrad.store.run import Run
from tvgrad.streaming.blocks import tensor_blocks
from tvgrad.streaming.gram import GramResult
from tvgrad.streaming.vector_key import VectorKey
from tvgrad.vectors.parameters import ALL

CHANCE = 3.0
"""Standard deviations, `1/sqrt(m)` each, within which the cosine of two unrelated directions in R^m is expected."""
LEVEL = "99.7 %"
"""How often at least the cosine of two independent random directions is within `CHANCE` of them."""
ALIKE = 0.5
"""From this cosine on, an angle of 60 degrees, two task vectors point the same way; below they lean."""


@dataclass(frozen=True, repr=False)
class Relation(Shown):
    """What two runs have to do with each other.

    Attributes:
        table: the columns of cross_task, and interference_on_a and interference_on_b: the share of the first-order
            descent of a run's own task vector that the other's would undo (negative: add); of two LoRA runs also
            cos_weight_space, between their changes `dW = s B A` of the adapted weights, which is all that adapters of
            different ranks or targets have, with the norms of the changes; one row for each group and each epoch that
            both have. It is a first-order estimate at the pretrained weights, NaN where the run has no
            gradient there or its own task vector does not go downhill.
        epoch: the last epoch at which both have task vectors, which the reading is about.
        reading: the relation in one sentence.
    """

    table: pd.DataFrame
    epoch: int
    reading: str


def relate_runs(
    left: Run, right: Run, groups: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Relation:
    """Compare two runs of one model.

    Args:
        left: run a.
        right: run b.
        groups: a regular expression for groups of parameters; by default those of run a.
        progress: called with the bytes done and the bytes in all.

    Returns:
        The table, and what it says.

    Raises:
        TvgradError: both are one run, they are of different models, count different things, or share no epoch.
    """
    pair = [left, right]
    if len(distinct_runs(pair)) == 1:
        raise TvgradError(f"{left.root} was given twice: give two runs")
    if left.unit != right.unit:
        raise TvgradError(
            f"{left.root} was recorded by {left.unit} and {right.root} by {right.unit}: "
            "trace both with the same --record-at"
        )
    shared = sorted(set(left.epochs) & set(right.epochs) - {0})
    if not shared:
        raise TvgradError(
            f"{left.root} and {right.root} keep no {left.unit} after 0 that both have: trace them to the same one"
        )
    names = run_names(pair)
    adapters = is_plain_lora(left) and is_plain_lora(right)
    if adapters and not same_factors(left, right):
        return _in_weight_space(left, right, names, shared, groups)
    made = run_tables(pair, groups, progress)
    table = made.tables["cross_task"].assign(
        interference_on_a=_interferences(made.tables["cross_task"], made.gram, *names),
        interference_on_b=_interferences(made.tables["cross_task"], made.gram, *reversed(names)),
    )
    if adapters:
        table = table.assign(cos_weight_space=weight_space_cosines(left, right, table, left.groups(groups)))
    last = table[(table["group"] == ALL) & (table["epoch"] == shared[-1])].iloc[0]
    reading = f"After {left.unit} {shared[-1]}, {reading_of(last, _size(left))}"
    if adapters:
        reading += IN_BOTH_SPACES.format(cosine=last["cos_weight_space"])
    return Relation(table, shared[-1], reading + ("." if _same_start(left, right) else f"; {ELSEWHERE}."))


def _in_weight_space(
    left: Run, right: Run, names: Sequence[str], epochs: Sequence[int], groups: str | None
) -> Relation:
    """Compare adapters of different ranks or targets, whose factors have no common space."""
    table, size = weight_space_table(left, right, epochs, groups)
    table.insert(0, "run_a", names[0])
    table.insert(1, "run_b", names[1])
    last = table[(table["group"] == ALL) & (table["epoch"] == epochs[-1])].iloc[0].copy()
    last["cos_task_vectors"] = last["cos_weight_space"]
    for unknown in ("sign_agreement", "interference_on_a", "interference_on_b"):
        last[unknown] = math.nan
    reading = f"After {left.unit} {epochs[-1]}, {reading_of(last, size)}; {IN_WEIGHT_SPACE}"
    return Relation(table, epochs[-1], reading + ("." if same_adapted_weights(left, right) else f"; {ELSEWHERE}."))


ELSEWHERE = "the two start from different weights, so that their task vectors cannot be added as they stand"


def _interferences(cross_task: pd.DataFrame, gram: GramResult, on: str, of: str) -> list[float]:
    """For each row: the share of the descent of `on` along its own task vector that adding that of `of` undoes."""
    rows = {key: row for row, key in enumerate(gram.keys)}
    found = []
    for epoch, group in zip(cross_task["epoch"], cross_task["group"], strict=True):
        gradient = rows.get(VectorKey(on, "gradient", 0))
        own, other = (rows.get(VectorKey(name, "task_vector", epoch)) for name in (on, of))
        if gradient is None or own is None or other is None:
            found.append(math.nan)
            continue
        products = gram.gram(group)[gradient]
        found.append(-float(products[other] / products[own]) if products[own] < 0 else math.nan)
    return found


def reading_of(row: pd.Series, size: int) -> str:
    """Say one row in words.

    Args:
        row: run_a, run_b, cos_task_vectors, sign_agreement, interference_on_a and interference_on_b.
        size: number of coordinates.

    Returns:
        A sentence without its full stop, which begins in lower case.
    """
    names = row["run_a"], row["run_b"]
    cosine, limit = row["cos_task_vectors"], CHANCE / math.sqrt(size)
    if math.isnan(cosine):
        return f"one of the task vectors of {names[0]} and {names[1]} is zero, so they have no relation"
    if abs(cosine) <= limit:
        kind = "are unrelated"
    elif abs(cosine) >= ALIKE:
        kind = "point the same way" if cosine > 0 else "point against each other"
    else:
        kind = "lean towards each other" if cosine > 0 else "lean away from each other"
    words = (
        f"the task vectors of {names[0]} and {names[1]} {kind} (cosine {cosine:.3f}; chance among {size:,} coordinates "
        f"stays within {limit:.2g} for {LEVEL} of pairs of independent random directions)"
    )
    if not math.isnan(row["sign_agreement"]):
        words += f" and agree in {row['sign_agreement']:.0%} of their signs"
    effects = [
        f"adding that of {other} {_effect(share)} the descent on {own}"
        for own, other, share in (
            (names[0], names[1], row["interference_on_a"]),
            (names[1], names[0], row["interference_on_b"]),
        )
        if not math.isnan(share)
    ]
    return words + ("; to first order, " + " and ".join(effects) if effects else "")


def _effect(share: float) -> str:
    if abs(share) < 0.005:
        return "leaves as it is"
    return f"undoes about {share:.0%} of" if share > 0 else f"adds about {-share:.0%} to"


def _size(run: Run) -> int:
    return sum(math.prod(parameter.shape) for parameter in run.parameters.values())


def _same_start(left: Run, right: Run) -> bool:
    """Whether both were tuned from the same weights (in whatever dtype they are stored)."""
    with left.file("weights", 0) as one, right.file("weights", 0) as other:
        return all(
            torch.equal(mine.double(), theirs.double())
            for name in left.parameters
            for mine, theirs in tensor_blocks((one, other), name)
        )
