r"""Worst-case constants of a feed-forward network, from norms alone, layer by layer.

For one sample with `A_l >= ||h_l||` and `At_l >= sqrt(A_l^2 + 1)` (without the 1 where no bias is trained, without A_l
where no weight is), `s_l >= ||W_l||_2` and parameter directions U, V, W whose parts in layer l have norms u_l, v_l, w_l
(weight and bias together, so that `||U_l h + beta_l|| <= u_l At_{l-1}` by Cauchy-Schwarz):

- `||zdot_l(U)|| <= c_l . u` with `c_l = At_{l-1} e_l + s_l b1 c_{l-1}`: differentiate `z_l = W_l s(z_{l-1}) + b_l`.
- `||zddot_l(U,V)|| <= u' M_l v` with `M_1 = 0`, `M_l = b1 (e_l c_{l-1}' + c_{l-1} e_l') + s_l N_{l-1}`, where
  `N_l = b2 c_l c_l' + b1 M_l` bounds the second derivative of `h_l = s(z_l)`: `hddot = s'' zdot zdot + s' zddot`,
  and the product of two vectors, entry by entry, has at most the product of their norms.
- `||zdddot_l(U,V,W)|| <= T_l[u,v,w]` with `T_1 = 0` and
  `T_l = Sym3(e_l, N_{l-1}) + s_l ( b3 c o c o c + b2 Sym3(c, M_{l-1}) + b1 T_{l-1} )`, c = c_{l-1}:
  differentiate once more; Sym3(a, B) sums the three ways to give one direction to a and two to B.
- where h_k is added to z_l, its derivatives are added to those of z_l: `b1 c_k` to c_l, N_k to M_l, and the bracket of
  T with k in the place of l-1 to T_l. A layer that reads another h than the last has that one in the place of l-1.

The loss adds `G`, `K`, `L3`, bounds of its first three derivatives in the logits: the gradient is at most `G c_L`,
layer by layer, the Hessian `K c_L c_L' + G M_L`, the third derivative `L3 c_L o c_L o c_L + K Sym3(c_L, M_L) + G T_L`.
These small vectors, matrices and tensors are averaged over the samples *before* a norm is taken, which is never larger
than the average of the norms. Over a ball of radius R round the weights every `s_l` and every offset grows by R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tvgrad.bounds.losses.base import Loss, LossBounds
from tvgrad.bounds.network.network import Network
from tvgrad.numerics.floats import TINY, UNIT_ROUNDOFF, round_up

CHUNK = 4096


@dataclass(frozen=True)
class LayerBounds:
    """Bounds of the mean loss over a ball, layer by layer: entry l is about directions of unit norm in layer l alone.

    All entries are nonnegative, computed without cancellation and not yet rounded up: the methods round up.

    Attributes:
        gradient: (L,), norms of the gradient's parts.
        hessian: (L, L), norms of the Hessian's blocks.
        third: (L, L, L), norms of the third derivative's blocks; None where it was not asked for.
        margin: relative rounding error of the entries at most.
    """

    gradient: torch.Tensor
    hessian: torch.Tensor
    third: torch.Tensor | None
    margin: float

    @property
    def gradient_norm(self) -> float:
        """An upper bound of the gradient's norm."""
        return self._outward(float(self.gradient.norm()))

    @property
    def hessian_norm(self) -> float:
        """An upper bound of the Hessian's spectral norm: that of the small matrix of block norms."""
        return self._outward(spectral_bound(self.hessian))

    @property
    def hessian_lipschitz(self) -> float:
        """An upper bound of the Hessian's Lipschitz constant."""
        return self._outward(tensor_bound(self.thirds))

    def along(self, norms: torch.Tensor) -> tuple[float, float]:
        """Bound the third derivative D3 in one or two slots that are filled with a known direction d.

        Args:
            norms: (L,), upper bounds on the norms of d's parts in the layers.

        Returns:
            Upper bounds of `||D3[., d, d]||` and of `||D3[., ., d]||_2`.
        """
        once = self.thirds @ norms
        return self._outward(float((once @ norms).norm())), self._outward(spectral_bound(once))

    def _outward(self, bound: float) -> float:
        """Round up by the margin, by 8 u for the rounding of this product, and by what underflow can take."""
        return round_up(bound, self.margin + 8 * UNIT_ROUNDOFF) + TINY

    @property
    def thirds(self) -> torch.Tensor:
        """The third derivative's bounds, which have to have been asked for."""
        if self.third is None:
            raise ValueError("third derivatives were not asked for")
        return self.third


