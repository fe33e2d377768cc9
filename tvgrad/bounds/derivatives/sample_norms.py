r"""What is measured once, at the centre of a ball, for each sample: magnitudes, Jacobian norms, residuals carried back.

With `J_{j,l} = dz_l/dz_j`, `D_l = diag s'(z_l)`, `p_l = dloss/dz_l` and `q_l = dloss/dh_l` (in a chain
`W_{l+1}' p_{l+1}`) these numbers, a few for each sample and pair of layers, are all that the local constants need; the
matrices themselves live for one chunk.

Rounding. A computed affine map is the exact one of a network whose weights differ by at most `gamma ||[W, b]||_F`
(each inner product is backward stable), so the rounding of z is treated as one more radius, `Measured.slack`, of that
size in every layer. A computed product of Jacobians is off by at most `relative` times the product of the factors'
norms, since `|fl(AB) - AB| <= gamma |A||B|` and `|| |A| ||_2 <= sqrt(d) ||A||_2`; that is added to the norm. With skips
a Jacobian is a sum of products, one for each way through the network, and its error at most `relative` times the sum of
the products' norms, with one rounding more for each term (`Wiring.extra`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import Network
from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma

CHUNK_NUMBERS = 1_000_000  # float64 numbers in the largest tensor of a chunk, which then stays in the cache: 8 MB
SQUARINGS = 3  # within 32^(1/32) = 11 % for equal singular values, 0.2 % for most Jacobians
EVALUATION = 64 * UNIT_ROUNDOFF  # an elementwise function of order 1 is within so much: PyTorch's are within a few ulps

Pair = tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """Numbers of one chunk of samples, each of shape (n,); layers are counted from 0, and pairs are (from, to).

    Attributes:
        logits: (n, C).
        targets: of these samples, as the loss takes them.
        sizes: norm of h_0 .. h_{L-1}, what layers read.
        slopes: `max |s'(z_l)|`; bends `max |s''|`, twists `max |s'''|`.
        bends: see slopes.
        twists: see slopes.
        jacobian: `||J_{j,l}||`, j <= l.
        sloped: `||D_l J_{j,l}||`.
        columns: the largest column norm of `B_{k,l} = dz_l/dh_k`, k >= 1, in a chain `J_{k,l} W_k`; bent: with column i
            times `s''_i` of the layer that makes h_k.
        bent: see columns.
        sloped_columns: the same as columns, for `D_l B_{k,l}`.
        sloped_bent: the same as bent, for `D_l B_{k,l}`.
        residual: norm of `p_l`.
        pulled: `max_i |q_i|` of `q_l`; pulled_bent `max_i |q_i s''_i|`, pulled_twisted `max_i |q_i s'''_i|`.
        pulled_bent: see pulled.
        pulled_twisted: see pulled.
        curvatures: of the loss at the logits, for `Loss.local`.
        slack: the radius, layer by layer, that stands for the rounding of z.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    sizes: list[torch.Tensor] = field(default_factory=list)
    slopes: list[torch.Tensor] = field(default_factory=list)
    bends: list[torch.Tensor] = field(default_factory=list)
    twists: list[torch.Tensor] = field(default_factory=list)
    jacobian: dict[Pair, torch.Tensor] = field(default_factory=dict)
    sloped: dict[Pair, torch.Tensor] = field(default_factory=dict)
    columns: dict[Pair, torch.Tensor] = field(default_factory=dict)
    bent: dict[Pair, torch.Tensor] = field(default_factory=dict)
    sloped_columns: dict[Pair, torch.Tensor] = field(default_factory=dict)
    sloped_bent: dict[Pair, torch.Tensor] = field(default_factory=dict)
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    pulled: dict[int, torch.Tensor] = field(default_factory=dict)
    pulled_bent: dict[int, torch.Tensor] = field(default_factory=dict)
    pulled_twisted: dict[int, torch.Tensor] = field(default_factory=dict)
    curvatures: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    slack: list[float] = field(default_factory=list)


