r"""Gradients and Hessian-vector products of a feed-forward network, each with a bound on its own rounding error.

A `Tracked` value is a computed batch of vectors and, for each sample, a bound on the Euclidean distance to what exact
arithmetic would have given from the same weights. The rules, with u the unit roundoff and d the number of terms:

- product with a matrix: the incoming error grows by ||W||_2, and each inner product adds at most
  `gamma_d sum |w||h|`, so that the vector of them adds `gamma_d ||W||_F ||h||`;
- a function, entry by entry: the incoming error grows by its Lipschitz constant, and its evaluation adds 64 u times
  its bound (PyTorch's are within a few u) and 64 u of its argument's size;
- a sum: both errors, and one rounding of the terms' sizes;
- an entrywise product: `|a|_inf err_b + |b|_inf err_a + err_a err_b`, and one rounding;
- a mean of outer products over the samples: the same product rule, and `gamma_n` of the sum of the norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from tvgrad.bounds.losses import Loss
from tvgrad.bounds.network import UNIT, Layer, Network, gamma

__all__ = ["Approximate", "Pass", "gradient", "passes", "products"]

CHUNK_NUMBERS = 1_000_000


@dataclass(frozen=True)
class Approximate:
    """A vector in parameter space and how far it can be from the exact one.

    Attributes:
        value: like `Network.flat`.
        error: a bound on the Euclidean distance.
    """

    value: torch.Tensor
    error: float

    @property
    def norm(self) -> float:
        """The computed norm."""
        return float(self.value.norm())

    @property
    def upper(self) -> float:
        """An upper bound of the exact vector's norm."""
        return (self.norm * (1 + gamma(len(self.value) + 4)) + self.error) * (1 + 4 * UNIT)

    @property
    def lower(self) -> float:
        """A lower bound of the exact vector's norm."""
        return max(0.0, (self.norm * (1 - gamma(len(self.value) + 4)) - self.error) * (1 - 4 * UNIT))


@dataclass(frozen=True)
class _Tracked:
    value: torch.Tensor  # (n, d)
    error: torch.Tensor  # (n,)

    @cached_property
    def size(self) -> torch.Tensor:
        """An upper bound of the computed norms; with the error, of the exact ones."""
        norms: torch.Tensor = self.value.norm(dim=1)
        return norms * (1 + 1e-9)

    @cached_property
    def largest(self) -> torch.Tensor:
        return self.value.abs().amax(1)

    def through(self, matrix: torch.Tensor, spectral: float, frobenius: float) -> _Tracked:
        error = spectral * self.error + gamma(matrix.shape[1] + 8) * frobenius * self.size
        return _Tracked(self.value @ matrix.T, error)

    def plus(self, other: _Tracked) -> _Tracked:
        total = self.value + other.value
        return _Tracked(total, self.error + other.error + 2 * UNIT * (self.size + other.size))

    def times(self, other: _Tracked) -> _Tracked:
        product = self.value * other.value
        error = self.largest * other.error + other.largest * self.error + self.error * other.error
        return _Tracked(product, error + 2 * UNIT * product.norm(dim=1))


def _applied(function: object, z: _Tracked, lipschitz: float, bound: float) -> _Tracked:
    value = function(z.value)  # type: ignore[operator]
    evaluation = 64 * UNIT * (bound * value.shape[1] ** 0.5 + lipschitz * z.size + value.norm(dim=1))
    return _Tracked(value, lipschitz * z.error + evaluation)


