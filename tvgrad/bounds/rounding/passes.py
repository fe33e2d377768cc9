"""Gradients, Hessian-vector products and third derivatives of a feed-forward network, with bounds on their rounding.

Every batch of vectors on the way is an `ErrorVectors`, whose rules bound its rounding. A `ParameterSum` adds up what is
summed over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import torch

from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import Layer, Network
from tvgrad.bounds.rounding.error_vectors import ErrorVectors, applied, nothing_like, total_of
from tvgrad.bounds.rounding.parameter_sum import BoundedVector, ParameterSum
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma

CHUNK_NUMBERS = 1_000_000


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


def gradient(network: Network, chunks: Iterable[Pass], divisor: float) -> BoundedVector:
    """Sum up the gradient of the mean loss, with its rounding error.

    Args:
        network: the network.
        chunks: a pass over all the data.
        divisor: of the mean loss.

    Returns:
        The gradient in the trainable parameters.
    """
    total, samples = ParameterSum(network), 0
    for chunk in chunks:
        chunk.add_gradient(total)
        samples += chunk.samples
    return total.mean(divisor, samples)


def products(
    network: Network, chunks: Iterable[Pass], directions: list[torch.Tensor], divisor: float
) -> list[BoundedVector]:
    """Sum up Hessian-vector products (forward over reverse), with their rounding errors.

    Args:
        network: the network.
        chunks: a pass over all the data.
        directions: vectors like `Network.flat`, taken as exact.
        divisor: of the mean loss.

    Returns:
        One product for each direction.
    """
    totals, samples = [ParameterSum(network) for _ in directions], 0
    moves = [_steps(network, direction) for direction in directions]
    for chunk in chunks:
        for total, steps in zip(totals, moves, strict=True):
            chunk.add_product(total, steps)
        samples += chunk.samples
    return [total.mean(divisor, samples) for total in totals]


def twice_along(network: Network, chunks: Iterable[Pass], direction: torch.Tensor, divisor: float) -> BoundedVector:
    """Sum up the third derivative with a direction in two of its slots, with its rounding error.

    Args:
        network: the network.
        chunks: a pass over all the data.
        direction: d, like `Network.flat`, taken as exact.
        divisor: of the mean loss.

    Returns:
        `D3[., d, d]`, the second derivative of the gradient along d.
    """
    total, samples, steps = ParameterSum(network), 0, _steps(network, direction)
    for chunk in chunks:
        chunk.add_second(total, steps)
        samples += chunk.samples
    return total.mean(divisor, samples)


Steps = list[tuple[torch.Tensor, torch.Tensor, float, float]]


def _steps(network: Network, direction: torch.Tensor) -> Steps:
    """For each layer: the direction's matrix and offset, gains included, a bound of its norms."""
    found = []
    moved = network.at(direction)
    for layer, step in zip(network.layers, moved.layers, strict=True):
        weight = step.weight if layer.weight_name is not None else torch.zeros_like(layer.weight)
        bias = step.bias if layer.bias_name is not None else torch.zeros_like(layer.bias)
        if layer.shared is not None:
            weight, bias = layer.shared.matrix(weight), layer.shared.offset(bias)
        if layer.gains is not None:
            weight, bias = layer.gains[:, None] * weight, layer.gains * bias
        frobenius = float(weight.norm()) * (1 + 1e-9)
        found.append((weight, bias, frobenius, float(bias.norm()) * (1 + 1e-9)))
    return found


def _affine(h: ErrorVectors, layer: Layer) -> ErrorVectors:
    z = h.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm)
    return ErrorVectors(z.value + layer.offset, z.error + 4 * UNIT_ROUNDOFF * (z.size + layer.offset_norm))


