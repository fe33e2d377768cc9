"""WeightChange: an adapter's task vector in weight space, read block by block."""

from __future__ import annotations

from pathlib import Path

import torch

from tvgrad.checkpoints.adapter import Adapter
from tvgrad.checkpoints.low_rank import LowRank
from tvgrad.checkpoints.opening import Checkpoint, aligned_names
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorPlace, TensorSource


class WeightChange:
    """What an adapter adds to each floating-point tensor of its base model: `s B A`, a difference, or zero.

    Attributes:
        path: the adapter's folder.
        places: every floating-point tensor of the base, and those that the adapter alone has.
        changed: the names that are not zero throughout.
    """

    def __init__(self, adapter: Adapter, base: Checkpoint, dtype: torch.dtype | None = None) -> None:
        """Check that the adapter fits the base.

        Args:
            adapter: the adapter.
            base: the model that it was trained from.
            dtype: what is read; by default float64 for tensors that the base holds in float64, and float32 else.
                Blocks are formed in float64 and rounded once.

        Raises:
            TvgradError: the base has not the weights that it changes, or has them in other shapes.
        """
        self.path: Path = adapter.path
        self._base, self._whole = base.source, adapter.whole
        known = base.source.places
        self._names = aligned_names([*adapter.changes, *adapter.whole.places], known)
        self._changes: dict[str, LowRank] = {}
        for name, own in self._names.items():
            if own not in adapter.changes:
                continue
            change = adapter.changes[own]
            if name not in known:
                said = adapter.config.get("base_model_name_or_path")
                raise TvgradError(
                    f"{adapter.path} changes {own}, which {base.path} does not have: give --pretrained the model that "
                    f"the adapter was trained from{f' ({said})' if said else ''}"
                )
            if tuple(known[name].shape) != change.shape:
                raise TvgradError(
                    f"{adapter.path} changes {own} in shape {change.shape}, and {base.path} has it in "
                    f"shape {tuple(known[name].shape)}: give --pretrained the model that the adapter was trained from"
                )
            self._changes[name] = change
        own_places = {
            name: adapter.whole.places[own] for name, own in self._names.items() if own in adapter.whole.places
        }
        every = {name: place for name, place in known.items() if place.dtype.is_floating_point} | own_places
        self.places = {
            name: TensorPlace(0, 0, place.shape, dtype or _wide(place.dtype)) for name, place in every.items()
        }
        self.changed = frozenset(self._names)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Form consecutive elements of the change of a flattened tensor.

        Args:
            name: the tensor's name in the base.
            start: index of the first element.
            out: contiguous one-dimensional CPU tensor.

        Returns:
            `out`, filled.
        """
        if name in self._changes:
            return out.copy_(self._changes[name].block(start, out.numel()))
        if name not in self._names:
            return out.zero_()
        block = _block(self._whole, self._names[name], start, out.numel())
        return out.copy_(block.sub_(_block(self._base, name, start, out.numel())))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block(source: TensorSource, name: str, start: int, length: int) -> torch.Tensor:
    return source.read_into(name, start, torch.empty(length, dtype=source.places[name].dtype)).double()
