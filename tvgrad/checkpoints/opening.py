"""Checkpoint: a model on disk as a source of tensors, under the names that its own module gives them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tvgrad.checkpoints.find import SAFETENSORS, checkpoint_file
from tvgrad.checkpoints.sources import Renamed, TensorTable, read_whole
from tvgrad.checkpoints.torch_files import load_tensors
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile, TensorSource
from tvgrad.vectors.parameters import Weights

PREFIXES = ("_orig_mod.", "module.", "base_model.model.")
"""What wrappers (compilation, data parallelism, peft) put before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        path: its file; the index where it is sharded.
        source: its tensors, under plain names.
        tied: name -> the first name of the same memory; empty where the format does not tell.
    """

    path: Path
    source: TensorSource
    tied: Mapping[str, str] = field(default_factory=dict)


def open_checkpoint(path: str | os.PathLike[str], stack: ExitStack) -> Checkpoint:
    """Open a checkpoint; nothing but headers is read from safetensors.

    Args:
        path: safetensors (or the index of its shards), a file of `torch.save` that holds tensors only (or the index of
            several), or a folder with one of them under a usual name.
        stack: closes it.

    Returns:
        The checkpoint.

    Raises:
        TvgradError: it is none of these, or holds the factors of an adapter without its configuration.
    """
    file = checkpoint_file(path)
    tied: Mapping[str, str] = {}
    source: TensorSource
    if file.name.endswith(SAFETENSORS):
        source = stack.enter_context(TensorFile(file))
    else:
        table = TensorTable(file, load_tensors(file))
        source, tied = table, table.tied
    lora = next((name for name in source.places if ".lora_A." in name or ".lora_embedding_A" in name), None)
    if lora is not None:
        raise TvgradError(
            f"{file} holds factors of an adapter ({lora}) and nothing says their scale: save the adapter by "
            "save_pretrained and give its folder, or merge it first (merge_and_unload)"
        )
    names = plain_names(source.places)
    if all(new == old for new, old in names.items()):
        return Checkpoint(file, source, tied)
    new_of = {old: new for new, old in names.items()}
    return Checkpoint(file, Renamed(source, names), {new_of[name]: new_of[first] for name, first in tied.items()})


def read_checkpoint(path: str | os.PathLike[str]) -> Weights:
    """Read a `state_dict` from a file or a folder. Code in a file is never run.

    Args:
        path: safetensors (or the index of its shards), a file of `torch.save` that holds tensors only, or a folder with
            one of them under a usual name.

    Returns:
        Name -> CPU tensor.

    Raises:
        TvgradError: it is none of these.
    """  # noqa: DOC502 - raised by open_checkpoint
    with ExitStack() as stack:
        source = open_checkpoint(path, stack).source
        return {name: read_whole(source, name) for name in source.places}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Take away what wrappers put before every name.

    Args:
        names: the names as stored.

    Returns:
        Plain name -> stored name.
    """
    plain = {name: name for name in names}
    while found := next((one for one in PREFIXES if plain and all(name.startswith(one) for name in plain)), None):
        plain = {name.removeprefix(found): stored for name, stored in plain.items()}
    return plain


def aligned_names(names: Collection[str], base: Collection[str]) -> dict[str, str]:
    """Match a model's names with its base model's, where one of the two is a part of a larger module (`bert.`).

    Args:
        names: the model's names.
        base: the base model's.

    Returns:
        The base's name -> the model's name, for every name; as they are wherever one of them fits.
    """
    known = set(base)
    best = {name: name for name in names}
    if not known.isdisjoint(names):
        return best
    most = 0
    longer = Counter(name.partition(".")[0] for name in names if "." in name)
    shorter = Counter(name.partition(".")[0] for name in base if "." in name)
    for part in longer:
        renamed = {name.removeprefix(f"{part}."): name for name in names}
        if len(renamed) == len(names) and len(known & renamed.keys()) > most:
            best, most = renamed, len(known & renamed.keys())
    for part in shorter:
        renamed = {f"{part}.{name}": name for name in names}
        if len(known & renamed.keys()) > most:
            best, most = renamed, len(known & renamed.keys())
    return best
