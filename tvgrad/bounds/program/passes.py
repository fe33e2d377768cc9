"""Passes over some samples of a program: values and gradient with their rounding, and norms of derivatives over a ball.

Each step is computed from the computed values before it, and its operation encloses the rounding of that one step. How
such errors, and a move of the parameters, go on is bounded by norms, one for each sample:

**Forward.** Anywhere in a ball of radius R, a unit step of parameter g changes a tensor v by at most `c_v[g]`, with
`c_v = sum_i L_i c_i` over the arguments of its step, `L_i` from `first`. Rounding leaves v within
`rho_v = sum_i L_i rho_i + local rounding` of the exact one. So v stays within `rho_v + R ||c_v||` of what was computed.

**Backward.** With p_v the derivative of the loss in v, what is computed is within `sum (L_v dp + sum_j W_vj rho_j)` and
the local rounding, summed over the steps that read v; dp belongs to the step's result, `W` is from `second`. For all
weights of the ball, `rho_j + R ||c_j||` stands for rho_j. For a parameter, v is the gradient.

**Hessian.** That of one sample's loss is exactly the sum over all steps of `<p_v, D^2 f [dv_i, dv_j]>`, so that

    |D^2 loss [u, w]| <= sum over steps, i, j of W_ij (c_i . u)(c_j . w),

u and w the norms of the parameters' parts: a matrix of nonnegative numbers, one for each pair of parameters, whose norm
bounds that of the Hessian. It is summed over the samples before its norm is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from tvgrad.bounds.program.balls import Ball, add
from tvgrad.bounds.program.cuts import CutJacobians
from tvgrad.bounds.program.graph import Graph, Step
from tvgrad.bounds.program.operation import Enclosure, Operation, norm
from tvgrad.bounds.program.pieces import Pieces
from tvgrad.bounds.program.stretches import Stretch
from tvgrad.numerics.floats import round_up

Known = Ball | torch.Tensor


@dataclass(frozen=True)
class _Reach:
    """How far a tensor can be from its computed value, (n or 1,): by rounding alone, and anywhere in the ball."""

    rounding: torch.Tensor
    ball: torch.Tensor

    def plus(self, other: _Reach) -> _Reach:
        return _Reach(round_up(self.rounding + other.rounding), round_up(self.ball + other.ball))

    def summed(self, samples: int) -> _Reach:
        """Added up over the samples."""
        return _Reach(self.rounding.expand(samples).sum()[None], self.ball.expand(samples).sum()[None])


def _still(size: int = 1) -> _Reach:
    zeros = torch.zeros(size, dtype=torch.float64)
    return _Reach(zeros, zeros)


def _without_error(ball: Ball) -> tuple[Ball, torch.Tensor]:
    """The computed numbers, and the norms of what they were rounded by."""
    return Ball(ball.hi, ball.lo, torch.zeros_like(ball.err)), round_up(norm(ball.err))


@dataclass(frozen=True)
class PassResult:
    """What a pass found, summed over its samples.

    Attributes:
        loss: the sum of the losses.
        gradient: for each trainable parameter, the derivative of the sum; the radii are those of the last sum alone.
        errors: for each, a bound on the Euclidean distance to the exact derivative.
        hessian: (P + 1, P + 1), bounds of the Hessian's blocks over the ball; the last number of the diagonal bounds
            the whole Hessian by the changes under a step of all parameters together.
    """

    loss: Ball
    gradient: list[Ball]
    errors: list[float]
    hessian: torch.Tensor


def whole_numbers(function: Callable[..., torch.Tensor], args: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute whole numbers as the program does.

    Args:
        function: of one sample.
        args: each with the samples along its first axis, or of length 1 there.

    Returns:
        The result, (n or 1, ...).
    """
    size = max(len(one) for one in args)
    found: torch.Tensor = torch.vmap(function)(*(one.expand(size, *one.shape[1:]) for one in args))
    return found


