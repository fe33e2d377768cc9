"""Merging as a stream: one tensor, or one block of a tensor, of every task at a time."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_stream
from tvgrad.merging.method import Method
from tvgrad.merging.stack import FileStack, Stack, VectorStack
from tvgrad.vectors.parameters import Weights

BLOCK = 1 << 16
"""Elements of each task in a block: large enough for two threads, small enough for the cache.

A multiple of 64, see `Dare`.
"""


def checked_alpha(alpha: object) -> float:
    """Check a merging coefficient.

    Args:
        alpha: what the merged vector is multiplied with.

    Returns:
        It, as a float.

    Raises:
        TvgradError: it is no finite number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not math.isfinite(alpha):
        raise TvgradError(f"alpha must be a finite number, not {alpha!r}")
    return float(alpha)


def merge_vectors(
    method: Method,
    task_vectors: Sequence[Mapping[str, torch.Tensor]],
    alpha: float = 1.0,
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
    """
    factor = checked_alpha(alpha)
    stack = VectorStack(task_vectors, base)
    merged: Weights = {}
    for name, (shape, dtype) in stack.places.items():
        parts = [_rounded(part, dtype, name, factor) for part in _blocks(method, stack, name, factor)]
        merged[name] = torch.cat(parts).view(shape) if parts else torch.empty(shape, dtype=dtype)
    return merged


def merge_files(
    method: Method,
    pretrained: TensorFile,
    tuned: Sequence[TensorFile],
    alpha: float,
    out: str | os.PathLike[str],
    labels: Sequence[str] = (),
    also: Mapping[str, TensorFile] | None = None,
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
    """
    return merge_stack(method, FileStack(pretrained, tuned, labels), alpha, out, also)


def merge_stack(
    method: Method,
    stack: Stack,
    alpha: float,
    out: str | os.PathLike[str],
    also: Mapping[str, TensorFile] | None = None,
) -> Path:
    """Merge a stack into a file.

    Args:
        method: how.
        stack: the task vectors.
        alpha: what the merged vector is multiplied with.
        out: the safetensors file to make.
        also: name -> file of tensors to write beside the merged ones, as they are.

    Returns:
        The path that opens the result.

    Raises:
        TvgradError: there are too few tasks, a value is not finite, or alpha is no number or
            so large that the result is not finite.
    """
    factor, beside = checked_alpha(alpha), dict(also or {})
    if Path(out).is_dir():
        raise TvgradError(f"{out} is a folder: give the path of a safetensors file to make")
    method.check_tasks(stack.tasks)
    places = dict(stack.places)
    for name, file in beside.items():
        places[name] = file.places[name].shape, file.places[name].dtype

    def blocks(name: str) -> Iterator[torch.Tensor]:
        if name in beside:
            yield beside[name].read(name).flatten()
            return
        for part in _blocks(method, stack, name, factor):
            yield _rounded(part, places[name][1], name, factor)

    return write_stream(places, blocks, Path(out))


def _rounded(part: torch.Tensor, dtype: torch.dtype, name: str, alpha: float) -> torch.Tensor:
    """The block in its final type, which must hold it."""
    rounded = part.to(dtype)
    # One sum is not finite where any value is not; the reverse (its own overflow) is settled by the second look.
    if not math.isfinite(float(rounded.sum())) and not bool(torch.isfinite(rounded).all()):
        kind = str(dtype).removeprefix("torch.")
        raise TvgradError(f"the merged {name!r} does not fit into {kind} at alpha {alpha:g}: choose a smaller alpha")
    return rounded


def merged_vector(method: Method, stack: Stack) -> Weights:
    """Merge a stack in memory, without adding the result to anything.

    Args:
        method: how.
        stack: the task vectors.

    Returns:
        Name -> merged tensor, in float64.

    Raises:
        TvgradError: there are too few tasks, or a value is not finite.
    """
    merged: Weights = {}
    for name, (shape, _) in stack.places.items():
        parts = list(_blocks(method, stack, name, 1.0, add_base=False))
        merged[name] = torch.cat(parts).view(shape) if parts else torch.empty(shape, dtype=torch.float64)
    return merged


def _blocks(method: Method, stack: Stack, name: str, alpha: float, add_base: bool = True) -> Iterator[torch.Tensor]:
    """Blocks of base + alpha times the merged tensor, flat, in float64."""
    method.check_tasks(stack.tasks)
    numel = stack.numel(name)
    size = BLOCK if method.elementwise else max(numel, 1)
    for start in range(0, numel, size):
        length = min(size, numel - start)
        rows = stack.rows(name, start, length) if method.elementwise else stack.rows(name)
        merged = method.combine(rows, name, start).reshape(-1).mul_(alpha)
        base = stack.base(name, start, length) if add_base else None
        yield merged if base is None else merged.add_(base)
