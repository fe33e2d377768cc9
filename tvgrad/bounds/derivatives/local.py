r"""Local constants: what the samples' own Jacobians, residuals and activations say, instead of products of norms.

For each sample, with the notation of `sample_norms`, `c_l = (||J_{j,l}|| At_{j-1})_j` bounds the change of
z_l and `a_l = (||D_l J_{j,l}|| At_{j-1})_j` that of h_l, layer of the direction by layer. Differentiating
`z_m = W_m h_{m-1} + b_m` twice, and carrying each layer's part to layer l by its Jacobian,

    M_l = sum_{m=2..l} ||J_{m,l}|| (e_m a_{m-1}' + a_{m-1} e_m') + colmax(J_{m,l} W_m diag s''_{m-1}) c_{m-1} c_{m-1}'

(colmax suffices: the entrywise product of zdot(U) and zdot(V) has a 1-norm of at most the product of their norms, and
a matrix maps the 1-norm ball into the hull of its columns). N_l is the same with D_l J_{m,l}, plus
`max|s''_l| c_l c_l'`. With the residuals carried back once,

    H  = K c_L c_L' + sum_{m=2..L} ||p_m|| (e_m a_{m-1}' + a_{m-1} e_m') + max_i|q_i s''_i| c_{m-1} c_{m-1}'
    D3 = L3 c_L^3 + K Sym3(c_L, M_L) + sum_{m=2..L} ||p_m|| Sym3(e_m, N_{m-1})
         + max_i|q_i s'''_i| c_{m-1}^3 + max_i|q_i s''_i| Sym3(c_{m-1}, M_{m-1})        (q, s, M of layer m-1).

With skips the same holds with the h that layer m reads in the place of h_{m-1}, the last terms summed over every hidden
layer instead of over m: what an activation bends arrives at z_l through all that reads or adds its h, so that in the
place of `J_{m,l} W_m` and `W_m' p_m` stand `dz_l/dh_k = sum_{m reads h_k} J_{m,l} W_m + sum_{m adds h_k} J_{m,l}` and
q, the same sum for the loss.

Over a ball of radius R every number is widened by how much it can change: a step of size R moves z_l by at most
`dz_l = R At_{l-1}(R) + s_l dh_{l-1}`, and by at most R times the norm of c_l(R), a Jacobian by
`dJ_{j,l} = R ||D J||(R) + s_l ( min(2 b1, b2 dz) ||J_0|| + |s'| dJ_{j,l-1} )`, and so on, always with the centre's
matrix times the change of its argument plus the matrix's change times the argument anywhere in the ball; each is capped
by the product of norms that holds everywhere. What a skip adds changes by its own change, and has it added to the cap.
The rounding of z enters as one more radius (`Measured.slack`), that of the sums as a few u of the norms that meet.

How much D3 itself changes. D3 is a sum of products of the factors above, each of norm at most a at the centre, where it
changes by at most d(R) over the ball. A product then changes by at most the product of the a + d(R) minus that of the
a. Without the caps, and with whichever of two arguments is smaller at R kept for smaller radii, every d is made of the
radius by sums, products and roots of sums of squares of nonnegative numbers: all of it is nonnegative, grows, and is
convex, and so is the difference. Over a part t of the way to R it is at most 1 - t times what it is at 0 plus t times
what it is at R. At 0 it is rounding: what was measured belongs to weights that differ by the rounding radius, so that
the same difference once more leads to the exact centre. There the larger of two arguments is taken, which covers both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tvgrad.bounds.derivatives.sample_norms import EVALUATION, Measured, Pair
from tvgrad.bounds.derivatives.worst_case import LayerBounds, layer_stretch, magnitudes, perturbation
from tvgrad.bounds.losses.base import LocalLoss, Loss
from tvgrad.bounds.network.network import Network
from tvgrad.numerics.floats import UNIT_ROUNDOFF

Vector = torch.Tensor


def local_bounds(
    network: Network, loss: Loss, measured: Sequence[Measured], divisor: float, radius: float = 0.0, third: bool = True
) -> LayerBounds:
    """Bound the derivatives of the mean loss over a ball round the weights that were measured.

    Args:
        network: the network that was measured.
        loss: the loss.
        measured: all chunks of the data.
        divisor: of the mean loss.
        radius: of the ball, in the trainable parameters.
        third: whether third derivatives are wanted.

    Returns:
        The constants of all layers.
    """
    depth = network.depth
    gradient = torch.zeros(depth, dtype=torch.float64)
    hessian = torch.zeros(depth, depth, dtype=torch.float64)
    cubes = torch.zeros(depth, depth, depth, dtype=torch.float64) if third else None
    samples = 0
    for chunk in measured:
        samples += len(chunk.logits)
        parts = _Assembly(network, loss, chunk, radius)
        gradient += parts.gradient() / divisor
        hessian += parts.hessian() / divisor
        if cubes is not None:
            cubes += parts.third() / divisor
    return LayerBounds(gradient, hessian, cubes, network.margin(samples))


def third_measured(network: Network, loss: Loss, measured: Sequence[Measured], divisor: float) -> torch.Tensor:
    """Sum up what the third derivative's bound is for the numbers as they were measured.

    Args:
        network: the network that was measured.
        loss: the loss.
        measured: all chunks of the data.
        divisor: of the mean loss.

    Returns:
        (L, L, L), what `third_changes` compares with.
    """
    zeros = torch.zeros((network.depth,) * 3, dtype=torch.float64)
    return sum((_Assembly(network, loss, chunk, None).third() / divisor for chunk in measured), zeros)


def third_changes(
    network: Network, loss: Loss, measured: Sequence[Measured], divisor: float, radius: float, centre: torch.Tensor
) -> LayerBounds:
    """Bound how much the third derivative of the mean loss changes over a ball round the weights that were measured.

    Args:
        network: the network that was measured.
        loss: the loss.
        measured: all chunks of the data.
        divisor: of the mean loss.
        radius: of the ball, in the trainable parameters.
        centre: of `third_measured`.

    Returns:
        Bounds of the blocks of `D3(a) - D3(b)`, b the weights that were measured with their rounding: at the radius
        for a anywhere in the ball, at 0 for a the exact centre. Convex in the radius. Gradient and Hessian are zero.
    """
    zeros = torch.zeros((network.depth,) * 3, dtype=torch.float64)
    wide = (_Assembly(network, loss, chunk, radius, capped=False).third() / divisor for chunk in measured)
    total = sum(wide, zeros)
    margin = network.margin(sum(len(chunk.logits) for chunk in measured))
    # the difference cancels: its rounding is relative to what it is a difference of
    return LayerBounds(zeros[0, 0], zeros[0], (total - centre).clamp(min=0) + 2 * margin * total, margin)


@dataclass(frozen=True)
class _Widened:
    """The numbers of `Measured`, valid anywhere in a ball; the same names, and loss bounds there."""

    steps: list[Vector]  # At of each layer: how far a unit step in its parameters moves its z
    bends: list[Vector]
    twists: list[Vector]
    jacobian: dict[Pair, Vector]
    sloped: dict[Pair, Vector]
    bent: dict[Pair, Vector]
    sloped_bent: dict[Pair, Vector]
    residual: dict[int, Vector]
    pulled_bent: dict[int, Vector]
    pulled_twisted: dict[int, Vector]
    loss: LocalLoss


def _unmoved(network: Network, loss: Loss, at: Measured) -> _Widened:
    """The numbers as they were measured."""
    steps = [perturbation(network, end, at.sizes[source]) for end, source in enumerate(network.wiring.reads)]
    local = loss.local(at.logits, at.targets, 0.0, at.curvatures)
    return _Widened(
        steps, at.bends, at.twists, at.jacobian, at.sloped, at.bent, at.sloped_bent,
        at.residual, at.pulled_bent, at.pulled_twisted, local,
    )  # fmt: skip


def _uncapped(loss: Loss, at: Measured, moved: Vector) -> LocalLoss:
    """The loss's bounds at the logits, each with what it changes by over a distance."""
    local = loss.local(at.logits, at.targets, 0.0, at.curvatures)
    uniform = loss.uniform(at.targets, at.logits.shape[1], 0.0)
    hessian = (local.hessian + uniform.third * moved) * (1 + 8 * UNIT_ROUNDOFF)
    third = (local.third + loss.fourth(hessian, uniform.hessian) * moved) * (1 + 8 * UNIT_ROUNDOFF)
    return replace(local, hessian=hessian, third=third)


