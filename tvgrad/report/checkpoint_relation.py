"""How two fine-tuned checkpoints or adapters relate, in weight space."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tvgrad.checkpoints.adapter import Adapter, open_adapter
from tvgrad.checkpoints.family import Family, member_names, open_family
from tvgrad.checkpoints.low_rank import inner_products
from tvgrad.errors import TvgradError
from tvgrad.report.checkpoints import cross_task_rows, family_gram
from tvgrad.report.relation import reading_of
from tvgrad.results import Shown
from tvgrad.vectors.parameters import ALL, cosine_from, group_names

IN_WEIGHTS = (
    "adapters are compared in weight space (dW = s B A); from B = 0, a step of gradient descent in the factors makes "
    "dW = -eta s^2 G A'A there, the gradient projected on A's rows and scaled, and not -eta G"
)
"""Which statement of a task vector and a gradient holds for adapters."""


@dataclass(frozen=True, repr=False)
class CheckpointRelation(Shown):
    """What two fine-tuned models of one pretrained model have to do with each other.

    Attributes:
        table: run_a, run_b, group, cos_task_vectors, sign_agreement, task_vector_norm_a and task_vector_norm_b; one row
            a group, in weight space.
        reading: the relation in one sentence.
        left_out: sentences on tensors that do not count.
    """

    table: pd.DataFrame
    reading: str
    left_out: tuple[str, ...]


def relate_checkpoints(
    pretrained: str | os.PathLike[str],
    pair: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    groups: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckpointRelation:
    """Compare two checkpoints, or adapters, of one pretrained model.

    Args:
        pretrained: the checkpoint that both were tuned from.
        pair: the two.
        groups: a regular expression for groups of parameters; by default the block that owns each.
        progress: called with the bytes done and the bytes in all.

    Returns:
        The table, and what it says.

    Raises:
        TvgradError: one cannot be read, or they do not belong together.
    """  # noqa: DOC502 - raised by open_family
    with ExitStack() as stack:
        family = open_family(pretrained, pair, stack)
        gram = family_gram(family, groups, progress)
        table = pd.DataFrame(cross_task_rows(gram, family.names))
        for side, name in zip("ab", family.names, strict=True):
            table[f"task_vector_norm_{side}"] = [gram.norm(name, group) for group in table["group"]]
        return CheckpointRelation(table, _reading(table, family.parameters, _any_adapter(family)), family.left_out)


def relate_adapters(
    left: str | os.PathLike[str], right: str | os.PathLike[str], groups: str | None = None
) -> CheckpointRelation:
    """Compare two LoRA adapters of any ranks and targets without their base model.

    Inner products of `dW = s B A` come from small matrices, `tr((L_1' L_2)' (R_1 R_2'))`, in float64; what was trained
    whole beside the factors is left out, because its start is not known.

    Args:
        left: folder of an adapter.
        right: folder of another.
        groups: a regular expression for groups of parameters; by default the block that owns each.

    Returns:
        The table, without agreement in sign, and what it says.

    Raises:
        TvgradError: one cannot be read, or they change one weight in different shapes.
    """
    names = member_names([Path(left), Path(right)])
    with ExitStack() as stack:
        one, other = open_adapter(left, stack), open_adapter(right, stack)
        whole = sorted({*one.whole.places, *other.whole.places})
    for name in one.changes.keys() & other.changes.keys():
        shapes = one.changes[name].shape, other.changes[name].shape
        if shapes[0] != shapes[1]:
            raise TvgradError(
                f"{left} changes {name} in shape {shapes[0]} and {right} in shape {shapes[1]}: give two of one model"
            )
    if not one.changes.keys() & other.changes.keys():
        raise TvgradError(
            f"{left} and {right} change no weight in common ({next(iter(one.changes), 'nothing')}; "
            f"{next(iter(other.changes), 'nothing')}): their task vectors are orthogonal, or of different models"
        )
    size = sum(math.prod(change.shape) for change in {**one.changes, **other.changes}.values())
    table = pd.DataFrame(_rows(one, other, names, groups))
    sentence = f"{len(whole)} left out: {', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''} was trained whole"
    without = f"{sentence}, and needs --pretrained BASE" if whole else None
    return CheckpointRelation(table, _reading(table, size, True), (without,) if without else ())


def _rows(one: Adapter, other: Adapter, names: list[str], groups: str | None) -> list[dict[str, object]]:
    every = list(dict.fromkeys([*one.changes, *other.changes]))
    of_group: dict[str, list[str]] = {ALL: every}
    for name, group in group_names(every, groups).items():
        of_group.setdefault(group, []).append(name)
    rows: list[dict[str, object]] = []
    for group, inside in of_group.items():
        product = inner_products(one.changes, other.changes, inside)
        lengths = [math.sqrt(inner_products(side.changes, side.changes, inside)) for side in (one, other)]
        length = lengths[0] * lengths[1]
        rows.append({
            "run_a": names[0],
            "run_b": names[1],
            "group": group,
            "cos_task_vectors": cosine_from(product, length),
            "sign_agreement": math.nan,
            "task_vector_norm_a": lengths[0],
            "task_vector_norm_b": lengths[1],
        })
    return rows


def _any_adapter(family: Family) -> bool:
    return any(member.is_change for member in family.members)


def _reading(table: pd.DataFrame, size: int, adapters: bool) -> str:
    whole = table[table["group"] == ALL].iloc[0]
    row = pd.concat([whole, pd.Series({"interference_on_a": math.nan, "interference_on_b": math.nan})])
    words = reading_of(row, size)
    return f"{words[0].upper()}{words[1:]}{f'; {IN_WEIGHTS}' if adapters else ''}."
