"""Cuts: places through which everything must pass, and the exact Jacobians between them.

Norms multiply from step to step, and a product of norms is far above the norm of a product. A *cut* is a tensor on
which all later steps depend alone, as on the residual stream between two blocks. Between two cuts the Jacobian of a
sample is one matrix: it is computed by the pullbacks of the steps between them, from the rows of the identity, with
its rounding and with how much it can change over the ball, as in `passes`; then it is multiplied with those before
it, and the norm of the product is bounded. What a step of a parameter, or a rounding, does to a cut is then bounded
by the norms of the Jacobians from the cut after it: `c_b = sum_j ||J_(j -> b)|| s_j`, s_j being what the steps just
before cut j add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.program.balls import Ball, add
from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.operation import Enclosure, Operation, norm
from tvgrad.numerics.floats import gamma, round_up

Known = Ball | torch.Tensor

LARGEST = 256  # numbers in a cut; the work of a Jacobian grows with the square
FEWEST = 3  # steps between two cuts
SQUARINGS = 4


def cuts_of(graph: Graph, sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Find the cuts of a program.

    Args:
        graph: the program.
        sizes: place -> numbers of one sample's tensor.

    Returns:
        Places of cuts that are worth a Jacobian, in order; empty where there are fewer than two.
    """
    order = [place for place, step in graph.steps.items() if step.trained]
    number = {place: index for index, place in enumerate(order)}
    last: dict[int, int] = {}
    for place in order:
        for one in graph.steps[place].inputs:
            if one in number:
                last[one] = number[place]
    found, open_ = list[int](), set[int]()
    for place in order:
        open_ = {one for one in open_ if last.get(one, -1) > number[place]} | {place}
        if open_ == {place} and sizes[place] <= LARGEST and place != graph.output:
            found.append(place)
    kept = list[int]()
    for index, place in enumerate(found):
        after = number[found[index + 1]] if index + 1 < len(found) else len(order)
        far = not kept or number[place] - number[kept[-1]] >= FEWEST
        if (after - number[place] >= FEWEST or index + 1 == len(found)) and (far or index + 1 == len(found)):
            kept.append(place)
    return tuple(kept) if len(kept) > 1 else ()