def _widen(network: Network, loss: Loss, at: Measured, radius: float, capped: bool = True) -> _Widened:
    layers, depth, wiring = network.layers, network.depth, network.wiring
    least = torch.minimum if capped else _first
    ones = torch.ones(len(at.logits), dtype=torch.float64)
    zeros = torch.zeros_like(ones)
    # of two arguments the better one; at the centre of uncapped numbers the worse, which then covers both
    better = torch.maximum if not capped and radius == 0 else torch.minimum
    everywhere, _ = magnitudes(network, at.sizes[0], radius)
    stretch = [layer_stretch(network, index, radius) + at.slack[index] for index in range(depth)]
    grown = [layers[index].moves_weight * radius + at.slack[index] for index in range(depth)]
    norms = [layer.spectral_norm for layer in layers]

    moved: list[Vector] = []  # dz_l
    slopes: list[Vector] = []
    bends: list[Vector] = []
    twists: list[Vector] = []
    slope_change: list[Vector] = []
    bend_change: list[Vector] = []
    twist_change: list[Vector] = []
    steps: list[Vector] = []
    sizes: list[Vector] = []  # of h_k, how much it changes, and how much of that is rounding
    carried, dust = [zeros], [zeros]
    jacobian: dict[Pair, Vector] = {}
    sloped: dict[Pair, Vector] = {}
    change: dict[Pair, Vector] = {}
    sloped_change: dict[Pair, Vector] = {}
    limit: dict[Pair, Vector] = {}
    for end, layer in enumerate(layers):
        sizes.append(least(at.sizes[end] + carried[end], everywhere[end] * (1 + 1e-12)))
        source, added = wiring.reads[end], wiring.adds[end]
        steps.append(perturbation(network, end, sizes[source]))
        if not capped:  # a root of squares grows by less than what changes in it
            steps[end] = perturbation(network, end, at.sizes[source]) + layer.moves_weight * carried[source]
        change[end, end], jacobian[end, end], limit[end, end] = zeros, ones, ones
        for j in range(end):
            change[j, end] = limit[j, end] = zeros
            before = source - 1  # the layer that makes what this one reads
            if before >= j:
                change[j, end] = grown[end] * sloped[j, before] + norms[end] * sloped_change[j, before]
                limit[j, end] = limit[j, before] * stretch[end] * slopes[before]
            for before in (k - 1 for k in added if k > j):
                change[j, end] = change[j, end] + sloped_change[j, before]
                limit[j, end] = limit[j, end] + limit[j, before] * slopes[before]
            jacobian[j, end] = least(at.jacobian[j, end] + change[j, end], limit[j, end])
        terms = sum((sizes[k] for k in added), norms[end] * sizes[source] + layer.offset_norm)
        slack = at.slack[end] * torch.hypot(sizes[source], ones) + 2 * len(added) * UNIT_ROUNDOFF * terms
        dz = radius * steps[end] + slack + norms[end] * carried[source]
        dz = sum((carried[k] for k in added), dz)
        rounding = sum((dust[k] for k in added), slack + norms[end] * dust[source])
        moved.append(better(dz, _along_ball(radius, jacobian, steps, end) + rounding))
        if end == depth - 1:
            break
        s, dz = layer.activation, moved[end]
        slope_change.append(least(s.b2 * dz, 2 * s.b1 * ones))
        bend_change.append(least(s.b3 * dz, 2 * s.b2 * ones))
        twist_change.append(least(s.b4 * dz, 2 * s.b3 * ones))
        slopes.append(least(at.slopes[end] + slope_change[end], s.b1 * ones))
        bends.append(least(at.bends[end] + bend_change[end], s.b2 * ones))
        twists.append(least(at.twists[end] + twist_change[end], s.b3 * ones))
        for j in range(end + 1):
            sloped_change[j, end] = slope_change[end] * at.jacobian[j, end] + slopes[end] * change[j, end]
            sloped[j, end] = least(at.sloped[j, end] + sloped_change[j, end], limit[j, end] * slopes[end])
        # |s(z + d) - s(z)| <= |s'| |d| + b2 d^2 / 2, entry by entry
        change_of_h = better(s.b1 * dz, at.slopes[end] * dz + 0.5 * s.b2 * dz.square())
        change_of_h = better(change_of_h, _along_ball(radius, sloped, steps, end) + s.b1 * rounding)
        entering = sum((sizes[k] for k in added), sizes[source])
        evaluation = EVALUATION * torch.hypot(entering, ones * layer.width**0.5)
        carried.append(change_of_h + evaluation)
        dust.append(s.b1 * rounding + evaluation)

    bent, sloped_bent = {}, {}
    for k in range(1, depth):
        for end in range(k, depth):
            # dz_end/dh_k: how much it changes, and its norm anywhere
            readers, adders = ([m for m in all_of if m <= end] for all_of in (wiring.readers[k], wiring.adders[k]))
            wide = sum((change[m, end] * stretch[m] + at.jacobian[m, end] * grown[m] for m in readers), zeros)
            wide = sum((change[m, end] for m in adders), wide)
            whole = sum((jacobian[m, end] * stretch[m] for m in readers), zeros)
            whole = sum((jacobian[m, end] for m in adders), whole)
            bent[k, end] = least(
                at.bent[k, end] + at.columns[k, end] * bend_change[k - 1] + wide * bends[k - 1], whole * bends[k - 1]
            )
            if end < depth - 1:
                wide = sum((sloped_change[m, end] * stretch[m] + at.sloped[m, end] * grown[m] for m in readers), zeros)
                wide = sum((sloped_change[m, end] for m in adders), wide)
                whole = sum((sloped[m, end] * stretch[m] for m in readers), zeros)
                whole = sum((sloped[m, end] for m in adders), whole)
                sloped_bent[k, end] = least(
                    at.sloped_bent[k, end] + at.sloped_columns[k, end] * bend_change[k - 1] + wide * bends[k - 1],
                    whole * bends[k - 1],
                )

    local = loss.local(at.logits, at.targets, moved[-1], at.curvatures) if capped else _uncapped(loss, at, moved[-1])
    start = at.residual[depth - 1] + local.residual_error
    drift = least(local.hessian * moved[-1], start + local.gradient) + local.residual_error
    residual, strayed, pulled_bent, pulled_twisted = {}, {}, {}, {}
    inexact = [at.slack[end] / max(norms[end], 1e-300) for end in range(depth)]
    reach: dict[int, Vector] = {}
    for m in range(depth - 1, -1, -1):
        # What was measured at m went through the products behind it, each rounded relative to its factors' norms.
        reach[m] = start
        if m < depth - 1:
            products = sum((reach[r] * stretch[r] for r in wiring.readers[m + 1]), zeros)
            reach[m] = sum((reach[r] for r in wiring.adders[m + 1]), products) * layers[m].activation.b1
        relative = 4 * (sum(inexact[m + 1 :]) + depth * wiring.extra * UNIT_ROUNDOFF)
        strayed[m] = jacobian[m, depth - 1] * drift + change[m, depth - 1] * start + relative * reach[m]
        residual[m] = least(at.residual[m] + strayed[m], jacobian[m, depth - 1] * local.gradient)
    for k in range(1, depth):
        dq = sum((grown[m] * residual[m] + norms[m] * strayed[m] for m in wiring.readers[k]), zeros)
        dq = sum((strayed[m] for m in wiring.adders[k]), dq)
        whole = sum((stretch[m] * residual[m] for m in wiring.readers[k]), zeros)
        whole = sum((residual[m] for m in wiring.adders[k]), whole)
        pulled_bent[k - 1] = least(
            at.pulled_bent[k - 1] + at.pulled[k - 1] * bend_change[k - 1] + dq * bends[k - 1], whole * bends[k - 1]
        )
        pulled_twisted[k - 1] = least(
            at.pulled_twisted[k - 1] + at.pulled[k - 1] * twist_change[k - 1] + dq * twists[k - 1],
            whole * twists[k - 1],
        )
    return _Widened(
        steps, bends, twists, jacobian, sloped, bent, sloped_bent, residual, pulled_bent, pulled_twisted, local
    )


