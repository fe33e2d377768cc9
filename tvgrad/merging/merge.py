"""Merging as a stream: one tensor, or one block of a tensor, of every task at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorSource
from tvgrad.files.writing import write_stream
from tvgrad.merging.method import Method, checked_alpha
from tvgrad.merging.stack import FileStack, Stack, VectorStack
from tvgrad.merging.workers import in_order
from tvgrad.vectors.parameters import Weights, all_finite

BLOCK = 1 << 17
"""Elements of each task in a block: so many that calls take less time than the work, few enough for a shared cache.

A multiple of 64, see `Dare`.
"""
COPIED = 1 << 22
"""Elements that are copied at a time where nothing is merged."""


def merge_vectors(
    method: Method,
    task_vectors: Sequence[Mapping[str, torch.Tensor]],
    alpha: float = 1.0,
    *,
    base: Mapping[str, torch.Tensor] | None = None,
) -> Weights:
    """Merge task vectors in memory.

    Args:
        method: how.
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to; tensors of other names are left out.

    Returns:
        Name -> alpha times the merged vector, in float64; or base plus that, rounded once to the base's dtypes.

    Raises:
        TvgradError: the vectors are too few or not of one model, a value is not finite, or alpha is no number or
            so large that the result is not finite.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import METHODS, merge_vectors
        >>> vectors = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 4.0])}]
        >>> merge_vectors(METHODS["mean"](), vectors, alpha=0.5)["w"].tolist()
        [1.0, 0.5]
    """
    return combine_stack(method, VectorStack(task_vectors, base), alpha)


def merge_files(
    method: Method,
    pretrained: TensorSource,
    tuned: Sequence[TensorSource],
    *,
    alpha: float,
    out: str | os.PathLike[str],
    labels: Sequence[str] = (),
    also: Mapping[str, TensorSource] | None = None,
) -> Path:
    """Merge fine-tuned models that lie in safetensors files, in the memory of one tensor of each.

    Args:
        method: how.
        pretrained: the weights that all of them were tuned from.
        tuned: one file a task, with the same tensors.
        alpha: what the merged vector is multiplied with.
        out: the safetensors file to make.
        labels: what to call each task in messages.
        also: name -> file of tensors to write beside the merged ones, as they are.

    Returns:
        The path that opens the merged weights, which have the dtypes of the pretrained ones.

    Raises:
        TvgradError: the models are too few or have different tensors, a value is not finite, or alpha is no number or
            so large that the result is not finite.

    Examples:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> from tvgrad.files.tensors import TensorFile
        >>> from tvgrad.merging import METHODS, merge_files
        >>> folder = tempfile.mkdtemp()
        >>> for name, value in {"pretrained": 1.0, "a": 2.0, "b": 4.0}.items():
        ...     save_file({"w": torch.tensor([value])}, f"{folder}/{name}.safetensors")
        >>> pretrained, *tuned = (TensorFile(f"{folder}/{name}.safetensors") for name in ("pretrained", "a", "b"))
        >>> out = merge_files(METHODS["mean"](), pretrained, tuned, alpha=1.0, out=f"{folder}/merged.safetensors")
        >>> load_file(out)["w"].tolist()
        [3.0]
    """
    return write_merged(method, FileStack(pretrained, tuned, labels), out, alpha=alpha, also=also)


def write_merged(
    method: Method,
    stack: Stack,
    out: str | os.PathLike[str],
    *,
    alpha: float,
    also: Mapping[str, TensorSource] | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Path:
    """Merge a stack into a file.

    Args:
        method: how.
        stack: the task vectors.
        out: the safetensors file to make.
        alpha: what the merged vector is multiplied with.
        also: name -> file of tensors to write beside the merged ones, as they are.
        confirm: called when all has been read, before the file gets its name; what it raises leaves none.

    Returns:
        The path that opens the result.

    Raises:
        TvgradError: there are too few tasks, a value is not finite, or alpha is no number or
            so large that the result is not finite.
    """
    factor, beside = checked_alpha(alpha), dict(also or {})
    if Path(out).is_dir():
        raise TvgradError(f"{out} is a folder: give the path of a safetensors file to make")
    method.check_stack(stack)
    ready = method.prepared(stack)
    kept = {name: (file.places[name].shape, file.places[name].dtype) for name, file in beside.items()}

    def blocks(name: str) -> Iterator[torch.Tensor]:
        if name in beside:
            yield from stored_blocks(beside[name], name)
        else:
            yield from merged_blocks(ready, stack, name, alpha=factor, dtype=stack.places[name][1])

    return write_stream({**stack.places, **kept}, blocks, Path(out), confirm=confirm)


def combine_stack(method: Method, stack: Stack, alpha: float = 1.0, *, add_base: bool = True) -> Weights:
    """Merge a stack in memory.

    Args:
        method: how.
        stack: the task vectors.
        alpha: what the merged vector is multiplied with.
        add_base: whether to add the weights that the stack starts from, if it has any.

    Returns:
        Name -> merged tensor, in the dtypes of the stack, or in float64 where no weights are added.

    Raises:
        TvgradError: there are too few tasks, a value is not finite, or alpha is no number or
            so large that the result is not finite.
    """
    factor = checked_alpha(alpha)
    method.check_stack(stack)
    ready = method.prepared(stack)
    merged: Weights = {}
    for name, (shape, kept) in stack.places.items():
        dtype = kept if add_base else torch.float64
        parts = list(merged_blocks(ready, stack, name, alpha=factor, dtype=dtype, add_base=add_base))
        merged[name] = torch.cat(parts).view(shape) if parts else torch.empty(shape, dtype=dtype)
    return merged


def stored_blocks(source: TensorSource, name: str, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """Read a tensor block by block.

    Args:
        source: what holds it.
        name: the tensor.
        dtype: to convert it to; by default as it is stored.

    Yields:
        Its consecutive flat blocks.
    """
    place = source.places[name]
    for start in range(0, place.numel, COPIED):
        block = torch.empty(min(COPIED, place.numel - start), dtype=place.dtype)
        yield source.read_into(name, start, block).to(dtype or place.dtype)


def merged_blocks(
    method: Method, stack: Stack, name: str, *, alpha: float, dtype: torch.dtype, add_base: bool = True
) -> Iterator[torch.Tensor]:
    """Merge one tensor block by block, in float64, rounded once.

    Args:
        method: how, prepared for the stack.
        stack: the task vectors.
        name: the tensor.
        alpha: what the merged tensor is multiplied with.
        dtype: of the blocks.
        add_base: whether to add the weights that the stack starts from, if it has any.

    Yields:
        Consecutive flat blocks of base + alpha times the merged tensor.

    Raises:
        TvgradError: a value is not finite, or does not fit into the dtype.
    """
    chosen, numel = method.for_tensor(stack, name), stack.numel(name)
    size = BLOCK if chosen.elementwise else max(numel, 1)

    def merged(start: int) -> torch.Tensor:
        length = min(size, numel - start)
        rows = stack.rows(name, start, length) if chosen.elementwise else stack.rows(name)
        try:
            part = chosen.combine(rows, name, start).reshape(-1).mul_(alpha)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise TvgradError(
                f"{method.name} cannot decompose the task vectors' {name!r}, whose entries are too large or too small: "
                "choose a method without decompositions, such as mean"
            ) from None
        base = stack.base(name, start, length) if add_base else None
        rounded = (part if base is None else part.add_(base)).to(dtype)
        if not all_finite(rounded):
            kind = str(dtype).removeprefix("torch.")
            raise TvgradError(
                f"the merged {name!r} does not fit into {kind} at alpha {alpha:g}: choose a smaller alpha"
            )
        # The thread's next block overwrites what it read.
        shared = rounded.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
        return rounded.clone() if shared else rounded

    yield from in_order(merged, range(0, numel, size))
