r"""Local bounds: from the samples' own Jacobians, residuals and activations instead of products of norms.

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
layer instead of over m: the second derivative of an activation reaches z_l through every layer that reads or adds its
h. So in the place of `J_{m,l} W_m` and `W_m' p_m` stand
`dz_l/dh_k = sum_{m reads h_k} J_{m,l} W_m + sum_{m adds h_k} J_{m,l}` and q, the same sum for the loss. Over a ball
each number is replaced by one that holds anywhere in it (module ball_norms).

How much D3 itself changes. D3 is a sum of products of the factors above, each of norm at most a at the centre, where it
changes by at most d(R) over the ball. A product then changes by at most the product of the a + d(R) minus that of the
a. Without caps every d is nonnegative, increasing and convex in R, and so is this difference: over a part t of the way
to R it is at most 1 - t times what it is at 0 plus t times what it is at R.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from tvgrad.bounds.derivatives.ball_norms import BallNorms, Vector, ball_norms, measured_norms
from tvgrad.bounds.derivatives.sample_norms import Pair, SampleNorms
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import Network


class LocalBounds:
    """Bounds on the derivatives of the mean loss over balls round the weights at which samples were measured."""

    def __init__(self, network: Network, loss: Loss, chunks: Sequence[SampleNorms], divisor: float) -> None:
        """Keep what was measured.

        Args:
            network: the network that was measured.
            loss: the loss.
            chunks: all chunks of the data.
            divisor: of the mean loss.
        """
        self._network, self._loss, self._chunks, self._divisor = network, loss, chunks, divisor
        self._margin = network.margin(sum(len(chunk.logits) for chunk in chunks))

    def over(self, radius: float, third: bool) -> LayerBounds:
        """Bound the derivatives over a ball.

        Args:
            radius: of the ball, in the trainable parameters.
            third: whether third derivatives are wanted.

        Returns:
            The bounds of all layers.
        """
        gradient, hessian, cubes = (self._zeros(order) for order in (1, 2, 3))
        for chunk in self._chunks:
            sums = _ChunkSums(self._network, ball_norms(self._network, self._loss, chunk, radius))
            gradient += sums.gradient() / self._divisor
            hessian += sums.hessian() / self._divisor
            if third:
                cubes += sums.third() / self._divisor
        return LayerBounds(gradient, hessian, cubes if third else None, self._margin)

    def third_changes(self, radius: float) -> LayerBounds:
        """Bound how much the third derivative changes over a ball.

        Args:
            radius: of the ball, in the trainable parameters.

        Returns:
            Bounds of the blocks of `D3(a) - D3(b)`, b the weights that were measured with their rounding: at the
            radius for a anywhere in the ball, at 0 for a the exact centre. Convex in the radius. Gradient and Hessian
            are zero.
        """
        total = self._zeros(3)
        for chunk in self._chunks:
            wide = ball_norms(self._network, self._loss, chunk, radius, capped=False)
            total += _ChunkSums(self._network, wide).third() / self._divisor
        # the difference cancels: its rounding is relative to what it is a difference of
        change = (total - self._third_at_centre).clamp(min=0) + 2 * self._margin * total
        return LayerBounds(self._zeros(1), self._zeros(2), change, self._margin)

    @cached_property
    def _third_at_centre(self) -> torch.Tensor:
        """The third derivative's bound for the numbers as they were measured."""
        total = self._zeros(3)
        for chunk in self._chunks:
            total += _ChunkSums(self._network, measured_norms(self._network, self._loss, chunk)).third() / self._divisor
        return total

    def _zeros(self, order: int) -> torch.Tensor:
        return torch.zeros((self._network.depth,) * order, dtype=torch.float64)