def _along_ball(radius: float, norms: dict[Pair, Vector], steps: list[Vector], end: int) -> Vector:
    """R times a bound of the derivative anywhere on the way, all layers' steps together (mean value theorem)."""
    return radius * sum(((norms[j, end] * steps[j]).square() for j in range(end + 1)), 0.0 * steps[end]).sqrt()


def _first(value: Vector, _cap: Vector) -> Vector:
    return value


class _Assembly:
    """The small vectors, matrices and tensors of one chunk, summed over its samples."""

    def __init__(
        self, network: Network, loss: Loss, measured: Measured, radius: float | None, capped: bool = True
    ) -> None:
        self.network = network
        if radius is None:
            self.wide = _unmoved(network, loss, measured)
        else:
            self.wide = _widen(network, loss, measured, radius, capped)
        self.samples = len(measured.logits)
        depth = network.depth
        # c_l for all layers, a_l for the hidden ones, (n, L) each
        self.c = [self._row(self.wide.jacobian, end) for end in range(depth)]
        self.a = [self._row(self.wide.sloped, end) for end in range(depth - 1)]

    def _row(self, norms: dict[Pair, Vector], end: int) -> torch.Tensor:
        row = torch.zeros(self.samples, self.network.depth, dtype=torch.float64)
        for j in range(end + 1):
            row[:, j] = norms[j, end] * self.wide.steps[j]
        return row

    @property
    def _inner(self) -> list[int]:
        """The layers that read the h of another, and not the input."""
        return [m for m, source in enumerate(self.network.wiring.reads) if source]

    def _crossed(self, m: int) -> torch.Tensor:
        """`e_m a' + a e_m'` with a of the h that layer m reads, zero where W_m is frozen."""
        a = self.network.layers[m].moves_weight * self.a[self.network.wiring.reads[m] - 1]
        crossed = torch.zeros(self.samples, self.network.depth, self.network.depth, dtype=torch.float64)
        crossed[:, m, :] += a
        crossed[:, :, m] += a
        return crossed

    def _second(self, end: int, norms: dict[Pair, Vector], columns: dict[Pair, Vector]) -> torch.Tensor:
        """M_l, or N_l without its last term, (n, L, L)."""
        total = torch.zeros(self.samples, self.network.depth, self.network.depth, dtype=torch.float64)
        for m in self._inner:
            if m <= end and self.network.layers[m].moves_weight:
                total += norms[m, end][:, None, None] * self._crossed(m)
        for k in range(1, end + 1):
            total += columns[k, end][:, None, None] * _square(self.c[k - 1])
        return total

    def gradient(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L,)."""
        wide = self.wide
        return torch.stack([(wide.residual[m] * wide.steps[m]).sum() for m in range(self.network.depth)])

    def hessian(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L, L)."""
        wide = self.wide
        last = self.c[-1]
        total = torch.einsum("n,na,nb->ab", wide.loss.hessian, last, last)
        for m in self._inner:
            total += torch.einsum("n,nab->ab", wide.residual[m], self._crossed(m))
        for hidden, c in enumerate(self.c[:-1]):
            total += torch.einsum("n,na,nb->ab", wide.pulled_bent[hidden], c, c)
        return total

    def third(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L, L, L)."""
        wide, depth = self.wide, self.network.depth
        last = self.c[-1]
        total = torch.einsum("n,na,nb,nc->abc", wide.loss.third, last, last, last)
        total += _sym3_sum(wide.loss.hessian, last, self._second(depth - 1, wide.jacobian, wide.bent))
        for hidden, c in enumerate(self.c[:-1]):
            total += torch.einsum("n,na,nb,nc->abc", wide.pulled_twisted[hidden], c, c, c)
            total += _sym3_sum(wide.pulled_bent[hidden], c, self._second(hidden, wide.jacobian, wide.bent))
            readers = [m for m in self.network.wiring.readers[hidden + 1] if self.network.layers[m].moves_weight]
            if not readers:
                continue
            bent = self._second(hidden, wide.sloped, wide.sloped_bent)
            bent += wide.bends[hidden][:, None, None] * _square(c)
            for m in readers:
                unit = torch.zeros(self.samples, depth, dtype=torch.float64)
                unit[:, m] = self.network.layers[m].moves_weight
                total += _sym3_sum(wide.residual[m], unit, bent)
        return total


def _square(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, :, None] * vector[:, None, :]


def _sym3_sum(weights: torch.Tensor, vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The weighted sum of Sym3(vector, matrix) over the samples; Sym3 is linear in their product."""
    product = torch.einsum("n,na,nbc->abc", weights, vector, matrix)
    return product + product.transpose(0, 1) + product.transpose(0, 1).transpose(1, 2)
