"""Uses of a layer's parameters: every sample's gradient, from a layer's input and the gradient by its output.

Each use is of one operation with a weight and a bias, as it was called. A sample's gradient by the weight of a linear
layer is the outer product of the two, and so on: one backward pass over the summed loss is enough for all samples,
because the output's gradient keeps them apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight

MANY_POSITIONS = 128
"""From here on, convolving in groups took 0.4 to 0.6 of the time of multiplying patches; at 49 positions, 1 to 2."""


class LayerUse(ABC):
    """An operation, its input, and the parameters that it takes.

    Attributes:
        weight: that was given, or None.
        bias: likewise.
    """

    input: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None = None

    @abstractmethod
    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """Run the operation with other parameters.

        Args:
            weight: in the place of the weight.
            bias: in the place of the bias.

        Returns:
            What it gives.
        """

    @abstractmethod
    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients by the weight.

        Args:
            gradient: by the output.

        Returns:
            One for each row of the output's first dimension, or of a cut of it.
        """

    def of_bias(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients by the bias.

        Args:
            gradient: by the output.

        Returns:
            One for each row.
        """
        return gradient.flatten(1, -2).sum(1) if gradient.ndim > 2 else gradient

    def single_rows(self, gradient: torch.Tensor) -> bool:
        """Whether every sample's gradient by the weight is one outer product, whose square is that of squares.

        Args:
            gradient: by the output.

        Returns:
            True for a linear layer on one row a sample.
        """
        return False

    def gram(self) -> torch.Tensor | None:
        """The sum of `x x'` over what the weight is multiplied with, in float64; None for what is no matrix product."""
        return None


class LinearUse(LayerUse):
    """`x W' + b`, whatever dimensions lie between samples and features."""

    def __init__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:  # noqa: A002
        """Keep what the operation was called with."""
        self.input, self.weight, self.bias = input, weight, bias

    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """The product."""
        assert weight is not None
        return torch.as_tensor(F.linear(self.input, weight, bias))

    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Outer products, summed over positions."""
        given = self.input
        if gradient.ndim == 2:
            return gradient.unsqueeze(2) * given.unsqueeze(1)
        return gradient.flatten(1, -2).transpose(1, 2) @ given.flatten(1, -2)

    def single_rows(self, gradient: torch.Tensor) -> bool:
        """Where nothing lies between samples and features."""
        return gradient.ndim == 2 and self.input.ndim == 2

    def gram(self) -> torch.Tensor:
        """Of the features, over samples and positions."""
        rows = self.input.flatten(0, -2).double()
        return rows.T @ rows


class ConvolutionUse(LayerUse):
    """A convolution over one or two dimensions: a linear layer on patches."""

    def __init__(
        self,
        input: torch.Tensor,  # noqa: A002
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        """Keep what the operation was called with."""
        self.input, self.weight, self.bias = input, weight, bias
        self.options = (stride, padding, dilation, groups)
        self.groups = groups
        self.kernel = tuple(weight.shape[2:])

    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution."""
        assert weight is not None
        run = torch.conv1d if len(self.kernel) == 1 else torch.conv2d
        return torch.as_tensor(run(self.input, weight, bias, *self.options))

    def patches(self) -> torch.Tensor:
        """What the kernels are multiplied with: shape (samples, groups, channels times kernel, positions)."""
        stride, padding, dilation = (_both(option, len(self.kernel)) for option in self.options[:3])
        given = self.input
        if padding == ("same", "same"):
            reach = [d * (k - 1) for d, k in zip(dilation, self.kernel, strict=False)]
            given = F.pad(given, [side for total in reversed(reach) for side in (total // 2, total - total // 2)])
        if isinstance(padding[0], str):
            padding = (0, 0)
        kernel, given = self.kernel, given
        if len(kernel) == 1:
            kernel, given = (1, *kernel), given.unsqueeze(2)
            stride, dilation, padding = (1, stride[0]), (1, dilation[0]), (0, padding[0])
        plain = kernel == (1, 1) and stride == (1, 1) and padding == (0, 0)
        found = given.flatten(2) if plain else F.unfold(given, kernel, dilation, padding, stride)
        return torch.as_tensor(found.unflatten(1, (self.groups, -1)))

    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Outer products of output gradients and patches, summed over positions."""
        assert self.weight is not None
        stride, padding, dilation, groups = self.options
        if gradient[0, 0].numel() >= MANY_POSITIONS and not isinstance(padding, str):
            # One convolution whose groups are the samples: its weight is all their weights.
            rows, derive = len(gradient), conv1d_weight if len(self.kernel) == 1 else conv2d_weight
            shape = (rows * self.weight.shape[0], *self.weight.shape[1:])
            flat = self.input.flatten(0, 1)[None], shape, gradient.flatten(0, 1)[None]
            found: torch.Tensor = derive(*flat, stride, padding, dilation, rows * groups)  # type: ignore[no-untyped-call]
            return torch.as_tensor(found.unflatten(0, (rows, -1)))
        by_group = gradient.flatten(2).unflatten(1, (self.groups, -1))
        return torch.as_tensor(by_group @ self.patches().transpose(2, 3)).reshape(len(gradient), *self.weight.shape)

    def of_bias(self, gradient: torch.Tensor) -> torch.Tensor:
        """Sums over positions."""
        return gradient.flatten(2).sum(2)

    def gram(self) -> torch.Tensor:
        """Of the patches, over samples and positions; one matrix for each group where there are several."""
        rows = self.patches().double().permute(1, 2, 0, 3).flatten(2)
        found = rows @ rows.transpose(1, 2)
        return found[0] if self.groups == 1 else found


def _both(option: Any, count: int) -> tuple[Any, Any]:
    """An option of a convolution for two dimensions; of the second, one-dimensional ones have none."""
    if isinstance(option, (tuple, list)):
        return (option[0], option[-1])
    return (option, option)


class NormUse(LayerUse):
    """A normalisation whose scale and shift come after it; over the last dimensions, or by channel."""

    def __init__(
        self,
        run: Callable[[torch.Tensor | None, torch.Tensor | None], torch.Tensor],
        input: torch.Tensor,  # noqa: A002
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        by: int,
    ) -> None:
        """Keep how to normalise.

        Args:
            run: the normalisation, by scale and shift.
            input: of it.
            weight: the scale.
            bias: the shift.
            by: how many dimensions the parameters have at the end, or 0 where they belong to dimension 1.
        """
        self.run, self.input, self.weight, self.bias, self.by = run, input, weight, bias, by

    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """Normalised, scaled and shifted."""
        return self.run(weight, bias)

    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Sums of gradient times normalised input."""
        return self.of_bias(gradient * self.run(None, None))

    def of_bias(self, gradient: torch.Tensor) -> torch.Tensor:
        """Sums over the positions that share a parameter."""
        if not self.by:
            return gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
        ahead = gradient.ndim - self.by
        return gradient.flatten(1, ahead - 1).sum(1) if ahead > 1 else gradient


class EmbeddingUse(LayerUse):
    """Rows of a table."""

    def __init__(self, input: torch.Tensor, weight: torch.Tensor, padding: int | None) -> None:  # noqa: A002
        """Keep positions and table.

        Args:
            input: whole numbers.
            weight: the table.
            padding: a row that has no gradient.
        """
        self.input, self.weight = input, weight
        self.padding = None if padding is None else padding % len(weight)

    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """The rows."""
        assert weight is not None
        return F.embedding(self.input, weight)

    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients added to the rows that they belong to."""
        assert self.weight is not None
        rows = self.input.reshape(len(gradient), -1)
        found = gradient.new_zeros(len(gradient), *self.weight.shape)
        found.scatter_add_(1, rows.unsqueeze(2).expand(-1, -1, self.weight.shape[1]), gradient.flatten(1, -2))
        if self.padding is not None:
            found[:, self.padding] = 0
        return found


class BroadcastUse(LayerUse):
    """A parameter that is added to, multiplied with, or repeated for every sample: positions, scales, class tokens."""

    def __init__(self, kind: str, weight: torch.Tensor, other: torch.Tensor | tuple[int, ...]) -> None:
        """Keep the other operand.

        Args:
            kind: `add`, `mul` or `expand`.
            weight: the parameter.
            other: the other operand, or the shape of an expansion.
        """
        self.kind, self.weight = kind, weight
        self.input = other if isinstance(other, torch.Tensor) else weight.detach()
        self.shape = () if isinstance(other, torch.Tensor) else other

    def output(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """The sum, product or expansion."""
        assert weight is not None
        if self.kind == "expand":
            return weight.expand(self.shape)
        return self.input + weight if self.kind == "add" else self.input * weight

    def of_weight(self, gradient: torch.Tensor) -> torch.Tensor:
        """Sums over the dimensions along which the parameter is repeated, samples apart."""
        assert self.weight is not None
        found = gradient * self.input if self.kind == "mul" else gradient
        shape = self.weight.shape
        wide = [1] * (found.ndim - len(shape)) + list(shape)
        repeated = [axis for axis in range(1, found.ndim) if wide[axis] == 1 and found.shape[axis] != 1]
        if repeated:
            found = found.sum(repeated, keepdim=True)
        return found.reshape(len(gradient), *shape)
