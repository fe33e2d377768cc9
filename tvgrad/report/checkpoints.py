"""Tables of checkpoints that no run stands behind: how far and where fine-tuned weights moved from pretrained ones.

Task vectors are differences of files, formed block by block as for runs: a checkpoint of safetensors, sharded or not,
is never loaded. A file of `torch.save` is written as safetensors to a temporary folder first.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.integrations.checkpoints import PREFIXES, checkpoint_file, read_checkpoint
from tvgrad.report.columns import COLUMNS, FURTHER_COLUMNS
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.rows import Vector
from tvgrad.vectors.parameters import ALL, group_names

CHECKPOINT_COLUMNS = {
    "norms": COLUMNS["norms"] + FURTHER_COLUMNS["norms"],
    "directions": COLUMNS["directions"] + FURTHER_COLUMNS["directions"],
    "cross_task": COLUMNS["cross_task"],
}
"""Table -> its columns: those of runs, where what a checkpoint does not know (epoch, gradients) is empty, and more."""

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
"""Ends of the names of buffers, which are no parameters though they are numbers."""
USUAL_STEMS = {"model", "pytorch_model", "checkpoint", "weights"}
PRETRAINED = "pretrained weights"


@dataclass(frozen=True)
class CheckpointTables:
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


@dataclass
class _Checkpoint:
    """A checkpoint as a safetensors file, and which of its names share memory."""

    path: Path
    file: TensorFile
    tied: dict[str, str] = field(default_factory=dict)  # name -> the first name of the same memory


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
        tuned: the fine-tuned ones.
        groups: a regular expression for groups of parameters; by default the block that owns each.
        progress: called with the bytes done and the bytes in all.

    Returns:
        The tables, and what was left out of them.

    Raises:
        TvgradError: a checkpoint cannot be read, or has no tensor in common with the pretrained one.
    """
    if not tuned:
        raise TvgradError("there is no fine-tuned checkpoint: give at least one after the pretrained one")
    paths = [checkpoint_file(path) for path in (pretrained, *tuned)]
    names = _names(paths[1:])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvgrad-")))
        opened = [_open(path, folder / str(number), stack) for number, path in enumerate(paths)]
        shared, left_out = _shared_names(opened)
        base = opened[0].file
        vectors = [Vector(PRETRAINED, base)]
        vectors += [Vector(name, one.file, base) for name, one in zip(names, opened[1:], strict=True)]
        gram = gram_of(
            vectors,
            group_names(shared, groups),
            signs=list(combinations(range(1, len(vectors)), 2)),
            names=shared,
            progress=progress,
        )
        parameters = sum(base.places[name].numel for name in shared)
    rows = {
        "norms": _norms(gram, names),
        "directions": _directions(gram, names),
        "cross_task": _cross_task(gram, names),
    }
    tables = {name: pd.DataFrame(found, columns=list(CHECKPOINT_COLUMNS[name])) for name, found in rows.items()}
    return CheckpointTables(tables, tuple(names), parameters, tuple(left_out))


def _names(paths: Sequence[Path]) -> list[str]:
    """A name a checkpoint: the file's, or its folder's where the file has one of the usual names."""

    def stem(path: Path) -> str:
        return path.name.removesuffix(".index.json").rsplit(".", 1)[0]

    def parts(path: Path, count: int) -> str:
        whole = path.resolve().with_name(stem(path)).parts
        return "/".join((whole[:-1] if stem(path) in USUAL_STEMS and len(whole) > 2 else whole)[-count:])

    for count in (1, 2, 3):
        names = [parts(path, count) for path in paths]
        if len(set(names)) == len(names):
            return names
    if len({path.resolve() for path in paths}) < len(paths):
        raise TvgradError("a fine-tuned checkpoint is given twice: give each once")
    return [str(path) for path in paths]


def _open(path: Path, folder: Path, stack: ExitStack) -> _Checkpoint:
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        file = stack.enter_context(TensorFile(path))
        if not any(all(name.startswith(prefix) for name in file.names) for prefix in PREFIXES):
            return _Checkpoint(path, file)
    content = read_checkpoint(path)
    memory: dict[tuple[int, tuple[int, ...]], str] = {}
    tied = {
        name: memory.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        for name, tensor in content.items()
        if tensor.numel()
    }
    folder.mkdir()
    written = write_tensors(content, folder / "model.safetensors")
    return _Checkpoint(path, stack.enter_context(TensorFile(written)), tied)


def _shared_names(opened: Sequence[_Checkpoint]) -> tuple[list[str], list[str]]:
    """The parameters that all checkpoints have, in the order of the pretrained one, and sentences on the others."""
    base = opened[0].file
    order = sorted(base.places, key=_natural)
    floating = [name for name in order if base.places[name].dtype.is_floating_point and not name.endswith(STATISTICS)]
    reasons: dict[str, list[str]] = {
        "is not in every checkpoint": [],
        "has another shape in one of them": [],
        "is tied to another and counts once": [],
    }
    missing, shape, twice = reasons.values()
    shared: list[str] = []
    knowing = [one for one in opened if one.tied]  # a safetensors file does not tell which tensors are tied
    counted: list[set[str]] = [set() for _ in knowing]
    for name in floating:
        places = [one.file.places.get(name) for one in opened]
        if any(place is None or not place.dtype.is_floating_point for place in places):
            missing.append(name)
        elif len({place.shape for place in places if place is not None}) > 1:
            shape.append(name)
        else:
            memories = [one.tied.get(name, name) for one in knowing]
            if knowing and all(memory in seen for memory, seen in zip(memories, counted, strict=True)):
                twice.append(name)
                continue
            for memory, seen in zip(memories, counted, strict=True):
                seen.add(memory)
            shared.append(name)
    extra = {name for one in opened[1:] for name in one.file.places if name not in base.places}
    missing += sorted(name for name in extra if not name.endswith(STATISTICS))
    if not shared:
        one, other = (next(iter(found.file.names), "nothing") for found in opened[:2])
        raise TvgradError(
            f"{opened[0].path} and {opened[1].path} have no parameter in common (the one has {one}, the other "
            f"{other}): give checkpoints of one model"
        )
    sentences = [
        f"{len(names)} left out: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} {reason}"
        for reason, names in reasons.items()
        if names
    ]
    return shared, sentences


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key in which block 10 follows block 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


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


def _cross_task(gram: GramResult, names: Sequence[str]) -> list[dict[str, object]]:
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
