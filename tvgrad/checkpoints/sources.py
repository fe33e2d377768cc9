"""Tensor sources beside safetensors files: tables of tensors in memory, and other names for what a source holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tvgrad.files.tensors import TensorPlace, TensorSource


class TensorTable:
    """Tensors in memory, or mapped into it, read like a file."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors.

        Args:
            path: where they came from.
            tensors: name -> CPU tensor.
        """
        self.path = path
        self.places = {name: TensorPlace(0, 0, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        self._flat = {name: tensor.detach().reshape(-1) for name, tensor in tensors.items()}
        self.tied = _tied(tensors)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Read consecutive elements of a flattened tensor.

        Args:
            name: the tensor's name.
            start: index of the first element.
            out: one-dimensional CPU tensor.

        Returns:
            `out`, filled.
        """
        return out.copy_(self._flat[name][start : start + out.numel()])


class Renamed:
    """Some tensors of another source, under other names."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        """Keep the names.

        Args:
            source: what is read.
            names: new name -> the name that the source knows.
        """
        self.path = source.path
        self.places = {new: source.places[old] for new, old in names.items()}
        self._source, self._names = source, dict(names)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Read consecutive elements of a flattened tensor.

        Args:
            name: the tensor's new name.
            start: index of the first element.
            out: contiguous one-dimensional CPU tensor of the stored dtype.

        Returns:
            `out`, filled.
        """
        return self._source.read_into(self._names[name], start, out)


def _tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name -> the first name of the same memory, for each tensor that is not empty."""
    memory: dict[tuple[int, tuple[int, ...]], str] = {}
    return {
        name: memory.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        for name, tensor in tensors.items()
        if tensor.numel()
    }


def read_whole(source: TensorSource, name: str) -> torch.Tensor:
    """Read one tensor.

    Args:
        source: what holds it.
        name: its name.

    Returns:
        A new CPU tensor, shape and dtype as stored.
    """
    place = source.places[name]
    return source.read_into(name, 0, torch.empty(place.numel, dtype=place.dtype)).reshape(place.shape)


class Joined:
    """The tensors of several sources, which have different names."""

    def __init__(self, path: Path, parts: Sequence[TensorSource]) -> None:
        """Keep the sources.

        Args:
            path: what to call them together.
            parts: the sources; where two know one name, the first counts.
        """
        self.path = path
        self._owner: dict[str, TensorSource] = {}
        for part in parts:
            for name in part.places:
                self._owner.setdefault(name, part)
        self.places = {name: part.places[name] for name, part in self._owner.items()}

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Read consecutive elements of a flattened tensor.

        Args:
            name: the tensor's name.
            start: index of the first element.
            out: contiguous one-dimensional CPU tensor of the stored dtype.

        Returns:
            `out`, filled.
        """
        return self._owner[name].read_into(name, start, out)
