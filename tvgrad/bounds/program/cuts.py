"""Cuts: places through which everything must pass, and what is known between them.

Norms multiply from step to step, and a product of norms is far above the norm of a product. A *cut* is a tensor on
which all later steps depend alone, as on the residual stream between two blocks. Between two cuts the Jacobian of a
sample is one matrix, pulled back through the steps between them (`stretches`), and what a unit step of all parameters
does to a cut is the norm of one more matrix, its motion (`motions`). A rounding at step v reaches the next cut through
the Jacobian from v, which the way back passes, and a later cut through a Jacobian that is no larger than the change of
that cut: `rho_b = sum_j c_b sum_v ||J_(v -> j)|| (what v itself adds)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.jacobians import FEW_ROWS, Jacobian
from tvgrad.bounds.program.motions import Motion, entries
from tvgrad.bounds.program.operation import Enclosure, Operation
from tvgrad.bounds.program.stretches import Facts, Known, Stretch, pull_back
from tvgrad.numerics.floats import round_up

LARGEST = 1024  # numbers in a cut; the work of a Jacobian grows with the square
FEWEST = 3  # steps between two cuts


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
    gaps = [number[b] - number[a] >= FEWEST for a, b in itertools.pairwise(found)] + [False]
    last_run = len(gaps) - gaps[::-1].index(True) if True in gaps else 0
    kept = list[int]()
    for index, place in enumerate(found):
        far = not kept or number[place] - number[kept[-1]] >= FEWEST
        # the first of the last run of neighbours, where the end is far enough from it
        first = index == last_run and bool(kept) and number[found[-1]] - number[place] >= FEWEST
        if index + 1 == len(found) or (far and (gaps[index] or first)):
            kept.append(place)
    return tuple(kept) if len(kept) > 1 else ()


class CutJacobians:
    """What is known between the cuts for the samples of a pass.

    Attributes:
        places: of the cuts.
        norms: (i, j) with i < j, numbers of cuts -> upper bounds of the Jacobian's norm over the ball, (n,).
        gains: place of a step before a cut -> bounds of the Jacobian's norm from there to the next cut, (n,).
        changes: of each cut under a unit step of all parameters together, (n,).
    """

    def __init__(self, graph: Graph, places: Sequence[int], known: Mapping[int, Known]) -> None:
        """Begin before the first cut.

        Args:
            graph: the program.
            places: of the cuts.
            known: the parameters.
        """
        self.places = tuple(places)
        self.norms: dict[tuple[int, int], torch.Tensor] = {}
        self.gains: dict[int, torch.Tensor] = {}
        self.changes: list[torch.Tensor] = []
        self._graph = graph
        self._motion: Motion | None = None
        self._products: dict[int, Jacobian] = {}
        shapes = {g: cast("Ball", known[g]).hi[0].shape for g in graph.trainable}
        self._sampled, self._entries = entries(graph, shapes) if places else (frozenset(), {})

    def reach(
        self,
        number: int,
        known: Mapping[int, Known],
        first: Mapping[int, list[torch.Tensor]],
        changes: Mapping[int, torch.Tensor],
        enclosed: Callable[[int], list[Enclosure]],
    ) -> Stretch:
        """Go to a cut from the one before.

        Args:
            number: of the cut that has been reached.
            known: computed tensors.
            first: bounds of the derivatives of the steps up to the cut.
            changes: place -> change under a unit step of all parameters together.
            enclosed: place of a step -> enclosures of its arguments.

        Returns:
            The steps between the two.
        """
        begin, end = self.places[number - 1] if number else None, self.places[number]
        stretch = Stretch.between(begin, end, self._graph.steps, known, self._sampled)
        bends = {place: self._bend(place, known, enclosed) for place in stretch.steps}
        pulled = pull_back(stretch, Facts(self._graph.steps, known, first, bends, changes, self._entries))
        self.gains.update(pulled.gains)
        jacobian = pulled.jacobian
        if jacobian is None or self._motion is None:
            motion = pulled.own
        else:
            motion = self._motion.with_identity().through(jacobian, pulled.own)
            self.norms[number - 1, number] = jacobian.norms
        self._motion = motion
        self.changes.append(motion.change)
        products = {} if jacobian is None else self._products_with(number, jacobian)
        for before in range(number):
            least = self.norms[number - 1, number]
            if before < number - 1:
                least = round_up(self.norms[before, number - 1] * least)
            if before in products:
                least = torch.fmin(products[before].norms, least)
            self.norms[before, number] = torch.fmin(least, motion.change)
        return stretch

    def _products_with(self, number: int, jacobian: Jacobian) -> dict[int, Jacobian]:
        """Jacobians from all cuts before to this one, as long as they are small: number of the cut -> Jacobian."""
        found = {start: jacobian.after(before) for start, before in self._products.items()} | {number - 1: jacobian}
        self._products = {start: one for start, one in found.items() if one.numbers <= FEW_ROWS}
        return found

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
