"""Gradients, Hessian-vector products and third derivatives of a feed-forward network, with bounds on their rounding.

Every batch of vectors on the way is an `ErrorVectors`, whose rules bound its rounding. A `ParameterSum` adds up what is
summed over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import torch

from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import FOLDED, Layer, Network
from tvgrad.bounds.rounding.error_vectors import ErrorVectors, applied, nothing_like, total_of
from tvgrad.bounds.rounding.parameter_sum import BoundedVector, ParameterSum
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up

CHUNK_NUMBERS = 1_000_000  # float64 numbers in the largest tensor of a chunk, which then stays in the cache: 8 MB


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
    return _summed(network, chunks, [Pass.add_gradient], divisor)[0]


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
    adding = [partial(Pass.add_product, steps=_steps(network, direction)) for direction in directions]
    return _summed(network, chunks, adding, divisor)


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
    return _summed(network, chunks, [partial(Pass.add_second, steps=_steps(network, direction))], divisor)[0]


def _summed(
    network: Network, chunks: Iterable[Pass], adding: Sequence[Callable[[Pass, ParameterSum], None]], divisor: float
) -> list[BoundedVector]:
    """Several means over the data in one pass over it."""
    totals, samples = [ParameterSum(network) for _ in adding], 0
    for chunk in chunks:
        for total, add in zip(totals, adding, strict=True):
            add(chunk, total)
        samples += chunk.samples
    return [total.mean(divisor, samples) for total in totals]


class LayerStep(NamedTuple):
    """A direction's part in one layer, gains included, with upper bounds of its Frobenius norms."""

    matrix: torch.Tensor
    offset: torch.Tensor
    matrix_norm: float
    offset_norm: float

    def forward(self, h: ErrorVectors) -> ErrorVectors:
        """The matrix times vectors."""
        return h.through(self.matrix, self.matrix_norm, self.matrix_norm)

    def backward(self, p: ErrorVectors) -> ErrorVectors:
        """The transposed matrix times vectors."""
        return p.through(self.matrix.T, self.matrix_norm, self.matrix_norm)


def _steps(network: Network, direction: torch.Tensor) -> list[LayerStep]:
    found = []
    for layer, moved in zip(network.layers, network.at(direction).layers, strict=True):
        weight = moved.weight if layer.weight_name is not None else torch.zeros_like(layer.weight)
        bias = moved.bias if layer.bias_name is not None else torch.zeros_like(layer.bias)
        step = Layer(weight, bias, layer.activation, None, None, layer.gains, shared=layer.shared)
        norms = (round_up(float(part.norm())) for part in (step.matrix, step.offset))
        found.append(LayerStep(step.matrix, step.offset, *norms))
    return found


def _forward(h: ErrorVectors, layer: Layer) -> ErrorVectors:
    return h.through(layer.matrix, layer.spectral_norm, layer.frobenius_norm)


def _backward(p: ErrorVectors, layer: Layer) -> ErrorVectors:
    return p.through(layer.matrix.T, layer.spectral_norm, layer.frobenius_norm)