def spectral_bound(matrix: torch.Tensor) -> float:
    """The spectral norm of a small matrix, at most some 1e-14 below (LAPACK's SVD is backward stable).

    Args:
        matrix: (m, n) with a few rows.

    Returns:
        The norm; infinity where an entry is not finite. A margin of 1e-9, which all users add, covers the rounding.
    """
    if not bool(torch.isfinite(matrix).all()):
        return float("inf")
    return float(torch.linalg.matrix_norm(matrix, ord=2)) if matrix.numel() else 0.0


def tensor_bound(tensor: torch.Tensor) -> float:
    """Bound `max T[u, v, w]` over unit vectors by the spectral norm of T unfolded to a matrix.

    Args:
        tensor: (L, L, L).

    Returns:
        The norm of the L x L^2 unfolding.
    """
    return spectral_bound(tensor.reshape(len(tensor), -1))


def sym3(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Sum the three ways of giving one of three directions to a vector and the others to a symmetric matrix.

    Args:
        vector: (..., L).
        matrix: (..., L, L), symmetric.

    Returns:
        (..., L, L, L): `a_i B_jk + a_j B_ik + a_k B_ij`.
    """
    first = vector[..., :, None, None] * matrix[..., None, :, :]
    return first + first.transpose(-3, -2) + first.transpose(-3, -2).transpose(-2, -1)


def worst_case(
    network: Network,
    loss: Loss,
    input_norms: torch.Tensor,
    targets: torch.Tensor | None,
    radius: float = 0.0,
    third: bool = True,
    target_norm: float = 0.0,
    stands_for: int | None = None,
) -> LayerBounds:
    """Bound the derivatives of the mean loss over a ball, from the norms of matrices and inputs.

    Args:
        network: the network at the ball's centre.
        loss: the loss.
        input_norms: (n,), upper bounds of the samples' norms.
        targets: checked targets, or None for a bound that holds whatever they are.
        radius: of the ball, in the trainable parameters.
        third: whether third derivatives are wanted.
        target_norm: without targets, the largest norm of one, for losses that grow with it.
        stands_for: without targets, the number of samples, of which a summed loss is the sum; None: n.

    Returns:
        The constants of all layers.

    Raises:
        OutsideValidity: an activation is another function where the norms let a pre-activation get.
    """  # noqa: DOC502 - raised by the network
    depth, samples = network.depth, len(input_norms)
    gradient = torch.zeros(depth, dtype=torch.float64)
    hessian = torch.zeros(depth, depth, dtype=torch.float64)
    cubes = torch.zeros(depth, depth, depth, dtype=torch.float64) if third else None
    if targets is not None:
        divisor = loss.divisor(targets)
    elif loss.reduction == "mean":
        divisor = float(samples)
    else:  # the norms' mean, as often as there are samples
        divisor = samples / (samples if stands_for is None else stands_for)
    for start in range(0, samples, CHUNK):
        norms = input_norms[start : start + CHUNK]
        c, m, t = _recursion(network, norms, radius, third)
        *hidden, logits = magnitudes(network, norms, radius)[1]
        for index, size in enumerate(hidden):
            network.check_validity(index, torch.zeros_like(size), size, radius)
        if targets is None:
            one = loss.worst(network.outputs, float(logits.max()), target_norm)
            constants = LossBounds(*(torch.full_like(norms, value) for value in one))
        else:
            constants = loss.uniform(targets[start : start + CHUNK], network.outputs, logits)
        gradient += torch.einsum("n,na->a", constants.gradient, c) / divisor
        hessian += torch.einsum("n,na,nb->ab", constants.hessian, c, c) / divisor
        hessian += torch.einsum("n,nab->ab", constants.gradient, m) / divisor
        if cubes is not None and t is not None:
            cubes += torch.einsum("n,na,nb,nc->abc", constants.third, c, c, c) / divisor
            cubes += torch.einsum("n,nabc->abc", constants.hessian, sym3(c, m)) / divisor
            cubes += torch.einsum("n,nabc->abc", constants.gradient, t) / divisor
    return LayerBounds(gradient, hessian, cubes, network.margin(samples))


def _recursion(
    network: Network, input_norms: torch.Tensor, radius: float, third: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """c_L, M_L and T_L for each sample."""
    samples, depth, skips = len(input_norms), network.depth, network.skips
    entering, _ = magnitudes(network, input_norms, radius)
    # of h_0, the input, and then of each layer: bounds of the first, second and third derivative
    c = torch.zeros(samples, depth, dtype=torch.float64)
    n = torch.zeros(samples, depth, depth, dtype=torch.float64)
    cubes = [torch.zeros(samples, depth, depth, depth, dtype=torch.float64) if third else None]
    firsts, seconds = [c], [n]
    m, t = n, cubes[0]
    for index, layer in enumerate(network.layers):
        source, stretch = skips.reads[index], layer_stretch(network, index, radius)
        unit = torch.zeros(depth, dtype=torch.float64)
        unit[index] = 1.0
        both = unit[:, None] * firsts[source][:, None, :]
        c = stretch * firsts[source] + perturbation(network, index, entering[source])[:, None] * unit
        m = stretch * seconds[source] + layer.moves_weight * (both + both.transpose(1, 2))
        cube = cubes[source]
        if cube is not None:
            t = stretch * cube + layer.moves_weight * sym3(unit, seconds[source])
        for k in skips.adds[index]:
            c = c + firsts[k]
            m = m + seconds[k]
            added = cubes[k]
            if t is not None and added is not None:
                t = t + added
        if index < depth - 1:
            s = layer.activation
            firsts.append(s.b1 * c)
            seconds.append(s.b2 * c[:, :, None] * c[:, None, :] + s.b1 * m)
            cube = None
            if t is not None:
                cube = s.b3 * c[:, :, None, None] * c[:, None, :, None] * c[:, None, None, :]
                cube = cube + s.b2 * sym3(c, m) + s.b1 * t
            cubes.append(cube)
    return c, m, t


def layer_stretch(network: Network, index: int, radius: float) -> float:
    """Bound ||G W||_2 of a layer over the ball.

    Args:
        network: the network at the centre.
        index: the layer, from 0.
        radius: of the ball.

    Returns:
        The centre's norm plus what the ball adds; frozen weights do not move.
    """
    layer = network.layers[index]
    return layer.spectral_norm + layer.moves_weight * radius


def perturbation(network: Network, index: int, size: torch.Tensor) -> torch.Tensor:
    """Bound how far a unit step in one layer's parameters moves its z.

    Args:
        network: the network.
        index: the layer, from 0.
        size: (n,), upper bounds of the norm of what enters the layer.

    Returns:
        (n,): `At`, times the gain.
    """
    layer = network.layers[index]
    return torch.hypot(layer.moves_weight * size, torch.full_like(size, layer.moves_bias))


def magnitudes(
    network: Network, input_norms: torch.Tensor, radius: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Bound the norms of activations over the ball, by the smaller of two arguments for each layer.

    A bounded activation gives at most `sqrt(width) sup |s|`, any other at most `sqrt(width) |s(0)| + b1 ||z||`.

    Args:
        network: the network at the centre.
        input_norms: (n,), upper bounds of the samples' norms.
        radius: of the ball.

    Returns:
        Bounds of ||h_0|| .. ||h_(L-1)|| and of ||z_1|| .. ||z_L||, (n,) each.
    """
    sizes, found = [input_norms], []
    for index, layer in enumerate(network.layers):
        size = sizes[network.skips.reads[index]]
        z = layer.spectral_norm * size + layer.offset_norm + radius * perturbation(network, index, size)
        for k in network.skips.adds[index]:
            z = z + sizes[k]
        found.append(z)
        s, root = layer.activation, layer.width**0.5
        sizes.append(torch.clamp(root * s.at_zero + s.b1 * z, max=root * s.supremum))
    return sizes[:-1], found
