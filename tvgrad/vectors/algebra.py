"""Linear combinations of weight vectors, always in float64: small differences must survive wide storage types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.vectors.parameters import Weights

BLOCK = 1 << 18
"""Elements that are converted in one go."""


def to_float64(vector: Mapping[str, torch.Tensor], device: torch.device | str | None = None) -> Weights:
    """Convert a weight vector to float64.

    Args:
        vector: name -> tensor.
        device: where to; by default each tensor stays where it is.

    Returns:
        Name -> detached float64 tensor, which shares memory with one that was float64 already: not to be changed.
    """
    return {name: tensor.detach().to(device=device, dtype=torch.float64) for name, tensor in vector.items()}


def zeros_like(vector: Mapping[str, torch.Tensor]) -> Weights:
    """The zero vector.

    Args:
        vector: name -> tensor, for names, shapes and devices.

    Returns:
        Name -> float64 zeros.
    """
    return {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in vector.items()}


def combination(*terms: tuple[float | Mapping[str, float], Mapping[str, torch.Tensor]]) -> Weights:
    """Sum weight vectors with coefficients.

    Args:
        terms: (coefficient, vector) pairs, at least one; all vectors have the first one's names and shapes. A
            coefficient is a number, or name -> number, 0 for names that it lacks.

    Returns:
        Name -> new float64 tensor, on the first vector's devices.
    """
    (scale, first), *others = terms
    total = {
        name: tensor.detach().to(torch.float64, copy=True).mul_(_at(scale, name)) for name, tensor in first.items()
    }
    for coefficient, vector in others:
        add_scaled(total, vector, coefficient)
    return total


def difference(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Weights:
    """Subtract weight vectors in float64.

    Args:
        left: name -> tensor.
        right: name -> tensor.

    Returns:
        left - right, on the devices of `left`.
    """
    return combination((1.0, left), (-1.0, right))


@torch.no_grad()
def add_scaled(total: Weights, vector: Mapping[str, torch.Tensor], coefficient: float | Mapping[str, float]) -> None:
    """Add a multiple of a weight vector in place.

    Args:
        total: name -> float64 tensor.
        vector: what is added.
        coefficient: times this; a number, or name -> number, 0 for names that it lacks.
    """
    for name, tensor in total.items():
        for part, added in blocks_of([tensor, vector[name]], BLOCK):
            part.add_(added.to(part), alpha=_at(coefficient, name))


def blocks_of(tensors: Sequence[torch.Tensor], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Go through tensors of one shape in flat blocks, so that what is computed of them on the way stays small.

    Args:
        tensors: of one shape; the first one's blocks may be written to.
        size: elements of a block.

    Yields:
        The same block of each; the tensors themselves where they are small, or the first one does not lie in memory as
        it is numbered.
    """
    if tensors[0].numel() <= size or not tensors[0].is_contiguous():
        yield tuple(tensor.detach() for tensor in tensors)
        return
    yield from zip(*(tensor.detach().reshape(-1).split(size) for tensor in tensors), strict=True)


def _at(coefficient: float | Mapping[str, float], name: str) -> float:
    return coefficient.get(name, 0.0) if isinstance(coefficient, Mapping) else coefficient


def flatten(vector: Mapping[str, torch.Tensor]) -> NDArray[np.float64]:
    """Write a weight vector as one array.

    Args:
        vector: name -> tensor.

    Returns:
        All coordinates in float64, tensor by tensor in the vector's order.
    """
    return np.concatenate([tensor.detach().cpu().double().reshape(-1).numpy() for tensor in vector.values()])


def unflatten(flat: NDArray[np.float64], like: Mapping[str, torch.Tensor]) -> Weights:
    """Read a weight vector from one array.

    Args:
        flat: all coordinates, as `flatten` writes them.
        like: name -> tensor, for names, shapes and order.

    Returns:
        Name -> float64 tensor on the CPU.
    """
    parts = torch.from_numpy(np.ascontiguousarray(flat)).split([tensor.numel() for tensor in like.values()])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}
