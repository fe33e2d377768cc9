"""Runs of LoRA in weight space, beside the space of the factors in which they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from tvgrad.checkpoints.low_rank import inner_products
from tvgrad.errors import TvgradError
from tvgrad.merging.stack import same_tensor
from tvgrad.store.lora import adapted_model, factor_pairs, is_lora, lora_config, weight_changes
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import ALL, cosine_from, group_names

IN_FACTORS = (
    "all is said of the factors A and B, for which tau = -eta g is exact, but weight_change_norm, of weight space "
    "(dW = s B A): there a first step of gradient descent from B = 0 is -eta s^2 G A'A and not -eta G"
)
"""Which statement holds where, for a report."""
IN_BOTH_SPACES = (
    "; all this is said of the factors A and B, for which tau = -eta g is exact, and in weight space (dW = s B A) the "
    "cosine of the two is {cosine:.3f}"
)

IN_WEIGHT_SPACE = (
    "the adapters differ in rank or targets, so that they are compared in weight space alone (dW = s B A, zero for a "
    "weight that one of them leaves alone), and nothing is said of the factors"
)


def same_factors(left: Run, right: Run) -> bool:
    """Say whether two runs of LoRA trained the same factors, so that these have a common space.

    Args:
        left: run a.
        right: run b.

    Returns:
        Whether names and shapes are the same.
    """
    one, other = ({name: entry.shape for name, entry in run.parameters.items()} for run in (left, right))
    return one == other


def same_adapted_weights(left: Run, right: Run) -> bool:
    """Say whether two runs of LoRA started from the same weights, as far as both record them.

    Args:
        left: run a.
        right: run b.

    Returns:
        False where a weight that one of them adapts differs.
    """
    one, other = (adapted_model(run).source for run in (left, right))
    changed = {f"{pair.module}.weight" for run in (left, right) for pair in factor_pairs(run)[0]}
    return all(same_tensor(one, other, name) for name in changed if name in one.places and name in other.places)


def weight_space_table(left: Run, right: Run, epochs: Sequence[int], groups: str | None) -> tuple[pd.DataFrame, int]:
    """Compare runs of LoRA of any ranks and targets.

    Args:
        left: run a.
        right: run b.
        epochs: that both have.
        groups: a regular expression for groups of parameters; by default the block that owns each.

    Returns:
        epoch, group, cos_weight_space, weight_change_norm_a and weight_change_norm_b, one row for each epoch and group;
        and the number of coordinates that one of them changes.

    Raises:
        TvgradError: they change a weight in different shapes, or none in common.
    """
    rows: list[dict[str, object]] = []
    for epoch in epochs:
        one, other = weight_changes(left, epoch), weight_changes(right, epoch)
        for name in one.keys() & other.keys():
            if one[name].shape != other[name].shape:
                raise TvgradError(
                    f"{left.root} changes {name} in shape {one[name].shape} and {right.root} in shape "
                    f"{other[name].shape}: give two of one model"
                )
        if not one.keys() & other.keys():
            raise TvgradError(
                f"{left.root} and {right.root} change no weight in common ({next(iter(one), 'nothing')}; "
                f"{next(iter(other), 'nothing')}): their task vectors are orthogonal, or of different models"
            )
        every = {**one, **other}
        of_group: dict[str, list[str]] = {ALL: list(every)}
        for name, group in group_names(every, groups).items():
            of_group.setdefault(group, []).append(name)
        for group, names in of_group.items():
            lengths = [math.sqrt(max(0.0, inner_products(side, side, names))) for side in (one, other)]
            rows.append({
                "epoch": epoch,
                "group": group,
                "cos_weight_space": cosine_from(inner_products(one, other, names), lengths[0] * lengths[1]),
                "weight_change_norm_a": lengths[0],
                "weight_change_norm_b": lengths[1],
            })
    return pd.DataFrame(rows), sum(math.prod(change.shape) for change in every.values())


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