def _shifted(z: ErrorVectors, offset: torch.Tensor, norm: float) -> ErrorVectors:
    return ErrorVectors(z.value + offset, z.error + UNIT_ROUNDOFF * (4 * z.size + FOLDED * norm))


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

        Raises:
            OutsideValidity: an activation is another function where a pre-activation is.
        """  # noqa: DOC502 - raised by the network
        self.samples = len(inputs)
        self._network, self._loss, self._targets = network, loss, targets
        self._rounding = gamma(len(inputs) + 8)
        self._last, skips = network.depth - 1, network.skips
        self._h = [ErrorVectors(inputs, torch.zeros(len(inputs), dtype=torch.float64))]
        self._z: list[ErrorVectors] = []
        for index, layer in enumerate(network.layers):
            z = _shifted(_forward(self._h[skips.reads[index]], layer), layer.offset, layer.offset_size)
            self._z.append(total_of([z, *(self._h[k] for k in skips.adds[index])]))
            network.check_validity(index, self._z[-1].value.amax(1), self._z[-1].error, 0.0)
            if index < self._last:
                s = layer.activation
                self._h.append(applied(s.value, self._z[-1], s.b1, 2 * s.added))
        self._first = self._derivatives(1)
        logits = self._z[-1]
        # constants here only multiply rounding errors: rough ones do
        curvature = loss.curvature(logits.value, targets, rough=True)
        self._local = loss.local(logits.value, targets, logits.error, curvature)
        error = self._local.residual_error + self._local.hessian * logits.error
        self._p, self._q = {self._last: ErrorVectors(self._local.residual, error)}, dict[int, ErrorVectors]()
        for hidden in reversed(range(self._last)):
            self._q[hidden] = self._received(hidden, self._p)
            self._p[hidden] = self._q[hidden].times(self._first[hidden])

    @property
    def logits(self) -> torch.Tensor:
        """The logits, (n, C)."""
        return self._z[-1].value

    @property
    def logit_errors(self) -> torch.Tensor:
        """Bounds on the logits' distance from exact ones, (n,)."""
        return self._z[-1].error

    def _derivatives(self, order: int) -> list[ErrorVectors]:
        """A derivative of each hidden layer's activation at its z."""
        found = []
        for layer, z in zip(self._network.layers, self._z[:-1], strict=False):
            s = layer.activation
            functions, bounds = (s.d1, s.d2, s.d3), (s.b1, s.b2, s.b3, s.b4)
            found.append(applied(functions[order - 1], z, bounds[order], bounds[order - 1]))
        return found

    @cached_property
    def _second(self) -> list[ErrorVectors]:
        return self._derivatives(2)

    @cached_property
    def _third(self) -> list[ErrorVectors]:
        return self._derivatives(3)

    def _received(
        self, hidden: int, p: dict[int, ErrorVectors], beside: Callable[[int], ErrorVectors] | None = None
    ) -> ErrorVectors:
        """What a hidden layer's h receives from the layers that read or add it: their p carried back.

        Args:
            hidden: the layer.
            p: of all layers behind it, or a derivative of it along a direction.
            beside: what a layer that reads it sends besides, where its weight moves along the direction.

        Returns:
            The sum.
        """

        def read(m: int) -> ErrorVectors:
            sent = _backward(p[m], self._network.layers[m])
            return sent if beside is None else sent.plus(beside(m))

        return total_of(self._network.skips.collect(hidden + 1, read, p.__getitem__))

    def _add(self, total: ParameterSum, index: int, terms: list[tuple[ErrorVectors, ErrorVectors | None]]) -> None:
        """Add the sums of `p h'` to a layer's weight, and that of the first p to its bias."""
        for p, h in terms:
            if h is not None:
                total.add(index, p, h, self._rounding)
        total.add(index, terms[0][0], None, self._rounding)

    def add_gradient(self, total: ParameterSum) -> None:
        """Add the chunk's gradient.

        Args:
            total: the sum over the data.
        """
        for index, source in enumerate(self._network.skips.reads):
            self._add(total, index, [(self._p[index], self._h[source])])

    def add_product(self, total: ParameterSum, steps: list[LayerStep]) -> None:
        """Add the chunk's Hessian times a direction: differentiate both passes along it.

        Args:
            total: the sum over the data.
            steps: the direction, layer by layer.
        """
        zdots, hdots = self._forward_along(steps)
        pdots, _ = self._backward_along(steps, zdots)
        for index, source in enumerate(self._network.skips.reads):
            self._add(total, index, [(pdots[index], self._h[source]), (self._p[index], hdots[source])])

    def add_second(self, total: ParameterSum, steps: list[LayerStep]) -> None:
        """Add the second derivative of the chunk's gradient along a direction: differentiate both passes twice.

        With dots for derivatives along the direction, `zddot = W hddot + 2 dW hdot`, `hddot = s'' zdot^2 + s' zddot`;
        `pddot_L = D3[zdot, zdot] + K zddot` of the loss, `qddot = W' pddot + 2 dW' pdot`,
        `pddot = s' qddot + 2 s'' zdot qdot + (s''' zdot^2 + s'' zddot) q`; a weight gets
        `pddot h' + 2 pdot hdot' + p hddot'`.

        Args:
            total: the sum over the data.
            steps: the direction, layer by layer.
        """
        zdots, hdots = self._forward_along(steps)
        pdots, qdots = self._backward_along(steps, zdots)
        zddots, hddots = self._forward_twice(steps, zdots, hdots)
        pddots = {self._last: self._loss_second(zdots[-1]).plus(self._loss_product(zddots[-1]))}
        for hidden in reversed(range(self._last)):
            zdot, second = zdots[hidden], self._second[hidden]
            qddot = self._received(hidden, pddots, lambda m: steps[m].backward(pdots[m]).doubled())
            bent = self._third[hidden].times(zdot.times(zdot)).plus(second.times(zddots[hidden]))
            pddots[hidden] = total_of([
                qddot.times(self._first[hidden]),
                second.times(zdot).times(qdots[hidden]).doubled(),
                bent.times(self._q[hidden]),
            ])
        for index, source in enumerate(self._network.skips.reads):
            terms = [(pddots[index], self._h[source]), (pdots[index].doubled(), hdots[source])]
            self._add(total, index, [*terms, (self._p[index], hddots[source])])

    def _forward_along(self, steps: list[LayerStep]) -> tuple[list[ErrorVectors], list[ErrorVectors | None]]:
        """Derivatives of each z_l and h_k along a direction; None for the input."""
        zdots: list[ErrorVectors] = []
        hdots: list[ErrorVectors | None] = [None]
        skips = self._network.skips
        for index, (layer, step) in enumerate(zip(self._network.layers, steps, strict=True)):
            moved = step.forward(self._h[skips.reads[index]])
            terms = [_shifted(moved, step.offset, step.offset_norm)]
            before = hdots[skips.reads[index]]
            if before is not None:
                terms.append(_forward(before, layer))
            terms += [added for added in (hdots[k] for k in skips.adds[index]) if added is not None]
            zdots.append(total_of(terms))
            if index < self._last:
                hdots.append(self._first[index].times(zdots[-1]))
        return zdots, hdots

    def _forward_twice(
        self, steps: list[LayerStep], zdots: list[ErrorVectors], hdots: list[ErrorVectors | None]
    ) -> tuple[list[ErrorVectors], list[ErrorVectors | None]]:
        """Second derivatives of each z_l and h_k along a direction; None for the input."""
        zddots: list[ErrorVectors] = []
        hddots: list[ErrorVectors | None] = [None]
        skips = self._network.skips
        for index, (layer, step) in enumerate(zip(self._network.layers, steps, strict=True)):
            terms = [added for added in (hddots[k] for k in skips.adds[index]) if added is not None]
            once, twice = hdots[skips.reads[index]], hddots[skips.reads[index]]
            if once is not None and twice is not None:
                terms.append(step.forward(once).doubled())
                terms.append(_forward(twice, layer))
            zddots.append(total_of(terms) if terms else nothing_like(zdots[index]))
            if index < self._last:
                bend = self._second[index].times(zdots[index].times(zdots[index]))
                hddots.append(bend.plus(self._first[index].times(zddots[index])))
        return zddots, hddots

    def _backward_along(
        self, steps: list[LayerStep], zdots: list[ErrorVectors]
    ) -> tuple[dict[int, ErrorVectors], dict[int, ErrorVectors]]:
        """Derivatives of each p_l, and of the q of each hidden layer, along a direction."""
        pdots, qdots = {self._last: self._loss_product(zdots[-1])}, dict[int, ErrorVectors]()
        for hidden in reversed(range(self._last)):
            qdots[hidden] = self._received(hidden, pdots, lambda m: steps[m].backward(self._p[m]))
            bend = self._second[hidden].times(zdots[hidden])
            pdots[hidden] = qdots[hidden].times(self._first[hidden]).plus(self._q[hidden].times(bend))
        return pdots, qdots

    @cached_property
    def _residual_graph(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = self._z[-1].value.detach().requires_grad_()
            return leaf, self._loss.residual(leaf, self._targets)[0]

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