class _Sum:
    """A sum over samples in parameter space, with its error."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.value = torch.zeros(network.parameters, dtype=torch.float64)
        self.square_errors = 0.0
        self.errors = torch.zeros(len(network.parts), dtype=torch.float64)

    def add(self, index: int, is_weight: bool, p: _Tracked, h: _Tracked | None, rounding: float) -> None:
        """Add the sum of `p h'` (or of p) to the part of one parameter."""
        for number, (layer, weight, where) in enumerate(self.network.parts):
            if (layer, weight) != (index, is_weight):
                continue
            g = self.network.layers[index]
            share, gain = g.sharing, g.gain
            value = p.value if g.gains is None else p.value * g.gains
            if share is not None:  # a sum over positions, whose norm is at most that of the adjoint
                gain *= share.bias_gain
                rounding += gamma(share.positions + 8)
            if h is None:
                total = value.sum(0)
                self.value[where] += total if share is None else share.collect_offset(total)
                error = p.error + rounding * p.size
            else:
                total = value.T @ h.value
                self.value[where] += total.flatten() if share is None else share.collect(total)
                error = p.error * (h.size + h.error) + p.size * h.error + rounding * p.size * h.size
            self.errors[number] += gain * float(error.sum())

    def mean(self, divisor: float, samples: int) -> Approximate:
        """Divide by the divisor, which carries a relative error of n u at most."""
        value = self.value / divisor
        error = float(self.errors.norm()) / divisor * (1 + 1e-9)
        return Approximate(value, error + gamma(samples + 8) * float(value.norm()))


def passes(
    network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, chunk_size: int | None = None
) -> Iterator[Pass]:
    """Go forward and backward through the network, a chunk of the data at a time.

    Args:
        network: the network.
        loss: the loss.
        inputs: (n, features), float64.
        targets: checked targets.
        chunk_size: samples at once; None: as many as keep a tensor at some 8 MB.

    Yields:
        One chunk's pass.
    """
    size = chunk_size or max(1, CHUNK_NUMBERS // network.widest)
    for start in range(0, len(inputs), size):
        yield Pass(network, loss, inputs[start : start + size], targets[start : start + size])


def gradient(network: Network, chunks: Iterable[Pass], divisor: float) -> Approximate:
    """Sum up the gradient of the mean loss, with its rounding error.

    Args:
        network: the network.
        chunks: a pass over all the data.
        divisor: of the mean loss.

    Returns:
        The gradient in the trainable parameters.
    """
    total, samples = _Sum(network), 0
    for chunk in chunks:
        chunk.add_gradient(total)
        samples += chunk.samples
    return total.mean(divisor, samples)


def products(
    network: Network, chunks: Iterable[Pass], directions: list[torch.Tensor], divisor: float
) -> list[Approximate]:
    """Sum up Hessian-vector products (forward over reverse), with their rounding errors.

    Args:
        network: the network.
        chunks: a pass over all the data.
        directions: vectors like `Network.flat`, taken as exact.
        divisor: of the mean loss.

    Returns:
        One product for each direction.
    """
    totals, samples = [_Sum(network) for _ in directions], 0
    moves = [_steps(network, direction) for direction in directions]
    for chunk in chunks:
        for total, steps in zip(totals, moves, strict=True):
            chunk.add_product(total, steps)
        samples += chunk.samples
    return [total.mean(divisor, samples) for total in totals]


Steps = list[tuple[torch.Tensor, torch.Tensor, float, float]]


def _steps(network: Network, direction: torch.Tensor) -> Steps:
    """For each layer: the direction's matrix and offset, gains included, a bound of its norms."""
    found = []
    moved = network.at(direction)
    for layer, step in zip(network.layers, moved.layers, strict=True):
        weight = step.weight if layer.weight_name is not None else torch.zeros_like(layer.weight)
        bias = step.bias if layer.bias_name is not None else torch.zeros_like(layer.bias)
        if layer.sharing is not None:
            weight, bias = layer.sharing.matrix(weight), layer.sharing.offset(bias)
        if layer.gains is not None:
            weight, bias = layer.gains[:, None] * weight, layer.gains * bias
        frobenius = float(weight.norm()) * (1 + 1e-9)
        found.append((weight, bias, frobenius, float(bias.norm()) * (1 + 1e-9)))
    return found


def _affine(h: _Tracked, layer: Layer) -> _Tracked:
    z = h.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm)
    return _Tracked(z.value + layer.offset, z.error + 4 * UNIT * (z.size + layer.offset_norm))


def _pulled(p: _Tracked, layer: Layer) -> _Tracked:
    """What a layer's p sends to the h that it reads."""
    return p.through(layer.matrix.T, layer.spectral_norm, layer.frobenius_norm)


def _total(terms: list[_Tracked]) -> _Tracked:
    """The sum of at least one term."""
    first, *rest = terms
    for one in rest:
        first = first.plus(one)
    return first


