"""Runs of LoRA in weight space, beside the space of the factors in which they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from tvgrad.checkpoints.low_rank import inner_products
from tvgrad.errors import TvgradError
from tvgrad.store.lora import factor_pairs, is_lora, lora_config, weight_changes
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import ALL, cosine_from

IN_FACTORS = (
    "all is said of the factors A and B, for which tau = -eta g is exact, but weight_change_norm, of weight space "
    "(dW = s B A): there a first step of gradient descent from B = 0 is -eta s^2 G A'A and not -eta G"
)
"""Which statement holds where, for a report."""
IN_BOTH_SPACES = (
    "; all this is said of the factors A and B, for which tau = -eta g is exact, and in weight space (dW = s B A) the "
    "cosine of the two is {cosine:.3f}"
)


def weight_space_cosines(left: Run, right: Run, table: pd.DataFrame, groups: Mapping[str, str]) -> list[float]:
    """Compare the changes of the adapted weights, from small matrices.

    Args:
        left: run a.
        right: run b, of the same factors.
        table: has the columns epoch and group.
        groups: name of a factor -> its group.

    Returns:
        For each row the cosine, NaN where an epoch was not kept by both, a change is zero or a group has no factors.
    """
    of_group = _weights_of_groups(left, groups)
    found = []
    for epoch, rows in table.groupby("epoch", sort=False):
        both = [run for run in (left, right) if epoch in run.epochs and epoch != 0]
        changes = [weight_changes(run, int(str(epoch))) for run in both]
        for row, group in rows["group"].items():
            names = of_group.get(group, []) if len(changes) == 2 else []
            products = [
                inner_products(one, other, names)
                for one, other in ((changes[0], changes[1]), (changes[0], changes[0]), (changes[1], changes[1]))
                if names
            ]
            length = math.sqrt(products[1] * products[2]) if products else 0.0
            found.append((row, cosine_from(products[0] if products else 0.0, length)))
    return [cosine for _, cosine in sorted(found)]


def weight_change_norms(runs: Mapping[str, Run], table: pd.DataFrame, groups: Mapping[str, str]) -> list[float]:
    """Measure how far runs of LoRA moved the adapted weights.

    Args:
        runs: name -> run.
        table: has the columns run, epoch and group.
        groups: name of a factor -> its group.

    Returns:
        For each row the norm of `s (B_e A_e - B_0 A_0)`, NaN where the epoch was not kept, the group has no factors or
        the run trained no adapter (or one that is no plain LoRA).
    """
    found: dict[object, float] = {}
    for (name, epoch), rows in table.groupby(["run", "epoch"], sort=False):
        run = runs[str(name)]
        if epoch not in run.epochs or not is_plain_lora(run):
            continue
        of_group, changes = _weights_of_groups(run, groups), weight_changes(run, int(str(epoch)))
        for row, group in rows["group"].items():
            if group in of_group:
                found[row] = math.sqrt(max(0.0, inner_products(changes, changes, of_group[group])))
    return [found.get(row, math.nan) for row in table.index]


def is_plain_lora(run: Run) -> bool:
    """Say whether the changes of weights of a run are known.

    Args:
        run: any run.

    Returns:
        Whether it trained an adapter that is plain LoRA and whose scale was recorded.
    """
    try:
        return is_lora(run) and bool(lora_config(run)) and bool(factor_pairs(run))
    except TvgradError:
        return False


def _weights_of_groups(run: Run, groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Group -> the adapted weights whose factors are in it."""
    found: dict[str, list[str]] = {}
    for pair in factor_pairs(run)[0]:
        for group in (ALL, groups[pair.first]):
            found.setdefault(group, []).append(f"{pair.module}.weight")
    return found
