"""Family: fine-tuned checkpoints and adapters of one pretrained model, and the parameters that all have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tvgrad.checkpoints.adapter import open_adapter
from tvgrad.checkpoints.find import checkpoint_file, is_adapter, refuse_quantised
from tvgrad.checkpoints.opening import Checkpoint, aligned_names, open_checkpoint
from tvgrad.checkpoints.sources import Renamed
from tvgrad.checkpoints.weight_change import WeightChange
from tvgrad.errors import TvgradError
from tvgrad.files.regular import real_path
from tvgrad.files.tensors import TensorSource

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
"""Ends of the names of buffers, which are no parameters though they are numbers."""
USUAL_STEMS = {"model", "pytorch_model", "checkpoint", "weights"}


@dataclass(frozen=True)
class Member:
    """One fine-tuned model of a family.

    Attributes:
        name: what it is called in tables.
        source: its tensors under the base's names; of an adapter, the change of each.
        is_change: whether it is an adapter.
        tied: name -> the first name of the same memory; empty where the format does not tell.
    """

    name: str
    source: TensorSource
    is_change: bool
    tied: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A pretrained model and models that were tuned from it.

    Attributes:
        base: the pretrained model.
        members: the others, in the order given.
        shared: names of the parameters that all have in one shape, tied ones once, blocks in their order.
        tied: second name of a tied parameter -> the name among `shared`.
        left_out: sentences on the tensors that are not among them.
    """

    base: Checkpoint
    members: tuple[Member, ...]
    shared: tuple[str, ...]
    tied: Mapping[str, str]
    left_out: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(member.name for member in self.members)

    @property
    def parameters(self) -> int:
        """Numbers that all have in common, tied ones once."""
        return sum(self.base.source.places[name].numel for name in self.shared)


def open_family(
    pretrained: str | os.PathLike[str],
    tuned: Sequence[str | os.PathLike[str]],
    stack: ExitStack,
    *,
    dtype: torch.dtype | None = None,
) -> Family:
    """Open checkpoints, and adapters, of one pretrained model.

    Args:
        pretrained: the checkpoint that all were tuned from.
        tuned: the fine-tuned ones; folders of adapters too.
        stack: closes them.
        dtype: in which adapters' changes are read, see `WeightChange`.

    Returns:
        The family.

    Raises:
        TvgradError: one cannot be read, or has no parameter in common with the pretrained one.
    """
    if not tuned:
        raise TvgradError("there is no fine-tuned checkpoint: give at least one after the pretrained one")
    for path in (pretrained, *tuned):
        refuse_quantised(path)
    base_file = checkpoint_file(pretrained)
    paths = [Path(path) if is_adapter(path) else checkpoint_file(path) for path in tuned]
    names = member_names(paths)
    base = open_checkpoint(base_file, stack)
    members = [_member(name, path, base, stack, dtype=dtype) for name, path in zip(names, paths, strict=True)]
    shared, tied, left_out = _shared(base, members)
    return Family(base, tuple(members), tuple(shared), tied, tuple(left_out))


def _member(name: str, path: Path, base: Checkpoint, stack: ExitStack, *, dtype: torch.dtype | None) -> Member:
    if path.is_dir():
        return Member(name, WeightChange(open_adapter(path, stack), base, dtype), True, {})
    found = open_checkpoint(path, stack)
    names = aligned_names(found.source.places, base.source.places)
    if all(new == old for new, old in names.items()):
        return Member(name, found.source, False, found.tied)
    new_of = {old: new for new, old in names.items()}
    tied = {new_of[one]: new_of[first] for one, first in found.tied.items()}
    return Member(name, Renamed(found.source, names), False, tied)


def member_names(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints: by their file, or its folder where the file has one of the usual names.

    Args:
        paths: files, and folders of adapters.

    Returns:
        Different names.

    Raises:
        TvgradError: one path is given twice.
    """

    def stem(path: Path) -> str:
        return path.name if path.is_dir() else path.name.removesuffix(".index.json").rsplit(".", 1)[0]

    def parts(path: Path, count: int) -> str:
        whole = real_path(path).with_name(stem(path)).parts
        usual = stem(path) in USUAL_STEMS and len(whole) > 2 and not path.is_dir()
        return "/".join((whole[:-1] if usual else whole)[-count:])

    if len(set(map(real_path, paths))) < len(paths):
        raise TvgradError("a fine-tuned checkpoint is given twice: give each once")
    for count in (1, 2, 3):
        names = [parts(path, count) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _shared(base: Checkpoint, members: Sequence[Member]) -> tuple[list[str], dict[str, str], list[str]]:
    """The parameters that all have, in the order of blocks; second names of tied ones; sentences on the others."""
    known = base.source.places
    order = sorted(known, key=_natural)
    floating = [name for name in order if known[name].dtype.is_floating_point and not name.endswith(STATISTICS)]
    reasons: dict[str, list[str]] = {
        "is not in every checkpoint": [],
        "has another shape in one of them": [],
        "is tied to another and counts once": [],
    }
    missing, shape, twice = reasons.values()
    shared: list[str] = []
    second: dict[str, str] = {}
    # A safetensors file does not tell which tensors are tied; an adapter leaves them as the base has them.
    knowing = [tied for tied in (base.tied, *(one.tied for one in members)) if tied]
    counted: list[dict[str, str]] = [{} for _ in knowing]
    for name in floating:
        places = [known[name], *(one.source.places.get(name) for one in members)]
        if any(place is None or not place.dtype.is_floating_point for place in places):
            missing.append(name)
        elif len({tuple(place.shape) for place in places if place is not None}) > 1:
            shape.append(name)
        else:
            memories = [tied.get(name, name) for tied in knowing]
            if knowing and all(memory in seen for memory, seen in zip(memories, counted, strict=True)):
                twice.append(name)
                second[name] = counted[0][memories[0]]
                continue
            for memory, seen in zip(memories, counted, strict=True):
                seen[memory] = name
            shared.append(name)
    extra = {name for one in members for name in one.source.places if name not in known}
    missing += sorted(name for name in extra if not name.endswith(STATISTICS))
    if not shared:
        raise _stranger(base, members)
    sentences = [
        f"{len(names)} left out: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} {reason}"
        for reason, names in reasons.items()
        if names
    ]
    return shared, second, sentences


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key in which block 10 follows block 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _stranger(base: Checkpoint, members: Sequence[Member]) -> TvgradError:
    """Say which model is another one than the pretrained one, and how that shows."""
    mine = base.source.places
    for member in members:
        theirs = member.source.places
        same = [name for name in mine if name in theirs]
        if any(mine[name].shape == theirs[name].shape for name in same):
            continue
        if same:
            here, there = (tuple(places[same[0]].shape) for places in (mine, theirs))
            return TvgradError(
                f"{base.path} and {member.source.path} have no parameter in common that has one shape ({same[0]} is "
                f"{here} in the one and {there} in the other): give checkpoints of one model"
            )
        one, other = (next(iter(sorted(places)), "nothing") for places in (mine, theirs))
        return TvgradError(
            f"{base.path} and {member.source.path} have no parameter in common (the one has {one}, the other {other}): "
            "give checkpoints of one model"
        )
    return TvgradError(f"no parameter of {base.path} is in all other models: give checkpoints of one model")
