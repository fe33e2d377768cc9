r"""How far a tensor moves under a unit step of all parameters together, as a matrix for each sample.

With J_g the derivative of a cut in the parameter g, the *motion* of the cut is `K = sum_g J_g J_g'`, and its norm is
the square of the largest change that a unit step of all parameters makes. From one cut to the next, with J the Jacobian
between them, `K' = J K J' + sum M M'`, M being the derivatives in the parameters that enter between the two: with R the
Jacobian from a step's result y to the next cut, and `dy[t, i] = sum_a D[t, a, i] dw[a, i]` the step's *drift*,
`M[r, (a, i)] = sum_t R[r, t, i] D[t, a, i]`. For a Linear layer D is the input x, the same for every channel i, and may
be replaced by any L with `L L' = x x'`. A parameter that enters m times counts m times, because
`(A + B)(A + B)' <= 2 (A A' + B B')`.

Unlike a sum of products of norms this loses nothing where directions do not meet. The identity is added at every cut,
so that no Jacobian from a cut before it has a larger norm than the root of `||K||`.

**Errors**, in spectral norm, anywhere in the ball: with j, m bounds of ||J||, ||M||, and e_J, e_M, e_K of what they are
off, `e_K' = j^2 e_K + 2 j e_J ||K|| + sum (2 m e_M + e_M^2)` and rounding; `e_M = e_R ||D|| + ||R|| b`, b the change of
D. Where the errors are too large, products of norms stand in the place of all this.
Tested in `tests/bounds/program/test_motions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.linalg.blas import dsyrk

from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.jacobians import Jacobian
from tvgrad.bounds.program.operation import norm
from tvgrad.bounds.program.rearrangements import Rearrangement
from tvgrad.numerics.floats import gamma, round_up

_HALVED = 128  # rows from which computing half of a symmetric matrix pays


@dataclass(frozen=True)
class Motion:
    """K at a cut, for n samples.

    Attributes:
        matrix: (n, D, D), as computed.
        error: bounds of the spectral norm of its distance to the exact one, anywhere in the ball, (n,).
    """

    matrix: torch.Tensor
    error: torch.Tensor

    @property
    def size(self) -> torch.Tensor:
        """Upper bounds of the norm of the computed matrix."""
        return round_up(norm(self.matrix))

    @property
    def change(self) -> torch.Tensor:
        """Upper bounds of the change of the cut under a unit step of all parameters, (n,)."""
        return round_up((self.size + self.error).sqrt())

    def with_identity(self) -> Motion:
        """Add the identity.

        Returns:
            The motion if each number of the cut were a parameter, too.
        """
        eye = torch.eye(self.matrix.shape[-1], dtype=torch.float64)
        rounding = 1e-15 * (self.size + self.matrix.shape[-1] ** 0.5)
        return Motion(self.matrix + eye, round_up(self.error + rounding))

    def through(self, jacobian: Jacobian, own: Motion) -> Motion:
        """Go on to the next cut.

        Args:
            jacobian: from this one to the next.
            own: what enters between the two.

        Returns:
            The next motion.
        """
        j, before, size = jacobian.matrix, self.matrix, self.size
        if jacobian.blocks:
            tokens, rows, columns = j.shape[1:]
            half = (j @ before.reshape(len(j), tokens, columns, -1)).reshape(len(j), tokens * rows, -1)
            turned = half.mT.reshape(len(j), tokens, columns, -1)
            found = (j @ turned).reshape(len(j), tokens * rows, -1)
        else:
            found = j @ before @ j.mT
        norms, frobenius = jacobian.norms, norm(j)
        rounding = 4 * gamma(before.shape[-1] + 4) * (frobenius.square() * size) + 1e-15 * own.size
        inherited = norms.square() * self.error + 2 * norms * jacobian.error * size + own.error
        return Motion(found + own.matrix, round_up(inherited + rounding))


def gram(rows: torch.Tensor, drift: torch.Tensor, *, by_token: bool) -> torch.Tensor:
    """`M M'` of one step and one sample.

    Args:
        rows: R, (r, tokens, i), or (tokens, r, i), the diagonal blocks.
        drift: D, (tokens, a, i), or (tokens, a, 1) where it is the same for every channel.
        by_token: whether there are diagonal blocks alone.

    Returns:
        (r, r), or (tokens r, tokens r).
    """
    if by_token and drift.shape[-1] == 1:
        tokens, size = rows.shape[:2]
        flat, pairs = rows.flatten(0, 1), drift[..., 0] @ drift[..., 0].T
        found = squared(flat).reshape(tokens, size, tokens, size).mul_(pairs[:, None, :, None])
        return found.reshape(tokens * size, -1)
    return squared(factor_of(rows, drift, by_token=by_token))


def factor_of(rows: torch.Tensor, drift: torch.Tensor, *, by_token: bool) -> torch.Tensor:
    """M of one step and one sample.

    Args:
        rows: R, as in `gram`.
        drift: D, as there; not the same for every channel where there are diagonal blocks.
        by_token: whether there are diagonal blocks alone.

    Returns:
        (r or tokens r, columns).
    """
    if by_token:
        return (rows[:, :, None] * drift[:, None]).flatten(2).flatten(0, 1)
    made = drift[..., 0].T @ rows if drift.shape[-1] == 1 else torch.einsum("rti,tai->rai", rows, drift)
    return made.flatten(1)


def squared(made: torch.Tensor) -> torch.Tensor:
    """M M', of which half is computed.

    Args:
        made: M, (rows, columns).

    Returns:
        (rows, rows).
    """
    if len(made) < _HALVED:
        return made @ made.T
    # the transpose of numbers in rows is one in columns, as BLAS wants them; the triangle below stays zero
    upper = torch.from_numpy(dsyrk(1.0, made.contiguous().numpy().T, trans=1))
    found = upper + upper.T
    found.diagonal().div_(2)
    return found


def reduced(drift: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Replace D by a smaller L with `L L' = D D'`, where D is the same for every channel.

    Args:
        drift: (tokens, a, 1) or (tokens, a, i).

    Returns:
        L, (tokens, at most tokens, 1), and a bound of `||L L' - D D'||`.
    """
    if drift.shape[-1] != 1 or drift.shape[1] <= drift.shape[0]:
        return drift, 0.0
    whole = drift[..., 0]
    made = torch.linalg.qr(whole.T, mode="r")[1].T
    # each of the two products and their difference rounds by less than 1e-12 of the squared norm
    apart = float((made @ made.T - whole @ whole.T).norm()) + 1e-12 * float(whole.norm() ** 2 + made.norm() ** 2)
    return made[..., None], round_up(apart)