class _ChunkSums:
    """The small vectors, matrices and tensors of one chunk, summed over its samples."""

    def __init__(self, network: Network, ball: BallNorms) -> None:
        self.network, self.steps, self.norms, self.loss = network, ball.steps, ball.norms, ball.loss
        self.samples, self.depth = len(ball.norms.logits), network.depth
        # c_l for all layers, a_l for the hidden ones, (n, L) each
        self.c = [self._row(ball.norms.z_jacobian, end) for end in range(self.depth)]
        self.a = [self._row(ball.norms.h_jacobian, end) for end in range(self.depth - 1)]
        # the layers that read the h of another, and not the input
        self.inner = [m for m, source in enumerate(network.skips.reads) if source]

    def _row(self, jacobian: dict[Pair, Vector], end: int) -> torch.Tensor:
        row = torch.zeros(self.samples, self.depth, dtype=torch.float64)
        for j in range(end + 1):
            row[:, j] = jacobian[j, end] * self.steps[j]
        return row

    def _crossed(self, m: int) -> torch.Tensor:
        """`e_m a' + a e_m'` with a of the h that layer m reads, zero where W_m is frozen."""
        a = self.network.layers[m].moves_weight * self.a[self.network.skips.reads[m] - 1]
        crossed = torch.zeros(self.samples, self.depth, self.depth, dtype=torch.float64)
        crossed[:, m, :] += a
        crossed[:, :, m] += a
        return crossed

    def _second(self, end: int, jacobian: dict[Pair, Vector], columns: dict[Pair, Vector]) -> torch.Tensor:
        """M_l, or N_l without its last term, (n, L, L)."""
        total = torch.zeros(self.samples, self.depth, self.depth, dtype=torch.float64)
        for m in self.inner:
            if m <= end and self.network.layers[m].moves_weight:
                total += jacobian[m, end][:, None, None] * self._crossed(m)
        for k in range(1, end + 1):
            total += columns[k, end][:, None, None] * _square(self.c[k - 1])
        return total

    def gradient(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L,)."""
        return torch.stack([(self.norms.z_gradient[m] * self.steps[m]).sum() for m in range(self.depth)])

    def hessian(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L, L)."""
        last = self.c[-1]
        total = torch.einsum("n,na,nb->ab", self.loss.hessian, last, last)
        for m in self.inner:
            total += torch.einsum("n,nab->ab", self.norms.z_gradient[m], self._crossed(m))
        for hidden, c in enumerate(self.c[:-1]):
            total += torch.einsum("n,na,nb->ab", self.norms.h_gradient[2, hidden], c, c)
        return total

    def third(self) -> torch.Tensor:
        """Sums of the samples' bounds, (L, L, L)."""
        norms, last = self.norms, self.c[-1]
        total = torch.einsum("n,na,nb,nc->abc", self.loss.third, last, last, last)
        total += _sym3_sum(
            self.loss.hessian, last, self._second(self.depth - 1, norms.z_jacobian, norms.z_columns_second)
        )
        for hidden, c in enumerate(self.c[:-1]):
            total += torch.einsum("n,na,nb,nc->abc", norms.h_gradient[3, hidden], c, c, c)
            of_z = self._second(hidden, norms.z_jacobian, norms.z_columns_second)
            total += _sym3_sum(norms.h_gradient[2, hidden], c, of_z)
            readers = [m for m in self.inner if self.network.skips.reads[m] == hidden + 1]
            readers = [m for m in readers if self.network.layers[m].moves_weight]
            if readers:
                of_h = self._second(hidden, norms.h_jacobian, norms.h_columns_second)
                of_h += norms.maxima[2, hidden][:, None, None] * _square(c)
            for m in readers:
                unit = torch.zeros(self.samples, self.depth, dtype=torch.float64)
                unit[:, m] = self.network.layers[m].moves_weight
                total += _sym3_sum(norms.z_gradient[m], unit, of_h)
        return total


def _square(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, :, None] * vector[:, None, :]


def _sym3_sum(weights: torch.Tensor, vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The weighted sum of Sym3(vector, matrix) over the samples; Sym3 is linear in their product."""
    product = torch.einsum("n,na,nbc->abc", weights, vector, matrix)
    return product + product.transpose(0, 1) + product.transpose(0, 1).transpose(1, 2)