class CutJacobians:
    """Jacobians from cut to cut for the samples of a pass.

    Attributes:
        places: of the cuts.
        norms: (i, j) with i < j, numbers of cuts -> upper bounds of the Jacobian's norm over the ball, (n,).
    """

    def __init__(self, graph: Graph, places: Sequence[int]) -> None:
        """Begin before the first cut.

        Args:
            graph: the program.
            places: of the cuts.
        """
        self.places = tuple(places)
        self.norms: dict[tuple[int, int], torch.Tensor] = {}
        self._graph = graph
        self._products: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def reach(
        self,
        number: int,
        known: Mapping[int, Known],
        first: Mapping[int, list[torch.Tensor]],
        enclosed: Callable[[int], list[Enclosure]],
    ) -> None:
        """Add the Jacobian from the cut before.

        Args:
            number: of the cut that has been reached, at least 1.
            known: computed tensors.
            first: bounds of the derivatives of the steps up to the cut.
            enclosed: place of a step -> enclosures of its arguments.
        """
        begin, end = self.places[number - 1], self.places[number]
        steps = [place for place in self._graph.steps if begin < place <= end]
        jacobian, error = self._jacobian(begin, steps, known, first, enclosed)
        size = jacobian.shape[-1]
        own = self._norm(jacobian, error)
        updated = {number - 1: (jacobian, error)}
        self.norms[number - 1, number] = own
        for start, (before, far) in self._products.items():
            product = jacobian @ before
            rounding = gamma(size + 2) * norm(jacobian) * norm(before)
            inherited = own * far + error * (self.norms[start, number - 1] + far) + rounding
            updated[start] = product, round_up(inherited)
            self.norms[start, number] = torch.minimum(
                self._norm(product, updated[start][1]), round_up(own * self.norms[start, number - 1])
            )
        self._products = updated

    @staticmethod
    def _norm(matrices: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(matrices).all()):
            return torch.full((len(matrices),), torch.inf, dtype=torch.float64)
        return round_up(spectral_norms(matrices, SQUARINGS) + error)

    def _jacobian(
        self,
        begin: int,
        steps: list[int],
        known: Mapping[int, Known],
        first: Mapping[int, list[torch.Tensor]],
        enclosed: Callable[[int], list[Enclosure]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The Jacobians (n, D_b, D_a), and bounds of their distance to any of the ball, (n,)."""
        flow = {begin}
        for place in steps:
            if flow & set(self._graph.steps[place].inputs):
                flow.add(place)
        bends = {place: self._bend(place, known, enclosed) for place in steps if place in flow}
        samples = len(cast("Ball", known[begin]).hi)
        path = [place for place in steps if place in flow]
        rows = [self._rows(sample, begin, path, known, first, bends) for sample in range(samples)]
        return torch.stack([matrix for matrix, _ in rows]), torch.stack([error for _, error in rows])

    def _bend(
        self, place: int, known: Mapping[int, Known], enclosed: Callable[[int], list[Enclosure]]
    ) -> list[torch.Tensor]:
        """For each argument, how much the derivative in it can be from the computed one, (n or 1,)."""
        operation, args = cast("Operation", self._graph.steps[place].operation), enclosed(place)
        found = [torch.zeros(1, dtype=torch.float64) for _ in args]
        if operation.linear:
            return found
        out = cast("Ball", known[place])
        nothing = torch.zeros(1, dtype=torch.float64)
        # any derivative of the loss of norm 1
        zeros = torch.zeros_like(out.hi)
        unit = Enclosure(zeros, zeros, torch.ones(len(out.hi), dtype=torch.float64))
        for (i, j), weight in operation.second(args, Enclosure.of(out, nothing), unit).items():
            for mine, other in {(i, j), (j, i)}:
                found[mine] = round_up(found[mine] + weight * args[other].radius)
        return found

    def _rows(
        self,
        sample: int,
        begin: int,
        path: list[int],
        known: Mapping[int, Known],
        first: Mapping[int, list[torch.Tensor]],
        bends: Mapping[int, list[torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One sample's Jacobian, and its error in Frobenius norm."""
        end = cast("Ball", known[path[-1]])
        size, flow = end.hi[0].numel(), {begin, *path}
        identity = torch.eye(size, dtype=torch.float64).reshape(size, *end.hi.shape[1:])
        p = {path[-1]: Ball.exact(identity, precise=False)}
        errors = {path[-1]: torch.zeros(size, dtype=torch.float64)}
        for place in reversed(path):
            step, mine, error = self._graph.steps[place], p.pop(place), errors.pop(place)
            wanted = [one in flow for one in step.inputs]
            args = [_repeated(known[one], sample, size, want) for one, want in zip(step.inputs, wanted, strict=True)]
            out = _repeated(known[place], sample, size, True)
            found = cast("Operation", step.operation).pull(cast("list[Ball]", args), cast("Ball", out), mine, wanted)
            length = round_up(norm(mine.hi)) + error
            for one, part, gain, bend in zip(step.inputs, found, first[place], bends[place], strict=True):
                if part is not None and one in flow:
                    further = _of(gain, sample) * error + _of(bend, sample) * length + norm(part.err)
                    p[one], errors[one] = _accumulated(p.get(one), errors.get(one), part, further)
        return p[begin].hi.reshape(size, -1), round_up(errors[begin].norm())


def _of(values: torch.Tensor, sample: int) -> torch.Tensor:
    """One sample's part, or what is the same for all."""
    return values[sample if len(values) > 1 else 0]


def _repeated(known: Known, sample: int, size: int, flows: bool) -> Known:
    """One sample's tensor for every row; parameters keep their first axis of length 1."""
    if not isinstance(known, Ball):
        return _of(known, sample).expand(size, *known.shape[1:])
    if len(known.hi) == 1 and not flows:
        return Ball.exact(known.hi, precise=False)
    return Ball.exact(_of(known.hi, sample).expand(size, *known.hi.shape[1:]), precise=False)


def _accumulated(
    before: Ball | None, error: torch.Tensor | None, part: Ball, further: torch.Tensor
) -> tuple[Ball, torch.Tensor]:
    """Add rows, whose radii go into the errors of the rows."""
    if before is not None and error is not None:
        part = add(before, Ball(part.hi, None, torch.zeros_like(part.err)))
        further = further + error + norm(part.err)
    return Ball(part.hi, None, torch.zeros_like(part.err)), round_up(further)
