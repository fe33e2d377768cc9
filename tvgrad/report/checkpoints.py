"""Tables of checkpoints that no run stands behind: how far and where fine-tuned weights moved from pretrained ones.

Task vectors are differences of files, formed block by block as for runs: a checkpoint of safetensors, sharded or not,
is never loaded, and a file of `torch.save` is mapped into memory. The task vector of a LoRA adapter is its change of
the weights, `s B A`, formed block by block from its factors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from tvgrad.checkpoints.family import Family, open_family
from tvgrad.report.columns import COLUMNS, FURTHER_COLUMNS
from tvgrad.report.shown_tables import ShownTables
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.rows import Vector
from tvgrad.vectors.parameters import ALL, group_names

CHECKPOINT_COLUMNS = {
    "norms": (*COLUMNS["norms"], "pretrained_norm", "relative_norm"),
    "directions": COLUMNS["directions"] + FURTHER_COLUMNS["directions"],
    "cross_task": COLUMNS["cross_task"],
}
"""Table -> its columns: those of runs, where what a checkpoint does not know (epoch, gradients) is empty, and more."""

PRETRAINED = "pretrained weights"


@dataclass(frozen=True, repr=False)
class CheckpointTables(ShownTables):
    """Tables of fine-tuned checkpoints of one pretrained model.

    Attributes:
        tables: norms, directions and cross_task, with the columns of `CHECKPOINT_COLUMNS`.
        names: the checkpoints' names in the tables.
        parameters: numbers that were compared, tied ones once.
        left_out: sentences on tensors that do not count, and why.
    """

    tables: dict[str, pd.DataFrame]
    names: tuple[str, ...]
    parameters: int
    left_out: tuple[str, ...]


def checkpoint_tables(
    pretrained: str | os.PathLike[str],
    tuned: Sequence[str | os.PathLike[str]],
    groups: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckpointTables:
    """Compare fine-tuned checkpoints with the pretrained one and with each other.

    Args:
        pretrained: the checkpoint that all were tuned from: safetensors, an index of shards, a file of `torch.save`, or
            a folder with one of them.
        tuned: the fine-tuned ones; folders of LoRA adapters too.
        groups: a regular expression for groups of parameters; by default the block that owns each.
        progress: called with the bytes done and the bytes in all.

    Returns:
        The tables, and what was left out of them.

    Raises:
        TvgradError: a checkpoint cannot be read, or has no tensor in common with the pretrained one.
    """
    with ExitStack() as stack:
        family = open_family(pretrained, tuned, stack)
        gram = family_gram(family, groups, progress)
    names = family.names
    rows = {
        "norms": _norms(gram, names),
        "directions": _directions(gram, names),
        "cross_task": cross_task_rows(gram, names),
    }
    tables = {name: pd.DataFrame(found, columns=list(CHECKPOINT_COLUMNS[name])) for name, found in rows.items()}
    return CheckpointTables(tables, names, family.parameters, family.left_out)


def family_gram(
    family: Family, groups: str | None = None, progress: Callable[[int, int], None] | None = None
) -> GramResult:
    """Compute the inner products of the pretrained weights and of all task vectors, in weight space.

    Args:
        family: the models.
        groups: a regular expression for groups of parameters; by default the block that owns each.
        progress: called with the bytes done and the bytes in all.

    Returns:
        The inner products, labelled `PRETRAINED` and by the members' names, and each pair's agreement in sign.
    """
    base = family.base.source
    vectors = [Vector(PRETRAINED, base)]
    vectors += [Vector(one.name, one.source, None if one.is_change else base) for one in family.members]
    return gram_of(
        vectors,
        group_names(family.shared, groups),
        signs=list(combinations(range(1, len(vectors)), 2)),
        names=family.shared,
        progress=progress,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _groups(gram: GramResult) -> list[str]:
    return [ALL, *gram.groups]


def _norms(gram: GramResult, names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {
            "run": name,
            "group": group,
            "task_vector_norm": gram.norm(name, group),
            "pretrained_norm": gram.norm(PRETRAINED, group),
            "relative_norm": _ratio(gram.norm(name, group), gram.norm(PRETRAINED, group)),
        }
        for name in names
        for group in _groups(gram)
    ]


def _directions(gram: GramResult, names: Sequence[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    tasks = [gram.index(name) for name in names]
    for name in names:
        row = gram.index(name)
        for group in _groups(gram):
            inner = gram.gram(group)
            # The mean of the task vectors (its length does not matter to a cosine), from their inner products alone.
            of_sum = math.sqrt(max(0.0, float(inner[tasks][:, tasks].sum())))
            with_sum = float(inner[row, tasks].sum())
            rows.append({
                "run": name,
                "group": group,
                "cos_task_vector_pretrained": gram.cosine(name, PRETRAINED, group),
                "cos_task_vector_mean": _ratio(with_sum, gram.norm(name, group) * of_sum)
                if len(names) > 1
                else math.nan,
            })
    return rows


def cross_task_rows(gram: GramResult, names: Sequence[str]) -> list[dict[str, object]]:
    """Compare every two task vectors.

    Args:
        gram: inner products and agreements in sign, as `family_gram` computes them.
        names: the members' names.

    Returns:
        Rows with run_a, run_b, group, cos_task_vectors and sign_agreement.
    """
    return [
        {
            "run_a": left,
            "run_b": right,
            "group": group,
            "cos_task_vectors": gram.cosine(left, right, group),
            "sign_agreement": gram.sign_agreement[gram.index(left), gram.index(right)][group],
        }
        for left, right in combinations(names, 2)
        for group in _groups(gram)
    ]
