r"""What is measured once, at the centre of a ball, for each sample: magnitudes, Jacobian norms, residuals carried back.

With `J_{j,l} = dz_l/dz_j`, `D_l = diag s'(z_l)`, `p_l = dloss/dz_l` and `q_l = dloss/dh_l` (in a chain
`W_{l+1}' p_{l+1}`) these numbers, a few for each sample and pair of layers, are all that the local bounds need; the
matrices themselves live for one chunk.

Rounding. A computed affine map is the exact one of a network whose weights differ by at most `gamma ||[W, b]||_F`
(each inner product is backward stable), so the rounding of z is treated as one more radius, `SampleNorms.rounding`, of
that size in every layer. A computed product of Jacobians is off by at most `relative` times the product of the factors'
norms, since `|fl(AB) - AB| <= gamma |A||B|` and `|| |A| ||_2 <= sqrt(d) ||A||_2`; that is added to the norm. With skips
a Jacobian is a sum of products, one for each way through the network, and its error at most `relative` times the sum of
the products' norms, with one rounding more for each term (`Skips.extra`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import Network
from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.rounding.passes import CHUNK_NUMBERS
from tvgrad.numerics.floats import TINY, UNIT_ROUNDOFF, gamma, round_up, upper_norm

TOGETHER = 2048  # samples whose layer constants are assembled at once
SQUARINGS = 3  # within 32^(1/32) = 11 % for equal singular values, 0.2 % for most Jacobians
EVALUATION = 64 * UNIT_ROUNDOFF  # an elementwise function of order 1 is within so much: PyTorch's are within a few ulps

Pair = tuple[int, int]
Derivatives = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # first, second, third, at z of each hidden layer


@dataclass(frozen=True)
class SampleNorms:
    """Numbers of one chunk of samples, (n,) each; layers are counted from 0, and pairs are (from, to).

    Attributes:
        logits: (n, C).
        targets: of these samples, as the loss takes them.
        sizes: norm of h_0 .. h_{L-1}, what layers read.
        highest: the largest entry of z of each hidden layer.
        maxima: for (order, l) the largest `|s'|`, `|s''|` or `|s'''|` of layer l, order 1 to 3.
        z_jacobian: `||J_{j,l}||`, j <= l.
        h_jacobian: `||D_l J_{j,l}||`.
        z_columns: the largest column norm of `B_{k,l} = dz_l/dh_k`, k >= 1, in a chain `J_{k,l} W_k`.
        z_columns_second: the same, with column i times `s''_i` of the layer that makes h_k.
        h_columns: the largest column norm of `D_l B_{k,l}`.
        h_columns_second: the same, with column i times `s''_i` of the layer that makes h_k.
        z_gradient: norm of `p_l`.
        h_gradient: for (order, l) the largest `|q_i|` (order 0), `|q_i s''_i|` (2) and `|q_i s'''_i|` (3) of `q_l`.
        curvatures: of the loss at the logits, for `Loss.local`.
        rounding: the radius, layer by layer, that stands for the rounding of z.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    sizes: list[torch.Tensor] = field(default_factory=list)
    highest: list[torch.Tensor] = field(default_factory=list)
    maxima: dict[Pair, torch.Tensor] = field(default_factory=dict)
    z_jacobian: dict[Pair, torch.Tensor] = field(default_factory=dict)
    h_jacobian: dict[Pair, torch.Tensor] = field(default_factory=dict)
    z_columns: dict[Pair, torch.Tensor] = field(default_factory=dict)
    z_columns_second: dict[Pair, torch.Tensor] = field(default_factory=dict)
    h_columns: dict[Pair, torch.Tensor] = field(default_factory=dict)
    h_columns_second: dict[Pair, torch.Tensor] = field(default_factory=dict)
    z_gradient: dict[int, torch.Tensor] = field(default_factory=dict)
    h_gradient: dict[Pair, torch.Tensor] = field(default_factory=dict)
    curvatures: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    rounding: list[float] = field(default_factory=list)


