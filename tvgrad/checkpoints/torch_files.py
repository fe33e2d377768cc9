"""Files of `torch.save` that hold tensors. No code in a file is ever run: PyTorch's restricted reader takes them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.regular import open_regular, read_json, reason_of
from tvgrad.vectors.parameters import Weights

NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts put a state_dict beside their optimizer's."""

SLACK = 64 << 20
"""Bytes by which one tensor may exceed its file: expanded buffers are small."""


def load_tensors(file: Path) -> Weights:
    """Read a `state_dict`; its tensors are mapped from the file where its format allows that.

    Args:
        file: a file of `torch.save`, or the index (`.bin.index.json`) of several.

    Returns:
        Name -> CPU tensor.

    Raises:
        TvgradError: it cannot be read, or holds more than tensors.
    """
    if not file.name.endswith(".index.json"):
        return _state_dict(file)
    try:
        owners = dict(read_json(file)["weight_map"].items())
        shards = sorted(set(owners.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TvgradError(f"{file} is no index of a sharded checkpoint ({reason_of(error)}): write it again") from None
    if not all(isinstance(name, str) and Path(name).name == name != ".." for name in shards):
        raise TvgradError(f"{file} names a file outside its own folder: write the index again")
    content: Weights = {}
    for shard in shards:
        content |= _state_dict(file.parent / shard)
    return content


def _state_dict(file: Path) -> Weights:
    content = _load(file)
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if hasattr(content, "items") else {}
    )
    most = file.stat().st_size + SLACK
    copied = 0
    for name, tensor in tensors.items():
        what = _not_dense(tensor)
        if what is not None:
            raise TvgradError(f"{file} has a tensor {name!r} that is {what}: write dense tensors with their values")
        copied += 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()
        if max(copied, tensor.numel() * tensor.element_size()) > most:
            raise TvgradError(f"{file} has a tensor {name!r} that is larger than the file: write its own values")
    if not tensors:
        raise TvgradError(f"{file} holds no state_dict: write model.state_dict() with torch.save, or as safetensors")
    return tensors


def _not_dense(tensor: torch.Tensor) -> str | None:
    """What a tensor is that has no plain values in memory, with an article; None where it has."""
    if tensor.is_meta:
        return "an empty one (on the meta device)"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "a nested one" if tensor.is_nested else f"a {str(tensor.layout).removeprefix('torch.')} one"
    return f"quantised ({str(tensor.dtype).removeprefix('torch.')})" if tensor.is_quantized else None


def _require_stored(file: Path) -> None:
    """Refuse what is no regular file, and an archive that unpacks to more than it is (torch.save packs nothing)."""
    with open_regular(file) as handle:
        size = file.stat().st_size
        try:
            parts = zipfile.ZipFile(handle).infolist()
        except zipfile.BadZipFile:  # the format before PyTorch 1.6
            return
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > size:
        raise TvgradError(f"{file} unpacks to more than its size, which no file of torch.save does: give another file")


def _load(file: Path) -> Any:
    try:
        _require_stored(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stranger's file says nothing to the terminal
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, ValueError):  # the format before PyTorch 1.6 cannot be mapped
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TvgradError(f"{file} cannot be read ({reason_of(error)}): restore it, or give another file") from None
    except TvgradError:
        raise
    except Exception:  # noqa: BLE001 - a spoilt stream raises what the functions raise that rebuild tensors
        raise TvgradError(
            f"{file} holds more than tensors, or is no file of torch.save: write model.state_dict() alone, "
            "or as safetensors"
        ) from None
