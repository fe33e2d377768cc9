"""Network: a feed-forward network as plain float64 matrices, and where its trainable parameters sit in one flat vector.

Layer l maps h_{l-1} to `z_l = G_l (W_l h_{l-1} + b_l) + t_l` and `h_l = s_l(z_l)`; h_0 is the input, z_L the logits and
s_L the identity. G_l = diag(gains) and t_l are constants: a folded BatchNorm, or 1 and 0. A convolution is its exact
operator: W_l is the matrix M(K) that its kernel K fills (module shared_kernel). With residual blocks a layer may
read an earlier h than the last, and earlier ones may be added to its z (module skips); a skip with weights is a layer
too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from tvgrad.bounds.activations.smooth import WIDER, Activation, OutsideValidity
from tvgrad.bounds.network.shared_kernel import SharedKernel
from tvgrad.bounds.network.skips import Skips
from tvgrad.bounds.network.spectral_norm import spectral_norm
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import SUM_MARGIN, TINY, UNIT_ROUNDOFF, gamma, round_up

# Roundings in an entry of G W or G b + t: of a BatchNorm's variance plus eps, its root, quotient, weight and mean, the
# products with W and b, and two sums, twice over.
FOLDED = 16


class UnsupportedNetwork(TvgradError):
    """The model is not one of the feed-forward networks for which bounds are known."""


@dataclass(frozen=True)
class Layer:
    """One affine map and the activation that follows it.

    Attributes:
        weight: W, (outputs, inputs), float64; of a convolution, the kernel.
        bias: b, (outputs,), zeros where there is none; of a convolution, one number a channel.
        activation: s, with its derivative bounds.
        weight_name: name of W among the trainable parameters; None where it is frozen.
        bias_name: the same for b.
        gains: diagonal of G, (outputs,), or None for ones.
        shift: t, (outputs,), or None for zeros.
        shift_size: the sizes of the terms that t is the sum of, or None where t was not computed.
        shared: how the kernel and bias of a convolution fill W and b; None for any other layer.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    activation: Activation
    weight_name: str | None
    bias_name: str | None
    gains: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    shift_size: torch.Tensor | None = None
    shared: SharedKernel | None = None

    @cached_property
    def matrix(self) -> torch.Tensor:
        """G W."""
        matrix = self.weight if self.shared is None else self.shared.matrix(self.weight)
        return matrix if self.gains is None else self.gains[:, None] * matrix

    @cached_property
    def offset(self) -> torch.Tensor:
        """G b + t."""
        offset = self.bias if self.shared is None else self.shared.offset(self.bias)
        offset = offset if self.gains is None else self.gains * offset
        return offset if self.shift is None else offset + self.shift

    @cached_property
    def gain(self) -> float:
        """||G||_2: a change of W or b is multiplied by so much at most."""
        return 1.0 if self.gains is None else float(self.gains.abs().max())

    @cached_property
    def spectral_norm(self) -> float:
        """A certified upper bound of ||G W||_2, the rounding of G W (or of a pooling's W) included."""
        rounding = FOLDED * UNIT_ROUNDOFF * float(torch.linalg.vector_norm(self.matrix))
        return round_up(spectral_norm(self.matrix).bound + rounding, 16 * UNIT_ROUNDOFF)

    @cached_property
    def frobenius_norm(self) -> float:
        """The Frobenius norm of [G W, terms of G b + t], rounded up: what the rounding of z is relative to."""
        matrix = round_up(float(torch.linalg.vector_norm(self.matrix)), gamma(self.matrix.numel() + 32))
        return round_up(math.hypot(matrix, self.offset_size), 8 * UNIT_ROUNDOFF) + TINY

    @cached_property
    def offset_size(self) -> float:
        """`|| |G b| + |terms of t| ||`, rounded up: what the rounding of G b + t is relative to."""
        size = (self.bias if self.shared is None else self.shared.offset(self.bias)).abs()
        if self.gains is not None:
            size = size * self.gains.abs()
        if self.shift is not None:
            size = size + (self.shift.abs() if self.shift_size is None else self.shift_size)
        return round_up(float(torch.linalg.vector_norm(size)), gamma(len(size) + 32))

    @cached_property
    def offset_norm(self) -> float:
        """||G b + t||, rounded up."""
        computed = round_up(float(torch.linalg.vector_norm(self.offset)), gamma(len(self.offset) + 16))
        # without a folded BatchNorm the offset is the bias itself
        return computed if self.gains is None else computed + FOLDED * UNIT_ROUNDOFF * self.offset_size

    @property
    def moves_weight(self) -> float:
        """Factor from `||dW||_F` to `||d(G W)||_2`; 0 where W is frozen."""
        shared = 1.0 if self.shared is None else self.shared.weight_gain
        return self.gain * shared if self.weight_name is not None else 0.0

    @property
    def moves_bias(self) -> float:
        """Factor from `||db||` to `||d(G b)||`; 0 where b is frozen."""
        shared = 1.0 if self.shared is None else self.shared.bias_gain
        return self.gain * shared if self.bias_name is not None else 0.0

    @property
    def width(self) -> int:
        """Number of outputs."""
        return len(self.matrix)