class Pass:
    """One chunk's forward and backward pass, kept as long as products are wanted.

    Attributes:
        samples: how many there are.
    """

    def __init__(self, network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Go through the network.

        Args:
            network: the network.
            loss: the loss.
            inputs: the chunk, (n, features).
            targets: its targets.
        """
        self.samples = len(inputs)
        self._network, self._loss, self._targets = network, loss, targets
        self._rounding = gamma(len(inputs) + 8)
        layers, last = network.layers, network.depth - 1
        wiring = network.wiring
        self._made = [_Tracked(inputs, torch.zeros(len(inputs), dtype=torch.float64))]  # h_k
        self._z: list[_Tracked] = []
        self._first: list[_Tracked] = []
        for index, layer in enumerate(layers):
            z = _affine(self._made[wiring.reads[index]], layer)
            self._z.append(_total([z, *(self._made[k] for k in wiring.adds[index])]))
            if index < last:
                s = layer.activation
                self._made.append(_applied(s.value, self._z[-1], s.b1, 0.0))
                self._first.append(_applied(s.d1, self._z[-1], s.b2, s.b1))
        logits = self._z[-1]
        # constants here only multiply rounding errors: rough ones do
        curvature = loss.curvature(logits.value, targets, rough=True)
        self._local = loss.local(logits.value, targets, logits.error, curvature)
        error = self._local.residual_error + self._local.hessian * logits.error
        self._backward = [_Tracked(self._local.residual, error)]  # p_l
        self._pulled: list[_Tracked] = []  # q_l
        sent: dict[int, list[_Tracked]] = {k: [] for k in range(len(layers))}  # what reads or adds h_k sends there
        for index in range(last, 0, -1):
            p = self._backward[0]
            sent[wiring.reads[index]].append(_pulled(p, layers[index]))
            for k in wiring.adds[index]:
                sent[k].append(p)
            self._pulled.insert(0, _total(sent.pop(index)))
            self._backward.insert(0, self._pulled[0].times(self._first[index - 1]))

    @property
    def logits(self) -> torch.Tensor:
        """The logits, (n, C)."""
        return self._z[-1].value

    @property
    def logit_errors(self) -> torch.Tensor:
        """Bounds on the logits' distance from exact ones, (n,)."""
        return self._z[-1].error

    @cached_property
    def _second(self) -> list[_Tracked]:
        hidden = zip(self._network.layers, self._z[:-1], strict=False)
        return [_applied(layer.activation.d2, z, layer.activation.b3, layer.activation.b2) for layer, z in hidden]

    @cached_property
    def _residual_graph(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = self._z[-1].value.detach().requires_grad_()
            return leaf, self._loss.residual(leaf, self._targets)[0]

    def add_gradient(self, total: _Sum) -> None:
        """Add the chunk's gradient.

        Args:
            total: the sum over the data.
        """
        for index in range(self._network.depth):
            entering = self._made[self._network.wiring.reads[index]]
            total.add(index, True, self._backward[index], entering, self._rounding)
            total.add(index, False, self._backward[index], None, self._rounding)

    def add_product(self, total: _Sum, steps: Steps) -> None:
        """Add the chunk's Hessian times a direction: differentiate both passes along it.

        Args:
            total: the sum over the data.
            steps: the direction, layer by layer.
        """
        layers, depth, wiring = self._network.layers, self._network.depth, self._network.wiring
        zdots: list[_Tracked] = []
        hdots: list[_Tracked | None] = [None]
        for index, layer in enumerate(layers):
            weight, bias, frobenius, offset = steps[index]
            zdot = self._made[wiring.reads[index]].through(weight, frobenius, frobenius)
            terms = [_Tracked(zdot.value + bias, zdot.error + 4 * UNIT * (zdot.size + offset))]
            before = hdots[wiring.reads[index]]
            if before is not None:
                terms.append(before.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm))
            terms += [added for added in (hdots[k] for k in wiring.adds[index]) if added is not None]
            zdots.append(_total(terms))
            if index < depth - 1:
                hdots.append(self._first[index].times(zdots[-1]))
        pdot = self._loss_product(zdots[-1])
        sent: dict[int, list[_Tracked]] = {k: [] for k in range(depth)}
        for index in range(depth - 1, -1, -1):
            source, layer = wiring.reads[index], layers[index]
            total.add(index, True, pdot, self._made[source], self._rounding)
            total.add(index, False, pdot, None, self._rounding)
            before = hdots[source]
            if before is not None:
                total.add(index, True, self._backward[index], before, self._rounding)
                weight, _, frobenius, _ = steps[index]
                through = _pulled(pdot, layer)
                sent[source].append(through.plus(self._backward[index].through(weight.T, frobenius, frobenius)))
            for k in wiring.adds[index]:
                sent[k].append(pdot)
            if index:
                qdot = _total(sent.pop(index))
                bend = self._second[index - 1].times(zdots[index - 1])
                pdot = qdot.times(self._first[index - 1]).plus(self._pulled[index - 1].times(bend))

    def _loss_product(self, direction: _Tracked) -> _Tracked:
        """The loss's Hessian in the logits times a direction, by differentiating the residual."""
        # The Hessian moves by at most L3 err with the logits and is at most K on the direction's error; the product
        # itself is within 64 (C + 8) u of its size times the largest curvature that the loss has anywhere.
        logits, outputs = self._z[-1], direction.value.shape[1]
        leaf, residual = self._residual_graph
        # the Hessian is symmetric, so that reverse mode gives the product as well
        (value,) = torch.autograd.grad(residual, leaf, direction.value, retain_graph=True, materialize_grads=True)
        largest = self._loss.uniform(self._targets, outputs, logits.size + logits.error).hessian
        size = direction.size + direction.error
        evaluation = 64 * (outputs + 8) * UNIT
        error = self._local.third * logits.error * size + self._local.hessian * direction.error
        return _Tracked(value, error + evaluation * largest * size)
