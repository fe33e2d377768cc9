"""Adapter: the changes `dW = s B A` that LoRA factors stand for, and what was trained whole beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tvgrad.checkpoints.adapter_config import read_adapter_config, scale_of
from tvgrad.checkpoints.find import adapter_file
from tvgrad.checkpoints.low_rank import LowRank
from tvgrad.checkpoints.opening import plain_names
from tvgrad.checkpoints.sources import Renamed, TensorTable, read_whole
from tvgrad.checkpoints.torch_files import load_tensors
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile, TensorSource

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(\.[^.]+)??(\.weight)?$")
_WRAPPERS = re.compile(r"\.base_layer(?=\.|$)|\.modules_to_save\.[^.]+(?=\.|$)|\.original_module(?=\.|$)")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk.

    Attributes:
        path: its folder.
        config: its configuration.
        changes: weight of the base model -> its change.
        whole: tensors that were trained whole (`modules_to_save`, biases), under the base model's names.
    """

    path: Path
    config: Mapping[str, Any]
    changes: Mapping[str, LowRank]
    whole: TensorSource


@dataclass(frozen=True)
class FactorPair:
    """The names of both factors of one weight.

    Attributes:
        module: the adapted module, under its plain name.
        first: name of A.
        second: name of B.
        embedding: whether they adapt an embedding, whose weight they change by `s (B A)'`.
    """

    module: str
    first: str
    second: str
    embedding: bool


def open_adapter(folder: str | os.PathLike[str], stack: ExitStack) -> Adapter:
    """Read an adapter.

    Args:
        folder: what `save_pretrained` of a model of peft wrote.
        stack: closes its file.

    Returns:
        The adapter; its factors are in memory.

    Raises:
        TvgradError: it cannot be read, is no plain LoRA, or lacks a factor.
    """
    config, file = read_adapter_config(folder), adapter_file(folder)
    source: TensorSource
    if file.suffix == ".safetensors":
        source = stack.enter_context(TensorFile(file))
    else:
        source = TensorTable(file, load_tensors(file))
    pairs, whole = split_names(source.places, str(folder))
    changes = {
        f"{pair.module}.weight": low_rank(
            read_whole(source, pair.first), read_whole(source, pair.second), pair, config=config
        )
        for pair in pairs
    }
    if not changes and not whole:
        raise TvgradError(f"{file} holds no tensor: save the adapter again by save_pretrained")
    return Adapter(Path(folder), config, changes, Renamed(source, whole))


def split_names(names: Iterable[str], label: str) -> tuple[list[FactorPair], dict[str, str]]:
    """Tell the factors among an adapter's tensors from those that were trained whole.

    Args:
        names: the tensors' names, as peft gives them.
        label: what to call the adapter in a message.

    Returns:
        The factors in pairs, and plain name -> name of every other tensor.

    Raises:
        TvgradError: a factor lacks the other, or a tensor belongs to a kind of adapter that is not read.
    """
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    whole = {}
    for plain, name in plain_names(names).items():
        match = _FACTOR.match(plain)
        if match is not None:
            key = match["module"], bool(match["embedding"])
            if factors.setdefault(key, {}).setdefault(match["letter"], name) != name:
                raise TvgradError(f"{label} holds several adapters of {match['module']}: save one alone")
        elif ".lora_" in plain:
            raise TvgradError(
                f"{label} holds {name}, which is no factor of plain LoRA: merge it by peft's merge_and_unload and give "
                "the merged checkpoint"
            )
        else:
            whole[without_wrappers(plain)] = name
    pairs = []
    for (module, embedding), found in factors.items():
        if len(found) < 2:
            raise TvgradError(f"{label} has one factor of {module} without the other: save the adapter again")
        pairs.append(FactorPair(without_wrappers(module), found["A"], found["B"], embedding))
    return pairs, whole


def without_wrappers(name: str) -> str:
    """Take away what peft puts into the names of the modules that it wraps.

    Args:
        name: a tensor's or a module's name.

    Returns:
        The name that it has in the base model.
    """
    return _WRAPPERS.sub("", name)


def low_rank(first: torch.Tensor, second: torch.Tensor, pair: FactorPair, *, config: Mapping[str, Any]) -> LowRank:
    """Make the change of a weight from its factors, in float64.

    Args:
        first: A, with as many rows as the rank; of a convolution (rank, in, *kernel).
        second: B, with as many columns as the rank; of a convolution (out, rank, 1, ...).
        pair: what they are.
        config: the adapter's configuration, for the scale.

    Returns:
        `s B A`, or its transpose for embeddings and layers that keep their weights transposed.

    Raises:
        TvgradError: the factors do not fit each other.
    """
    rank = first.shape[0] if first.ndim else 0
    if first.ndim < 2 or first.ndim != second.ndim or second.shape[1] != rank or second[0].numel() != rank:
        raise TvgradError(
            f"the factors of {pair.module} have shapes {tuple(first.shape)} and {tuple(second.shape)}, which have no "
            "product: save the adapter again"
        )
    left = second.double().reshape(-1, rank) * scale_of(config, pair.module, rank)
    right = first.double().reshape(rank, -1)
    if pair.embedding or (config.get("fan_in_fan_out") and first.ndim == 2):
        return LowRank(right.T.contiguous(), left.T.contiguous(), (right.shape[1], left.shape[0]))
    return LowRank(left, right, (left.shape[0], *first.shape[1:]))
