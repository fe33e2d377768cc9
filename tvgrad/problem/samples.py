"""Samples: a finite data set in a fixed order, cut into batches.

A full-batch gradient needs every sample exactly once. Whatever shuffles, drops or repeats samples is refused here, by
name, before any work starts.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset, default_collate

from tvgrad.errors import TvgradError

Batch = Any
"""What a collate function makes of samples: usually (inputs, targets), or a mapping of named tensors."""

FINGERPRINT_SAMPLES = 256
NO_POSITIONS = {torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}


LIST_OF_BATCHES = (
    "the data is a list of batches, and a full-batch gradient needs samples: pass (inputs, targets), joined with "
    "torch.cat, or the data set that the batches were made of"
)


class Samples:
    """A data set of known length whose samples come in one fixed order.

    Attributes:
        dtype: floating-point tensors of a batch are cast to this type; None leaves them alone.
        maybe_batches: whether the data is a list whose entries look like batches.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Batch] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a data set.

        Args:
            data: (inputs, targets) as tensors or arrays of equal length, a map-style Dataset, or a DataLoader that
                visits every sample once, in order.
            collate: makes a batch of a list of samples; by default the loader's own, or PyTorch's default.
            dtype: floating-point type for the batches; None keeps the data's own.

        Raises:
            TvgradError: the data is empty, has no length, or would not be visited once and in order.
        """
        self._indices: torch.Tensor | None = None
        self._tensors: tuple[torch.Tensor, ...] | None = None
        self._dataset: Any = None
        self._rounded: torch.dtype | None = None
        self.dtype = dtype
        data = _without_frames(data)
        if isinstance(data, DataLoader):
            collate = collate or data.collate_fn
            data = _dataset_of(data)
        if isinstance(data, TensorDataset) and (collate is None or collate is default_collate):
            self._tensors = data.tensors
        elif isinstance(data, (tuple, list)) and len(data) > 0 and all(_is_array(part) for part in data):
            self._tensors = tuple(_as_tensor(part) for part in data)
        elif isinstance(data, Dataset) or (hasattr(data, "__getitem__") and not isinstance(data, (str, Mapping))):
            self._dataset = _sized(data)
        else:
            raise TvgradError(
                f"data is a {type(data).__name__}: pass (inputs, targets) as tensors, a map-style Dataset, "
                "or a DataLoader without shuffling"
            )
        self.maybe_batches = collate is None and type(data) is list and self._tensors is None and _like_batches(data)
        if self.maybe_batches and len({size for row in data for size in _lengths(row)}) > 1:
            raise TvgradError(LIST_OF_BATCHES)
        self._collate = collate or default_collate
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self._tensors is not None and len({len(part) for part in self._tensors}) != 1:
            lengths = ", ".join(str(len(part)) for part in self._tensors)
            raise TvgradError(f"inputs and targets have different lengths ({lengths}): pass one target for each input")
        if len(self) == 0:
            raise TvgradError("the data is empty: a mean over no samples does not exist")

    @property
    def in_memory(self) -> bool:
        """Whether the samples are rows of tensors, which can all be looked at."""
        return self._tensors is not None

    def __len__(self) -> int:
        if self._indices is not None:
            return len(self._indices)
        return len(self._tensors[0]) if self._tensors is not None else len(self._dataset)

    def subset(self, indices: Sequence[int] | torch.Tensor) -> Samples:
        """Pick samples, in the order given.

        Args:
            indices: positions in this data set.

        Returns:
            A view; no data is copied.

        Raises:
            TvgradError: there is none, or one is no position in this data set.
        """
        chosen = torch.as_tensor(indices).cpu()
        if chosen.numel() and (chosen.dtype in NO_POSITIONS or chosen.ndim != 1):
            raise TvgradError(f"samples are picked by their positions, whole numbers, not by {_kind(chosen)}")
        chosen = chosen.to(torch.int64)
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise TvgradError(
                f"sample positions run from 0 to {len(self) - 1}, and those asked for "
                f"from {int(chosen.min())} to {int(chosen.max())}"
            )
        view = copy.copy(self)
        view._indices = chosen if self._indices is None else self._indices[chosen]
        view._check_lengths()
        return view

    def with_dtype(self, dtype: torch.dtype | None) -> Samples:
        """Cast floating-point data to another type when batches are made.

        Args:
            dtype: the type, or None to keep the present one.

        Returns:
            A view.
        """
        view = copy.copy(self)
        view.dtype = dtype or self.dtype
        return view

    def as_rounded_to(self, dtype: torch.dtype) -> Samples:
        """Round floating-point data to a format before it is cast: a float64 objective then has a bfloat16 run's data.

        Args:
            dtype: the format.

        Returns:
            A view.
        """
        view = copy.copy(self)
        view._rounded = dtype
        return view

    def as_it_may_have_been(self, dtype: torch.dtype) -> Iterator[Samples]:
        """The same data as a run may have recorded it.

        Args:
            dtype: the run's own.

        Yields:
            Views: as it is, before any cast, and cast to the run's dtype.
        """
        yield self
        for given in (None, dtype):
            view = copy.copy(self)
            view._rounded, view.dtype = None, given
            yield view

    def _cast(self, tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        return (tensor if self._rounded is None else tensor.to(self._rounded)).to(device, self.dtype)

    def batch(self, start: int, stop: int, device: torch.device | None = None) -> Batch:
        """Collate the samples from `start` up to, not including, `stop`.

        Args:
            start: first position.
            stop: position after the last.
            device: where its tensors are to be; None leaves them where they are.

        Returns:
            What the collate function makes of them.
        """
        positions = range(start, min(stop, len(self))) if self._indices is None else self._indices[start:stop]
        if self._tensors is not None:
            rows = slice(start, stop) if self._indices is None else positions
            made: Batch = tuple(part[rows] for part in self._tensors)
        else:
            made = self._collate([self._dataset[int(position)] for position in positions])
        if self.dtype is None and self._rounded is None and device is None:
            return made
        with torch.inference_mode(False):  # a copy that is made in inference mode could not be differentiated through
            return map_tensors(made, lambda tensor: self._cast(tensor, device))

    def chunks(self, size: int) -> Iterator[Batch]:
        """Cut the data set into batches of at most `size` samples, in order, none left out.

        Args:
            size: samples in a batch; the last may have fewer.

        Yields:
            The batches.
        """
        for start in range(0, len(self), size):
            yield self.batch(start, start + size)

    def fingerprint(self) -> str:
        """Describe the data so that another run can tell whether it sees the same.

        Tensors are hashed whole. Other data sets may decode files for each sample, so that up to 256 of their samples
        are hashed, evenly spaced; the method stands in the text.

        Returns:
            `sha256:<what was hashed>:<digits>`.
        """
        digest = hashlib.sha256(str(len(self)).encode())
        whole = self._tensors is not None
        step = 1 if whole else -(-len(self) // FINGERPRINT_SAMPLES)
        size = len(self) if whole else 1
        for start in range(0, len(self), max(size, step)):
            _hash_batch(self.batch(start, start + size), digest)
        return f"sha256:{'all' if step == 1 else f'every-{step}'}:{digest.hexdigest()}"


def map_tensors(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Apply a function to every tensor of a batch, however it is nested.

    Args:
        batch: tensors in tuples, lists and mappings.
        change: what to do with each tensor.

    Returns:
        The same structure; what is no tensor stays as it is.
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(value, change) for value in batch)
    return batch


def tensors_in(batch: Batch) -> list[torch.Tensor]:
    """List the tensors of a batch, however it is nested.

    Args:
        batch: tensors in tuples, lists and mappings.

    Returns:
        The tensors, in order.
    """
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return found


def _hash_batch(batch: Batch, digest: Any) -> None:
    for tensor in tensors_in(batch):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _is_array(part: Any) -> bool:
    return isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0


def _lengths(row: Any) -> list[int]:
    return [len(tensor) if tensor.ndim else 0 for tensor in tensors_in(row)]


def _like_batches(data: list[Any]) -> bool:
    """Whether each entry has several tensors of one length: a batch, or a sample of a sequence with its labels."""
    found = [_lengths(row) for row in data]
    return all(len(lengths) > 1 and lengths[0] > 0 and len(set(lengths)) == 1 for lengths in found)


def _without_frames(data: Any) -> Any:
    """Arrays in the place of pandas' frames and series, which index by label and by column."""
    if _of_pandas(data):
        raise TvgradError(f"data is a {type(data).__name__} alone: pass (inputs, targets), two frames or series")
    if not isinstance(data, (tuple, list)):
        return data
    return type(data)(*map(_values, data)) if hasattr(data, "_fields") else type(data)(map(_values, data))