@dataclass(frozen=True)
class Network:
    """Layers in order; the last has the identity as its activation.

    Attributes:
        layers: layer 1 .. L.
        skips: what each layer reads, and what is added to it.
        order: names of the trainable parameters in the order of the flat vector; empty for that of the layers.
    """

    layers: tuple[Layer, ...]
    skips: Skips
    order: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """L, the number of affine maps."""
        return len(self.layers)

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return self.layers[-1].width

    @property
    def inputs(self) -> int:
        """The number of features of one sample."""
        return int(self.layers[0].matrix.shape[1])

    @cached_property
    def widest(self) -> int:
        """The largest dimension of any layer, inputs included."""
        return max(max(layer.matrix.shape) for layer in self.layers)

    @cached_property
    def _trainable(self) -> list[tuple[str, int, bool, int]]:
        """Name, layer, whether it is the weight, and size of each trainable parameter, in the flat vector's order."""
        found = [
            (name, index, is_weight, tensor.numel())
            for index, layer in enumerate(self.layers)
            for is_weight, name, tensor in (
                (True, layer.weight_name, layer.weight),
                (False, layer.bias_name, layer.bias),
            )
            if name is not None
        ]
        place = {name: number for number, name in enumerate(self.order)}
        return sorted(found, key=lambda one: place[one[0]]) if self.order else found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in the order of the flat vector."""
        return tuple(name for name, *_ in self._trainable)

    @cached_property
    def parts(self) -> tuple[tuple[int, bool, slice], ...]:
        """(layer, is it the weight, where in the flat vector) of each trainable parameter."""
        found, start = [], 0
        for _, index, is_weight, size in self._trainable:
            found.append((index, is_weight, slice(start, start + size)))
            start += size
        return tuple(found)

    @property
    def parameters(self) -> int:
        """The number of trainable numbers."""
        return self.parts[-1][2].stop if self.parts else 0

    @cached_property
    def flat(self) -> torch.Tensor:
        """The trainable parameters as one vector."""
        pieces = [(self.layers[i].weight if w else self.layers[i].bias).flatten() for i, w, _ in self.parts]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)

    def at(self, flat: torch.Tensor) -> Network:
        """The same network with other trainable parameters.

        Args:
            flat: a vector like `flat`.

        Returns:
            A new network; frozen parts are shared.
        """
        layers = list(self.layers)
        for index, is_weight, where in self.parts:
            layer = layers[index]
            if is_weight:
                layers[index] = replace(layer, weight=flat[where].reshape(layer.weight.shape))
            else:
                layers[index] = replace(layer, bias=flat[where])
        return replace(self, layers=tuple(layers))

    def layer_norms(self, flat: torch.Tensor) -> torch.Tensor:
        """Euclidean norms of a vector's part in each layer, weight and bias together.

        Args:
            flat: a vector like `flat`.

        Returns:
            (L,), rounded up; zeros for frozen layers.
        """
        squares, known = torch.zeros(2, self.depth, dtype=torch.float64)
        for index, _, where in self.parts:
            squares[index] += flat[where].square().sum()
            known[index] = float(bool(flat[where].any())) or known[index]
        norms: torch.Tensor = round_up(squares.sqrt(), gamma(len(flat) + 8)) + TINY * known
        return norms

    def check_validity(self, index: int, highest: torch.Tensor, change: torch.Tensor, radius: float) -> None:
        """Check that no pre-activation of a layer reaches where the model's activation is another function.

        Up to the first layer that fails, the model is what is bounded: layers have to be checked in order.

        Args:
            index: the layer, from 0.
            highest: (n,), the largest pre-activations as computed.
            change: (n,), an upper bound of what exact ones, anywhere in the ball, are larger by.
            radius: of the ball.

        Raises:
            OutsideValidity: one may.
        """
        layer = self.layers[index]
        below = layer.activation.below
        if below == math.inf:
            return
        change = round_up(change, self.margin(1))
        reached = highest + change + 8 * UNIT_ROUNDOFF * (highest.abs() + change)
        if not bool((reached < below).all()):
            name = layer.weight_name or layer.bias_name or f"layer {index + 1}"
            where = f"within {radius:.3g} of the weights" if radius else "at the weights"
            raise OutsideValidity(
                f"the pre-activations of {name} may reach {float(reached.max()):.6g} {where}, and the model computes "
                f"{layer.activation.name} below {below:g} alone: {WIDER}"
            )

    def margin(self, samples: int) -> float:
        """The relative rounding error of a bound that is computed from n samples without cancellation.

        Every bound here is built from certified norms and measured magnitudes by sums, products, roots, minima and
        maxima of nonnegative numbers: a polynomial of degree at most about 6 L in quantities that carry a relative
        error of (widest + 16) u each, plus one sum over the samples and, where skips meet, a few more terms a layer.
        1000 L (widest + 64) u + 4 n u exceeds that many times over; SUM_MARGIN is the least that is used.

        Args:
            samples: n.

        Returns:
            The margin.
        """
        growth = 1000.0 * self.depth * (self.widest + 64 + self.skips.extra) + 4.0 * samples
        return max(SUM_MARGIN, growth * UNIT_ROUNDOFF)