def entries(graph: Graph, sizes: Mapping[int, torch.Size]) -> tuple[frozenset[int], Mapping[tuple[int, int], int]]:
    """Where parameters enter the computation of a sample.

    Args:
        graph: the program.
        sizes: place of a parameter -> its shape.

    Returns:
        The places that depend on the sample, and (step, number of the argument) -> how often what enters there enters
        the program, for every argument that depends on parameters and on no sample.
    """
    sampled, of = {graph.inputs, graph.targets}, {g: frozenset((g,)) for g in graph.trainable}
    found: dict[tuple[int, int], frozenset[int]] = {}
    for place, step in graph.steps.items():
        if sampled & set(step.inputs):
            sampled.add(place)
            found |= {(place, number): of[one] for number, one in enumerate(step.inputs) if one in of}
        elif any(one in of for one in step.inputs):
            of[place] = frozenset().union(*(of[one] for one in step.inputs if one in of))
    counts = {
        g: _uses(graph, g, sizes[g], [key for key, owners in found.items() if g in owners]) for g in graph.trainable
    }
    return frozenset(sampled), {key: max(counts[g] for g in owners) for key, owners in found.items()}


def _uses(graph: Graph, parameter: int, shape: torch.Size, keys: list[tuple[int, int]]) -> int:
    """How often a parameter enters; slices that have no number in common count once."""
    seen = list[torch.Tensor]()
    for place, number in keys:
        at, chain = graph.steps[place].inputs[number], list[Rearrangement]()
        while at != parameter:
            operation = graph.steps[at].operation
            if not isinstance(operation, Rearrangement):
                return len(keys)
            chain.insert(0, operation)
            (at,) = graph.steps[at].inputs
        index = torch.arange(1, 1 + shape.numel()).reshape(shape)
        for one in chain:
            index = one.move(index)
        seen.append(index.flatten()[index.flatten() > 0])
    whole = torch.cat(seen) if seen else torch.zeros(0)
    return 1 if len(whole.unique()) == len(whole) else len(keys)