def _pulled(p: ErrorVectors, layer: Layer) -> ErrorVectors:
    """What a layer's p sends to the h that it reads."""
    return p.through(layer.matrix.T, layer.spectral_norm, layer.frobenius_norm)


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
        skips = network.skips
        self._made = [ErrorVectors(inputs, torch.zeros(len(inputs), dtype=torch.float64))]  # h_k
        self._z: list[ErrorVectors] = []
        self._first: list[ErrorVectors] = []
        for index, layer in enumerate(layers):
            z = _affine(self._made[skips.reads[index]], layer)
            self._z.append(total_of([z, *(self._made[k] for k in skips.adds[index])]))
            if index < last:
                s = layer.activation
                self._made.append(applied(s.value, self._z[-1], s.b1, 0.0))
                self._first.append(applied(s.d1, self._z[-1], s.b2, s.b1))
        logits = self._z[-1]
        # constants here only multiply rounding errors: rough ones do
        curvature = loss.curvature(logits.value, targets, rough=True)
        self._local = loss.local(logits.value, targets, logits.error, curvature)
        error = self._local.residual_error + self._local.hessian * logits.error
        self._backward = [ErrorVectors(self._local.residual, error)]  # p_l
        self._pulled: list[ErrorVectors] = []  # q_l
        sent: dict[int, list[ErrorVectors]] = {k: [] for k in range(len(layers))}  # what reads or adds h_k sends there
        for index in range(last, 0, -1):
            p = self._backward[0]
            sent[skips.reads[index]].append(_pulled(p, layers[index]))
            for k in skips.adds[index]:
                sent[k].append(p)
            self._pulled.insert(0, total_of(sent.pop(index)))
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
    def _second(self) -> list[ErrorVectors]:
        hidden = zip(self._network.layers, self._z[:-1], strict=False)
        return [applied(layer.activation.d2, z, layer.activation.b3, layer.activation.b2) for layer, z in hidden]

    @cached_property
    def _third(self) -> list[ErrorVectors]:
        hidden = zip(self._network.layers, self._z[:-1], strict=False)
        return [applied(layer.activation.d3, z, layer.activation.b4, layer.activation.b3) for layer, z in hidden]

    @cached_property
    def _residual_graph(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = self._z[-1].value.detach().requires_grad_()
            return leaf, self._loss.residual(leaf, self._targets)[0]

    def add_gradient(self, total: ParameterSum) -> None:
        """Add the chunk's gradient.

        Args:
            total: the sum over the data.
        """
        for index in range(self._network.depth):
            entering = self._made[self._network.skips.reads[index]]
            total.add(index, True, self._backward[index], entering, self._rounding)
            total.add(index, False, self._backward[index], None, self._rounding)

    def add_product(self, total: ParameterSum, steps: Steps) -> None:
        """Add the chunk's Hessian times a direction: differentiate both passes along it.

        Args:
            total: the sum over the data.
            steps: the direction, layer by layer.
        """
        skips = self._network.skips
        zdots, hdots = self._forward_along(steps)
        pdots, _ = self._backward_along(steps, zdots)
        for index in range(self._network.depth - 1, -1, -1):
            source = skips.reads[index]
            total.add(index, True, pdots[index], self._made[source], self._rounding)
            total.add(index, False, pdots[index], None, self._rounding)
            before = hdots[source]
            if before is not None:
                total.add(index, True, self._backward[index], before, self._rounding)

    def add_second(self, total: ParameterSum, steps: Steps) -> None:
        """Add the second derivative of the chunk's gradient along a direction: differentiate both passes twice.

        With dots for derivatives along the direction, `zddot = W hddot + 2 dW hdot`, `hddot = s'' zdot^2 + s' zddot`;
        `pddot_L = D3[zdot, zdot] + K zddot` of the loss, `qddot = W' pddot + 2 dW' pdot`,
        `pddot = s' qddot + 2 s'' zdot qdot + (s''' zdot^2 + s'' zddot) q`; a weight gets
        `pddot h' + 2 pdot hdot' + p hddot'`.

        Args:
            total: the sum over the data.
            steps: the direction, layer by layer.
        """
        layers, depth, skips = self._network.layers, self._network.depth, self._network.skips
        zdots, hdots = self._forward_along(steps)
        pdots, qdots = self._backward_along(steps, zdots)
        zddots: list[ErrorVectors] = []
        hddots: list[ErrorVectors | None] = [None]
        for index, layer in enumerate(layers):
            weight, _, frobenius, _ = steps[index]
            source = skips.reads[index]
            terms = [hddots[k] for k in skips.adds[index]]
            once, twice = hdots[source], hddots[source]
            if once is not None and twice is not None:
                terms.append(once.through(weight, frobenius, frobenius).doubled())
                terms.append(twice.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm))
            found = [one for one in terms if one is not None]
            zddots.append(total_of(found) if found else nothing_like(zdots[index]))
            if index < depth - 1:
                bend = self._second[index].times(zdots[index].times(zdots[index]))
                hddots.append(bend.plus(self._first[index].times(zddots[index])))
        sent: dict[int, list[ErrorVectors]] = {k: [] for k in range(depth)}
        pddot = self._loss_second(zdots[-1]).plus(self._loss_product(zddots[-1]))
        for index in range(depth - 1, -1, -1):
            weight, _, frobenius, _ = steps[index]
            source = skips.reads[index]
            total.add(index, True, pddot, self._made[source], self._rounding)
            total.add(index, False, pddot, None, self._rounding)
            once, twice = hdots[source], hddots[source]
            if once is not None and twice is not None:
                total.add(index, True, pdots[index].doubled(), once, self._rounding)
                total.add(index, True, self._backward[index], twice, self._rounding)
                through = pdots[index].through(weight.T, frobenius, frobenius).doubled()
                sent[source].append(_pulled(pddot, layers[index]).plus(through))
            for k in skips.adds[index]:
                sent[k].append(pddot)
            if index:
                hidden = index - 1
                zdot, second = zdots[hidden], self._second[hidden]
                bent = self._third[hidden].times(zdot.times(zdot)).plus(second.times(zddots[hidden]))
                pddot = total_of([
                    total_of(sent.pop(index)).times(self._first[hidden]),
                    second.times(zdot).times(qdots[index]).doubled(),
                    bent.times(self._pulled[hidden]),
                ])

    def _forward_along(self, steps: Steps) -> tuple[list[ErrorVectors], list[ErrorVectors | None]]:
        """Derivatives of each z_l and h_k along a direction; None for the input."""
        skips = self._network.skips
        zdots: list[ErrorVectors] = []
        hdots: list[ErrorVectors | None] = [None]
        for index, layer in enumerate(self._network.layers):
            weight, bias, frobenius, offset = steps[index]
            zdot = self._made[skips.reads[index]].through(weight, frobenius, frobenius)
            terms = [ErrorVectors(zdot.value + bias, zdot.error + 4 * UNIT_ROUNDOFF * (zdot.size + offset))]
            before = hdots[skips.reads[index]]
            if before is not None:
                terms.append(before.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm))
            terms += [added for added in (hdots[k] for k in skips.adds[index]) if added is not None]
            zdots.append(total_of(terms))
            if index < self._network.depth - 1:
                hdots.append(self._first[index].times(zdots[-1]))
        return zdots, hdots

    def _backward_along(
        self, steps: Steps, zdots: list[ErrorVectors]
    ) -> tuple[dict[int, ErrorVectors], dict[int, ErrorVectors]]:
        """Derivatives of each p_l, and of the q that arrives at each h_k, along a direction."""
        layers, depth, skips = self._network.layers, self._network.depth, self._network.skips
        sent: dict[int, list[ErrorVectors]] = {k: [] for k in range(depth)}
        pdots: dict[int, ErrorVectors] = {depth - 1: self._loss_product(zdots[-1])}
        qdots: dict[int, ErrorVectors] = {}
        for index in range(depth - 1, 0, -1):
            weight, _, frobenius, _ = steps[index]
            if skips.reads[index]:
                through = self._backward[index].through(weight.T, frobenius, frobenius)
                sent[skips.reads[index]].append(_pulled(pdots[index], layers[index]).plus(through))
            for k in skips.adds[index]:
                sent[k].append(pdots[index])
            qdots[index] = total_of(sent.pop(index))
            bend = self._second[index - 1].times(zdots[index - 1])
            pdots[index - 1] = qdots[index].times(self._first[index - 1]).plus(self._pulled[index - 1].times(bend))
        return pdots, qdots

    def _loss_product(self, direction: ErrorVectors) -> ErrorVectors:
        """The loss's Hessian in the logits times a direction, by differentiating the residual."""
        # The Hessian moves by at most L3 err with the logits and is at most K on the direction's error; the product
        # itself is within 64 (C + 8) u of its size times the largest curvature that the loss has anywhere.
        logits, outputs = self._z[-1], direction.value.shape[1]
        leaf, residual = self._residual_graph
        # the Hessian is symmetric, so that reverse mode gives the product as well
        (value,) = torch.autograd.grad(residual, leaf, direction.value, retain_graph=True, materialize_grads=True)
        largest = self._loss.uniform(self._targets, outputs, logits.size + logits.error).hessian
        size = direction.size + direction.error
        evaluation = 64 * (outputs + 8) * UNIT_ROUNDOFF
        error = self._local.third * logits.error * size + self._local.hessian * direction.error
        return ErrorVectors(value, error + evaluation * largest * size)

    def _loss_second(self, direction: ErrorVectors) -> ErrorVectors:
        """The loss's third derivative with a direction in two slots, by differentiating its curvature along it."""
        # It moves by at most L4 err |d|^2 with the logits and by L3 (2 |d| + err) err with the direction. Evaluated, it
        # is a sum of a few terms of the size of |d|^2 times the loss's Hessian or third derivative, wherever largest.
        logits, outputs = self._z[-1], direction.value.shape[1]
        leaf, residual = self._residual_graph
        value = torch.zeros_like(direction.value)
        with torch.enable_grad():
            (product,) = torch.autograd.grad(residual, leaf, direction.value, create_graph=True, materialize_grads=True)
            if product.requires_grad:
                (value,) = torch.autograd.grad(
                    product, leaf, direction.value, retain_graph=True, materialize_grads=True
                )
        size = direction.size + direction.error
        uniform = self._loss.uniform(self._targets, outputs, logits.size + logits.error)
        fourth = self._loss.fourth(uniform.hessian, uniform.hessian)
        evaluation = 1024 * (outputs + 8) * UNIT_ROUNDOFF * (uniform.third + uniform.hessian) * size.square()
        error = fourth * logits.error * size.square() + 2 * uniform.third * size * direction.error
        return ErrorVectors(value.detach(), error + evaluation)