class ChunkPass:
    """One pass over some samples."""

    def __init__(
        self,
        graph: Graph,
        parameters: Sequence[Ball],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        radius: float,
        cuts: Sequence[int] = (),
    ) -> None:
        """Go forward.

        Args:
            graph: the program.
            parameters: in the places of the graph, each with a first axis of length 1, taken as exact.
            inputs: samples, (n, ...).
            targets: (n, ...).
            radius: of the ball round the trainable parameters.
            cuts: places between which Jacobians are computed.
        """
        self.samples, self._graph, self._radius = len(inputs), graph, float(radius)
        self._precise = parameters[0].precise
        size = len(graph.trainable)
        self._known: dict[int, Known] = dict(enumerate(parameters))
        for place, tensor in (
            {graph.inputs: inputs[:, None], graph.targets: targets[:, None]} | graph.constants
        ).items():
            exact = tensor.is_floating_point()
            self._known[place] = Ball.exact(tensor.double(), precise=self._precise) if exact else tensor
        own = torch.full((1,), self._radius, dtype=torch.float64)
        # under a step of each parameter, and of all together
        each = torch.cat([torch.eye(size, dtype=torch.float64), torch.ones(size, 1, dtype=torch.float64)], 1)
        self._changes = {g: row[None] for g, row in zip(graph.trainable, each, strict=True)}
        self._reaches = {place: _still() for place in self._known} | {
            g: _Reach(torch.zeros(1, dtype=torch.float64), own) for g in graph.trainable
        }
        # frozen and the same for all samples: errors stay with their entries
        self._fixed = {place for place in self._known if place not in graph.trainable} - {graph.inputs, graph.targets}
        self._first: dict[int, list[torch.Tensor]] = {}
        self._local: dict[int, torch.Tensor] = {}
        self._cuts = CutJacobians(graph, cuts, self._known)
        # what the steps since the last cut add alone, and at each cut
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._added: list[tuple[torch.Tensor, torch.Tensor]] = []
        for place, step in graph.steps.items():
            if isinstance(step.operation, Operation):
                self._compute(place, step, step.operation)
            else:
                args = [cast("torch.Tensor", self._known[one]) for one in step.inputs]
                self._known[place] = whole_numbers(step.operation, args)
                self._reaches[place] = _still()

    def _compute(self, place: int, step: Step, operation: Operation) -> None:
        """One step forward."""
        args = [self._known[one] for one in step.inputs]
        computed = operation.value(*cast("list[Ball]", args))
        if self._fixed.issuperset(step.inputs):
            self._fixed.add(place)
            self._known[place], self._reaches[place] = computed, _still()
            return
        value, local = _without_error(computed)
        self._known[place] = value
        reach = _Reach(local, local)
        moved = any(bool((self._reaches[one].ball > 0).any()) for one in step.inputs)
        if step.trained or moved:
            first = operation.first(self._enclosed(step), Enclosure.of(value, torch.zeros(1, dtype=torch.float64)))
            gains = self._first[place] = [torch.as_tensor(one, dtype=torch.float64).reshape(-1) for one in first]
            rounding, change = local, torch.zeros(1, len(self._graph.trainable) + 1, dtype=torch.float64)
            own_rounding, own_change = rounding, change
            for one, gain in zip(step.inputs, gains, strict=True):
                rounding = rounding + gain * self._reaches[one].rounding
                own_rounding = own_rounding + gain * self._own_of(one)[0]
                if one in self._changes:
                    change = change + gain[:, None] * self._changes[one]
                    own_change = own_change + gain[:, None] * self._own_of(one)[1]
            self._local[place] = local
            rounding, change = round_up(rounding), round_up(change)
            self._own[place] = round_up(own_rounding), round_up(own_change)
            if step.trained:
                self._changes[place] = change
                self._reaches[place] = _Reach(rounding, round_up(rounding + self._radius * _together(change)))
                if place in self._cuts.places:
                    rounding, change = self._cut(place, rounding, change)
                    self._changes[place] = change
                reach = _Reach(rounding, round_up(rounding + self._radius * _together(change)))
            else:
                reach = _Reach(rounding, rounding)
        self._reaches[place] = reach

    def _own_of(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rounding and change of a tensor since the last cut."""
        if place in self._cuts.places:
            nothing = torch.zeros(1, dtype=torch.float64)
            return nothing, nothing[:, None]
        return self._own.get(place) or (self._reaches[place].rounding, self._changes.get(place, torch.zeros(1, 1)))

    def _cut(self, place: int, rounding: torch.Tensor, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What reaches a cut, by the Jacobians from the cuts before."""
        number = self._cuts.places.index(place)
        enclosed = {at: self._enclosed(step) for at, step in self._graph.steps.items() if at in self._first}
        changes = {at: _together(one) for at, one in self._changes.items()}
        stretch = self._cuts.reach(number, self._known, self._first, changes, enclosed.__getitem__)
        self._own[place] = self._arriving(stretch, self._own[place])
        self._added.append(self._own[place])
        total_rounding, total_change = self._own[place]
        for before in range(number):
            gain = self._cuts.norms[before, number]
            total_rounding = total_rounding + gain * self._added[before][0]
            total_change = total_change + gain[:, None] * self._added[before][1]
        total_change = torch.fmin(round_up(total_change), change)
        together = torch.fmin(total_change[:, -1:], self._cuts.changes[number][:, None])
        return torch.fmin(round_up(total_rounding), rounding), torch.cat([total_change[:, :-1], together], 1)

    def _arriving(
        self, stretch: Stretch, products: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rounding and change at a cut by the steps since the last one, each by the Jacobian from its result."""
        flow = {stretch.begin, *stretch.steps}
        rounding, change = torch.zeros(1, dtype=torch.float64), torch.zeros_like(products[1][:1])
        for place in stretch.steps:
            added, moved = self._local[place], torch.zeros_like(change[:1])
            for one, gain in zip(self._graph.steps[place].inputs, self._first[place], strict=True):
                if one not in flow:
                    added = added + gain * self._reaches[one].rounding
                    if one in self._changes:
                        moved = moved + gain[:, None] * self._changes[one]
            through = self._cuts.gains[place]
            rounding, change = rounding + through * added, change + through[:, None] * moved
        return torch.fmin(round_up(rounding), products[0]), torch.fmin(round_up(change), products[1])

    def backward(self) -> PassResult:
        """Go backward.

        Returns:
            Loss, gradient and Hessian bounds.
        """
        graph, size = self._graph, len(self._graph.trainable) + 1
        output = cast("Ball", self._known[graph.output])
        ones = torch.ones_like(output.hi).expand(self.samples, *output.shape[1:])
        self._p = {graph.output: Ball.exact(ones, precise=self._precise)}
        self._moves = {graph.output: _still()}
        self._own_moves = {graph.output: _still()}  # by what lies between here and the next cut alone
        self._added_moves: dict[int, _Reach] = {}
        hessian = torch.zeros(size, size, dtype=torch.float64)
        for place in reversed(graph.steps):
            step = graph.steps[place]
            if step.trained and place in self._p:
                if place in self._cuts.places:
                    self._cut_moves(place)
                hessian += self._pull(place, step, cast("Operation", step.operation))
                if place != graph.output:
                    del self._p[place], self._moves[place], self._own_moves[place]
        gradient, errors = [], []
        for g in graph.trainable:
            nothing = Ball.exact(torch.zeros_like(cast("Ball", self._known[g]).hi), precise=self._precise)
            gradient.append(self._p.get(g, nothing))
            errors.append(float(self._moves[g].rounding.sum()) if g in self._moves else 0.0)
        reach = round_up(self._reaches[graph.output].rounding).reshape(-1)
        losses = output.reshape(-1)
        return PassResult(Ball(losses.hi, losses.lo, reach.expand(len(losses.hi))), gradient, errors, round_up(hessian))

    def sizes(self) -> dict[int, int]:
        """Place -> numbers of one sample's tensor."""
        tensors = {place: one.hi if isinstance(one, Ball) else one for place, one in self._known.items()}
        return {place: tensor[0].numel() for place, tensor in tensors.items()}

    def loudest(self) -> tuple[str, float]:
        """What is to blame for a large bound.

        Returns:
            A trained operation whose arguments may be at a kink, or the one that amplifies changes most, in words; and
            the factor, where NaN counts as infinite.
        """
        for place in self._first:
            step = self._graph.steps[place]
            kinked = step.operation if step.trained else None  # derivatives of frozen steps are not needed
            if isinstance(kinked, Pieces) and kinked.at_kink(self._enclosed(step)[0]):
                name = f"{kinked.name} ({step.where})"
                return f"an argument of {name} may be at a kink, where the derivative jumps", math.inf
        found = ("no operation changes anything", 0.0)
        for place, gains in self._first.items():
            step = self._graph.steps[place]
            through = [one for one, of in zip(gains, step.inputs, strict=True) if of in self._graph.steps]
            gain = max((float(one.max()) for one in through), default=0.0)
            gain = math.inf if math.isnan(gain) else gain
            if gain > found[1]:  # the first of those that are infinite
                name = f"{type(step.operation).__name__} ({step.where})"
                found = f"the bound of changes grows most in {name}, by {gain:.3g}", gain
        return found

    def _pull(self, place: int, step: Step, operation: Operation) -> torch.Tensor:
        """One step backward: its part of the Hessian bounds, and the derivatives in its arguments."""
        p, moves = self._p[place], self._moves[place]
        args, wanted = [self._known[one] for one in step.inputs], [self._trained(one) for one in step.inputs]
        found = operation.pull(cast("list[Ball]", args), cast("Ball", self._known[place]), p, wanted)
        spread = len(p.hi)
        gains = self._first[place]
        reaches = [_Reach(gain * moves.rounding, gain * moves.ball) for gain in gains]
        own_moves = self._own_moves[place]
        own = [_Reach(gain * own_moves.rounding, gain * own_moves.ball) for gain in gains]
        size = len(self._graph.trainable) + 1
        hessian = torch.zeros(size, size, dtype=torch.float64)
        if not operation.linear:
            out = Enclosure.of(cast("Ball", self._known[place]), self._reaches[place].ball)
            enclosed = Enclosure.of(p, moves.ball)
            for (i, j), weight in operation.second(self._enclosed(step), out, enclosed).items():
                a, b = step.inputs[i], step.inputs[j]
                if a in self._changes and b in self._changes:
                    block = _outer(weight.reshape(-1, 1) * self._changes[a], self._changes[b])
                    hessian += block if i == j else block + block.T
                for mine, other in {(i, b), (j, a)}:
                    far = self._reaches[other]
                    more = _Reach(weight * far.rounding, weight * far.ball)
                    reaches[mine], own[mine] = reaches[mine].plus(more), own[mine].plus(more)
        for one, part, reach, alone in zip(step.inputs, found, reaches, own, strict=True):
            if part is not None and self._trained(one):
                self._accumulate(one, part, (reach, alone), spread)
        return hessian

    def _accumulate(self, place: int, part: Ball, reaches: tuple[_Reach, _Reach], spread: int) -> None:
        """Add to the derivative of the loss in a tensor; what is the same for all samples sums over them."""
        value, local = _without_error(part)
        if len(value.hi) == 1 < spread:
            reaches = reaches[0].summed(spread), reaches[1].summed(spread)
        reach, alone = reaches
        rounded = _Reach(local, local)
        reach, alone = reach.plus(rounded), alone.plus(rounded)
        if place in self._p:
            value, local = _without_error(add(self._p[place], value))
            rounded = _Reach(local, local)
            reach = reach.plus(self._moves[place]).plus(rounded)
            alone = alone.plus(self._own_moves[place]).plus(rounded)
        self._p[place], self._moves[place], self._own_moves[place] = value, reach, alone

    def _cut_moves(self, place: int) -> None:
        """How far the derivative in a cut can be, by the Jacobians to the cuts after it."""
        number = self._cuts.places.index(place)
        total = self._added_moves[number] = self._own_moves[place]
        for after in range(number + 1, len(self._cuts.places)):
            gain, far = self._cuts.norms[number, after], self._added_moves[after]
            total = total.plus(_Reach(gain * far.rounding, gain * far.ball))
        crude = self._moves[place]
        least = torch.fmin(total.rounding, crude.rounding), torch.fmin(total.ball, crude.ball)
        self._moves[place] = _Reach(*least)
        self._own_moves[place] = _still()

    def _trained(self, place: int) -> bool:
        step = self._graph.steps.get(place)
        return step.trained if step is not None else place in self._graph.trainable

    def _enclosed(self, step: Step) -> list[Enclosure]:
        found = []
        for one in step.inputs:
            arg = self._known[one]
            found.append(Enclosure.of(arg, self._reaches[one].ball) if isinstance(arg, Ball) else arg)
        return cast("list[Enclosure]", found)


def _together(changes: torch.Tensor) -> torch.Tensor:
    """The least bound of the change under a unit step of all parameters together."""
    return torch.minimum(round_up(changes[:, :-1].norm(dim=1)), changes[:, -1])


def _outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum over the samples of products of changes."""
    size = max(len(left), len(right))
    return left.expand(size, -1).T @ right.expand(size, -1)