def _of_pandas(part: Any) -> bool:
    return type(part).__module__.split(".")[0] == "pandas" and hasattr(part, "to_numpy")


def _values(part: Any) -> Any:
    if not _of_pandas(part):
        return part
    values = part.to_numpy()
    if values.dtype == object:
        kind = type(part).__name__
        raise TvgradError(f"a {kind} with values that are not all numbers is no tensor: convert its columns first")
    return values.copy()  # a frame's own memory may be read-only


def _as_tensor(part: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(part)
    except TypeError as error:
        raise TvgradError(f"an array of {part.dtype} is no tensor ({error}): convert it to numbers first") from None


def _kind(tensor: torch.Tensor) -> str:
    return f"a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}"


def _sized(data: Any) -> Any:
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        lack = "is an iterable data set" if isinstance(data, IterableDataset) else "has no length"
        raise TvgradError(
            f"{type(data).__name__} {lack}: a full-batch gradient needs a data set of known size; "
            "pass a map-style Dataset or (inputs, targets)"
        )
    return data


def _dataset_of(loader: DataLoader[Any]) -> Any:
    """The data set of a loader that visits each sample once, in order; a clear refusal of any other."""
    instead = f"pass its dataset ({type(loader.dataset).__name__}) instead of the DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return _sized(loader.dataset)  # refuses it
    if loader.drop_last:
        raise TvgradError(f"the DataLoader drops its last batch (drop_last=True): {instead}")
    # A sampler of a subclass, or over something shorter than the data, may do anything.
    plain = type(loader.sampler) is SequentialSampler and len(loader.sampler) == len(_sized(loader.dataset))
    if loader.batch_size is not None and not plain:
        how = "samples with replacement" if getattr(loader.sampler, "replacement", False) else "shuffles or samples"
        raise TvgradError(f"the DataLoader {how} ({type(loader.sampler).__name__}): {instead}")
    if loader.batch_size is None:
        raise TvgradError(f"the DataLoader has a batch sampler of its own, or none: {instead}")
    return loader.dataset
