"""WeightedSum: gradients of chunks, weighed and added in float64, and divided once by the weight of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import Weights, add_in_blocks


class WeightedSum:
    """A weighted sum of vectors in parameter space, one float64 tensor for each parameter.

    Attributes:
        weight: the sum of the weights so far.
    """

    def __init__(self, like: Weights, single: bool = False) -> None:
        """Begin with nothing.

        Args:
            like: name -> tensor, whose dtypes the mean has.
            single: one vector will be added, with weight 1: it is the mean, and is kept as it is.
        """
        self.weight = 0.0
        self._single = single
        self._like = dict(like)
        self._sums: Weights = {}

    def add(self, part: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add a vector.

        Args:
            part: name -> tensor.
            weight: times this.
        """
        self.weight += weight
        for name, tensor in part.items():
            plain = tensor.detach()
            if name in self._sums:
                add_in_blocks(self._sums[name], plain, weight)
            elif self._single:
                self._sums[name] = plain
            else:
                self._sums[name] = plain.to(torch.float64, copy=True).mul_(weight)

    def parts(self) -> list[torch.Tensor]:
        """The sums, to be changed in place by whoever adds those of other processes; zeros where nothing was added.

        Returns:
            One float64 tensor for each parameter, in order.
        """
        for name, like in self._like.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(like, dtype=torch.float64)
            elif self._single:
                self._sums[name] = self._sums[name].to(torch.float64, copy=True)
        self._single = False
        return [self._sums[name] for name in self._like]

    def mean(self, home: torch.device, *, empty: bool = False) -> Weights:
        """Divide by the weight; the sums are used up.

        Args:
            home: the device of the result.
            empty: a sum without weight has a mean, of zeros: it is of a mini-batch, which may have none.

        Returns:
            Name -> tensor.
        """
        if empty and self.weight == 0:
            return {name: torch.zeros_like(like, device=home) for name, like in self._like.items()}
        weight = nonzero(self.weight)
        if self._single:
            return _own_memory({name: self._sums.pop(name).to(home, like.dtype) for name, like in self._like.items()})
        # Each sum goes when its mean is made, so that the two are never in memory together.
        return {name: self._sums.pop(name).div_(weight).to(home, like.dtype) for name, like in self._like.items()}


def _own_memory(vector: Weights) -> Weights:
    """Dense tensors, no two of which share memory: autograd gives one tensor to whatever has the same derivative."""
    seen: set[int] = set()
    for name, tensor in vector.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            vector[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return vector


def nonzero(weight: float) -> float:
    """Refuse a data set without weight.

    Args:
        weight: of all its samples.

    Returns:
        It.

    Raises:
        TvgradError: it is 0.
    """
    if weight == 0:
        raise TvgradError("count(batch) is 0 over the whole data set: the mean loss is undefined")
    return weight