def measure(
    network: Network,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    chunk_size: int | None = None,
    squarings: int = SQUARINGS,
) -> Iterator[Measured]:
    """Measure all samples, a chunk at a time.

    Args:
        network: the network.
        loss: the loss.
        inputs: (n, features), float64.
        targets: checked targets.
        chunk_size: samples at once; None: as many as keep the largest tensor at some 8 MB.
        squarings: of the Gram matrices; fewer are faster and give larger bounds.

    Yields:
        The numbers of one chunk.
    """
    if chunk_size is None:
        # J_{m,l} has at most (largest hidden width) x (widest) numbers, one such matrix a sample.
        rows = max(layer.width for layer in network.layers)
        chunk_size = max(1, min(4096, CHUNK_NUMBERS // (rows * network.widest)))
    slack = [4 * gamma(network.widest + 64) * network.widest**0.5 * layer.frobenius_norm for layer in network.layers]
    for start in range(0, len(inputs), chunk_size):
        yield _measure_chunk(
            network, loss, inputs[start : start + chunk_size], targets[start : start + chunk_size], slack, squarings
        )


def merged(chunks: Sequence[Measured]) -> Measured:
    """Put chunks together: their few numbers a sample are small, unlike the matrices they came from.

    Args:
        chunks: at least one, of one network.

    Returns:
        The numbers of all samples.
    """
    first = chunks[0]
    parts: dict[str, Any] = {"slack": first.slack}
    for name in (one.name for one in fields(Measured) if one.name != "slack"):
        values = [getattr(chunk, name) for chunk in chunks]
        if isinstance(values[0], torch.Tensor):
            parts[name] = torch.cat(values)
        elif isinstance(values[0], dict):
            parts[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
        else:
            parts[name] = [torch.cat(each) for each in zip(*values, strict=True)]
    return Measured(**parts)


def _measure_chunk(
    network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, slack: list[float], squarings: int
) -> Measured:
    layers, depth = network.layers, network.depth
    sizes, firsts, seconds, thirds = [], [], [], []
    wiring = network.wiring
    made = [inputs]
    z = inputs
    for index, layer in enumerate(layers):
        sizes.append(made[-1].norm(dim=1))
        z = torch.addmm(layer.offset, made[wiring.reads[index]], layer.matrix.T)
        for k in wiring.adds[index]:
            z = z + made[k]
        if index < depth - 1:
            s = layer.activation
            firsts.append(s.d1(z))
            seconds.append(s.d2(z))
            thirds.append(s.d3(z))
            made.append(s.value(z))
    found = Measured(z, targets, sizes, curvatures=loss.curvature(z, targets), slack=slack)
    for index in range(depth - 1):
        s = layers[index].activation
        found.slopes.append(firsts[index].abs().amax(1) + EVALUATION * s.b1)
        found.bends.append(seconds[index].abs().amax(1) + EVALUATION * (s.b2 + s.b1))
        found.twists.append(thirds[index].abs().amax(1) + EVALUATION * (s.b3 + s.b2 + s.b1))
    relative = 8 * depth * gamma(network.widest + 64 + wiring.extra) * network.widest
    _jacobians(network, found, firsts, seconds, relative, squarings)
    _residuals(network, loss, found, firsts, seconds, thirds)
    return found


def _column_norms(matrix: torch.Tensor) -> torch.Tensor:
    """Norms of the columns of each matrix; a matrix without a batch dimension stands for all samples."""
    return matrix.square().sum(dim=-2).sqrt()


def _jacobians(
    network: Network,
    found: Measured,
    firsts: list[torch.Tensor],
    seconds: list[torch.Tensor],
    relative: float,
    squarings: int,
) -> None:
    """Norms of all J_{j,l} by walking back from each l: `J_{k-1,l} = B_{k,l} D_{k-1}`, B_{k,l} from what reads h_k."""
    layers, depth, samples = network.layers, network.depth, len(found.logits)
    ones = torch.ones(samples, dtype=torch.float64)
    for end in range(depth):
        hidden = end < depth - 1
        b1 = layers[end].activation.b1
        found.jacobian[end, end] = ones
        found.sloped[end, end] = found.slopes[end] if hidden else ones
        back = _Back(network)
        back.through(end, None, 1.0)
        for k in range(end, 0, -1):
            s = layers[k - 1].activation
            bend = seconds[k - 1].abs()
            step, reach = back.arrived(k, layers[end].width)
            error = relative * reach
            norms = _column_norms(step)
            found.columns[k, end] = (norms.amax(-1) + error).expand(samples)
            found.bent[k, end] = (norms * bend).amax(1) + error * (s.b1 + s.b2)
            if hidden:
                norms = _column_norms(firsts[end][:, :, None] * step)
                found.sloped_columns[k, end] = norms.amax(1) + error * b1
                found.sloped_bent[k, end] = (norms * bend).amax(1) + error * b1 * (s.b1 + s.b2)
            product = step * firsts[k - 1][:, None, :]
            reach *= s.b1
            error = relative * reach
            found.jacobian[k - 1, end] = spectral_norms(product, squarings) + error
            if hidden:
                found.sloped[k - 1, end] = spectral_norms(firsts[end][:, :, None] * product, squarings) + error * b1
            back.through(k - 1, product, reach)


class _Back:
    """Derivatives of one z_l in each h_k, on the way back from it: what reads or adds h_k sends its share there."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.waiting: dict[int, tuple[torch.Tensor, float]] = {}

    def through(self, index: int, product: torch.Tensor | None, reach: float) -> None:
        """Send a layer's J to what it reads and adds.

        Args:
            index: the layer.
            product: its J, (n, outputs, width) or without n; None: the identity.
            reach: a bound of the sum of the norms of the products that J is the sum of.
        """
        layer, wiring = self.network.layers[index], self.network.wiring
        if wiring.reads[index]:
            step = layer.matrix if product is None else product @ layer.matrix
            self._send(wiring.reads[index], step, reach * layer.spectral_norm)
        for k in wiring.adds[index]:
            if k:
                unit = torch.eye(layer.width, dtype=torch.float64) if product is None else product
                self._send(k, unit, reach)

    def arrived(self, k: int, rows: int) -> tuple[torch.Tensor, float]:
        """Take what was sent to h_k.

        Args:
            k: which h.
            rows: the width of z_l, for a zero where nothing was sent.

        Returns:
            B_{k,l} and its reach.
        """
        if k not in self.waiting:
            return torch.zeros(rows, self.network.layers[k - 1].width, dtype=torch.float64), 0.0
        return self.waiting.pop(k)

    def _send(self, k: int, step: torch.Tensor, reach: float) -> None:
        if k in self.waiting:
            step, reach = self.waiting[k][0] + step, self.waiting[k][1] + reach
        self.waiting[k] = step, reach


def _residuals(
    network: Network,
    loss: Loss,
    found: Measured,
    firsts: list[torch.Tensor],
    seconds: list[torch.Tensor],
    thirds: list[torch.Tensor],
) -> None:
    """Norms of p_l and q_l; their rounding is added where they are widened."""
    p, _ = loss.residual(found.logits, found.targets)
    wiring = network.wiring
    sent: dict[int, list[torch.Tensor]] = {k: [] for k in range(network.depth)}
    for end in range(network.depth - 1, -1, -1):
        found.residual[end] = p.norm(dim=1)
        if end:
            if wiring.reads[end]:
                sent[wiring.reads[end]].append(p @ network.layers[end].matrix)
            for k in wiring.adds[end]:
                sent[k].append(p)
            first, *rest = sent.pop(end)
            q = sum(rest, first)
            size = q.abs()
            found.pulled[end - 1] = size.amax(1)
            found.pulled_bent[end - 1] = (size * seconds[end - 1].abs()).amax(1)
            found.pulled_twisted[end - 1] = (size * thirds[end - 1].abs()).amax(1)
            p = q * firsts[end - 1]