def measure(
    network: Network,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    chunk_size: int | None = None,
    squarings: int = SQUARINGS,
) -> Iterator[SampleNorms]:
    """Measure all samples, a chunk at a time.

    Args:
        network: the network.
        loss: the loss.
        inputs: (n, features), float64.
        targets: checked targets.
        chunk_size: samples at once; None: as many as keep the largest tensor at some 8 MB.
        squarings: of the Gram matrices; fewer are faster and give larger bounds. With none, what an activation does to
            a Jacobian is bounded by its largest derivative.

    Yields:
        The numbers of one chunk.
    """
    if chunk_size is None:
        # J_{j,l} has as many numbers as two layers' widths let it, one such matrix a sample
        rows = max(layer.width for layer in network.layers)
        chunk_size = max(1, min(4096, CHUNK_NUMBERS // rows**2))
    rounding = [4 * gamma(network.widest + 64) * network.widest**0.5 * layer.frobenius_norm for layer in network.layers]
    for start in range(0, len(inputs), chunk_size):
        yield _measure_chunk(
            network, loss, inputs[start : start + chunk_size], targets[start : start + chunk_size], rounding, squarings
        )


def grouped(chunks: Iterable[SampleNorms]) -> list[SampleNorms]:
    """Put chunks together to groups of some thousand samples.

    Args:
        chunks: of one network.

    Returns:
        The groups.
    """
    groups, waiting = [], list[SampleNorms]()
    for chunk in chunks:
        waiting.append(chunk)
        if sum(len(one.logits) for one in waiting) >= TOGETHER:
            groups.append(merged(waiting))
            waiting = []
    return [*groups, merged(waiting)] if waiting else groups


def chosen(norms: SampleNorms, positions: torch.Tensor) -> SampleNorms:
    """The numbers of some of the samples.

    Args:
        norms: of all samples.
        positions: of the samples, (b,).

    Returns:
        Their numbers.
    """
    parts: dict[str, Any] = {}
    for name in (one.name for one in fields(SampleNorms) if one.name != "rounding"):
        value = getattr(norms, name)
        if isinstance(value, torch.Tensor):
            parts[name] = value[positions]
        elif isinstance(value, dict):
            parts[name] = {key: one[positions] for key, one in value.items()}
        else:
            parts[name] = [one[positions] for one in value]
    return SampleNorms(**parts, rounding=norms.rounding)


def merged(chunks: Sequence[SampleNorms]) -> SampleNorms:
    """Put chunks together: their few numbers a sample are small, unlike the matrices they came from.

    Args:
        chunks: at least one, of one network.

    Returns:
        The numbers of all samples.
    """
    parts: dict[str, Any] = {"rounding": chunks[0].rounding}
    for name in (one.name for one in fields(SampleNorms) if one.name != "rounding"):
        values = [getattr(chunk, name) for chunk in chunks]
        if isinstance(values[0], torch.Tensor):
            parts[name] = torch.cat(values)
        elif isinstance(values[0], dict):
            parts[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
        else:
            parts[name] = [torch.cat(each) for each in zip(*values, strict=True)]
    return SampleNorms(**parts)


def _measure_chunk(
    network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, rounding: list[float], squarings: int
) -> SampleNorms:
    layers, skips = network.layers, network.skips
    made, z, highest = [inputs], inputs, list[torch.Tensor]()
    derivatives: Derivatives = []
    for index, layer in enumerate(layers):
        z = torch.addmm(layer.offset, made[skips.reads[index]], layer.matrix.T)
        for k in skips.adds[index]:
            z = z + made[k]
        if index < network.depth - 1:
            s = layer.activation
            highest.append(z.amax(1))
            derivatives.append((s.d1(z), s.d2(z), s.d3(z)))
            made.append(s.value(z))
    sizes = [upper_norm(h, gamma(h.shape[1] + 8)) for h in made]
    found = SampleNorms(z, targets, sizes, highest, curvatures=loss.curvature(z, targets), rounding=rounding)
    for index, values in enumerate(derivatives):
        s = layers[index].activation
        sums = itertools.accumulate((s.b1, s.b2, s.b3))
        for order, (value, bound) in enumerate(zip(values, sums, strict=True), start=1):
            found.maxima[order, index] = value.abs().amax(1) + EVALUATION * bound
    _measure_jacobians(network, found, derivatives, squarings)
    _measure_gradients(network, loss, found, derivatives)
    return found


def _measure_jacobians(network: Network, found: SampleNorms, derivatives: Derivatives, squarings: int) -> None:
    """Norms of all J_{j,l} by walking back from each l: `J_{k-1,l} = B_{k,l} D_{k-1}`, B_{k,l} from what uses h_k."""
    layers, depth, samples = network.layers, network.depth, len(found.logits)
    relative = 8 * depth * gamma(network.widest + 64 + network.skips.extra) * network.widest
    of_z = found.z_columns, found.z_columns_second, found.z_jacobian
    of_h = found.h_columns, found.h_columns_second, found.h_jacobian
    for end in range(depth):
        found.z_jacobian[end, end] = torch.ones(samples, dtype=torch.float64)
        # where the norms go, the factor of the rows, and its largest value
        kinds: list[tuple[Any, torch.Tensor | None, float]] = [(of_z, None, 1.0)]
        if end < depth - 1:
            found.h_jacobian[end, end] = found.maxima[1, end]
            if squarings:
                kinds.append((of_h, derivatives[end][0][:, :, None], layers[end].activation.b1))
        back = _BackwardProducts(network, end)
        for k in range(end, 0, -1):
            s, (first, second, _) = layers[k - 1].activation, derivatives[k - 1]
            step, reach = back.arrived(k)
            product = step * first[:, None, :]
            for (columns, columns_second, jacobian), rows, bound in kinds:
                norms = (step if rows is None else rows * step).square().sum(dim=-2).sqrt()
                error = relative * reach * bound + TINY
                columns[k, end] = (norms.amax(-1) + error).expand(samples)
                columns_second[k, end] = (norms * second.abs()).amax(1) + error * (s.b1 + s.b2)
                measured = spectral_norms(product if rows is None else rows * product, squarings)
                jacobian[k - 1, end] = measured + relative * (reach * s.b1) * bound
            if end < depth - 1 and not squarings:  # a diagonal factor of the rows: at most its largest entry times
                for wide, plain in zip(of_h, of_z, strict=True):
                    pair = (k, end) if plain is not found.z_jacobian else (k - 1, end)
                    wide[pair] = round_up(found.maxima[1, end] * plain[pair], 4 * UNIT_ROUNDOFF)
            back.send(k - 1, product, reach * s.b1)


class _BackwardProducts:
    """Derivatives of one z_l in each h_k, on the way back from it: what reads or adds h_k sends its share there."""

    def __init__(self, network: Network, end: int) -> None:
        self.network, self.end = network, end
        self.waiting: dict[int, tuple[torch.Tensor, float]] = {}
        self.send(end, torch.eye(network.layers[end].width, dtype=torch.float64), 1.0)

    def send(self, index: int, product: torch.Tensor, reach: float) -> None:
        """Send a layer's J to what it reads and adds.

        Args:
            index: the layer.
            product: its J, (n, outputs, width) or without n.
            reach: a bound of the sum of the norms of the products that J is the sum of.
        """
        layer, source = self.network.layers[index], self.network.skips.reads[index]
        shares = [(k, product, reach) for k in self.network.skips.adds[index] if k]
        if source:
            shares.insert(0, (source, product @ layer.matrix, reach * layer.spectral_norm))
        for k, share, its_reach in shares:
            known = self.waiting.get(k)
            self.waiting[k] = (share, its_reach) if known is None else (known[0] + share, known[1] + its_reach)

    def arrived(self, k: int) -> tuple[torch.Tensor, float]:
        """Take what was sent to h_k.

        Args:
            k: which h.

        Returns:
            B_{k,l}, zero where nothing was sent, and its reach.
        """
        layers = self.network.layers
        nothing = torch.zeros(layers[self.end].width, layers[k - 1].width, dtype=torch.float64)
        return self.waiting.pop(k, (nothing, 0.0))


def _measure_gradients(network: Network, loss: Loss, found: SampleNorms, derivatives: Derivatives) -> None:
    """Norms of p_l and q_l; their rounding is added where they are widened."""
    layers, last = network.layers, network.depth - 1
    p = {last: loss.residual(found.logits, found.targets)[0]}
    for index in range(last, -1, -1):
        if index < last:
            first, second, third = derivatives[index]
            terms = network.skips.collect(index + 1, lambda m: p[m] @ layers[m].matrix, p.__getitem__)
            q = sum(terms[1:], terms[0])
            p[index] = q * first
            size = q.abs()
            found.h_gradient[0, index] = size.amax(1)
            found.h_gradient[2, index] = (size * second.abs()).amax(1)
            found.h_gradient[3, index] = (size * third.abs()).amax(1)
        found.z_gradient[index] = upper_norm(p[index], gamma(p[index].shape[1] + 8))
