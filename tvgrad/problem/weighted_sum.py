"""WeightedSum: gradients of chunks, weighed and added in float64, and divided once by the weight of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import Weights


class WeightedSum:
    """A weighted sum of vectors in parameter space, one float64 tensor for each parameter.

    Attributes:
        weight: the sum of the weights so far.
    """

    def __init__(self, like: Weights) -> None:
        """Begin with nothing.

        Args:
            like: name -> tensor, whose dtypes the mean has.
        """
        self.weight = 0.0
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
                self._sums[name].add_(plain, alpha=weight)
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
        return [self._sums[name] for name in self._like]

    def mean(self, home: torch.device) -> Weights:
        """Divide by the weight; the sums are used up.

        Args:
            home: the device of the result.

        Returns:
            Name -> tensor.
        """
        weight = nonzero(self.weight)
        # Each sum goes when its mean is made, so that the two are never in memory together.
        return {name: self._sums.pop(name).div_(weight).to(home, like.dtype) for name, like in self._like.items()}


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
