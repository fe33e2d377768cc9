"""A stretch of a program between two cuts: what is pulled back through it, for each sample.

From the rows of the identity at its end the steps' own pullbacks make, on one way back, the Jacobian from every tensor
of the stretch to its end: the whole one, the norms of the others, and, with what parameters do to each tensor, the
motion that enters on the way (`motions`).

**Errors.** If R is what is pulled back to a tensor v, e a bound of a row's distance to the exact row anywhere in the
ball, L the step's `first` and b how much its derivative can change (the radius of each argument times `second` for a
derivative of the loss of norm 1), then a row at the step's argument is within `L e + b ||R_row|| + rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.graph import Step
from tvgrad.bounds.program.jacobians import Jacobian
from tvgrad.bounds.program.motions import Motion, factor_of, gram, reduced, squared
from tvgrad.bounds.program.operation import Operation
from tvgrad.bounds.program.rows import Rows
from tvgrad.numerics.floats import round_up

Known = Ball | torch.Tensor

_ROUNDING = 1e-11
"""Over the rounding of M and M M' in float64, relative to the square of the Frobenius norm of M."""


@dataclass(frozen=True)
class Stretch:
    """The steps between two cuts, or before the first.

    Attributes:
        begin: place of the first cut; None before the first.
        steps: places of the trained steps of a sample between them, in order; the last is the second cut.
        by_token: whether each vector along the last axis goes its own way.
    """

    begin: int | None
    steps: tuple[int, ...]
    by_token: bool

    @classmethod
    def between(
        cls, begin: int | None, end: int, steps: Mapping[int, Step], known: Mapping[int, Known], sampled: frozenset[int]
    ) -> Stretch:
        """Find the steps.

        Args:
            begin: place of the first cut, or None.
            end: place of the second.
            steps: of the program.
            known: computed tensors.
            sampled: places that depend on the sample.

        Returns:
            The stretch.
        """
        after = -1 if begin is None else begin
        path = tuple(
            place for place, step in steps.items() if after < place <= end and place in sampled and step.trained
        )
        flow = {*path} if begin is None else {begin, *path}
        shapes = {cast("Ball", known[place]).shape[1:-1] for place in flow}
        operations = [cast("Operation", steps[place].operation) for place in path]
        return cls(begin, path, len(shapes) == 1 and len(shapes.pop()) > 0 and all(one.by_row for one in operations))


@dataclass(frozen=True)
class Facts:
    """What is known of a program when a stretch is pulled back.

    Attributes:
        steps: of the program.
        known: computed tensors, of n samples.
        first: bounds of the derivatives of the steps.
        bends: for each argument of a step, how much the derivative in it can be from the computed one, (n or 1,).
        changes: place -> change under a unit step of all parameters together, (n or 1,).
        entries: (step, argument) -> how often the parameters that enter there enter.
    """

    steps: Mapping[int, Step]
    known: Mapping[int, Known]
    first: Mapping[int, Sequence[torch.Tensor]]
    bends: Mapping[int, Sequence[torch.Tensor]]
    changes: Mapping[int, torch.Tensor]
    entries: Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Pulled:
    """What came back.

    Attributes:
        jacobian: from the first cut to the second, None before the first.
        own: the motion that enters on the way.
        gains: for every step an upper bound of the norm of the Jacobian from its result to the end, anywhere in the
            ball, (n,).
    """

    jacobian: Jacobian | None
    own: Motion
    gains: dict[int, torch.Tensor]


def pull_back(stretch: Stretch, facts: Facts) -> Pulled:
    """Go back through a stretch with every sample.

    Args:
        stretch: where.
        facts: what is known.

    Returns:
        What came back.
    """
    samples = len(cast("Ball", facts.known[stretch.steps[-1]]).hi)
    found = [_Sample(stretch, facts, sample).pull() for sample in range(samples)]
    gains = {place: torch.stack([one.gains[place] for one in found]) for place in stretch.steps}
    own = Motion(torch.stack([one.own for one in found]), torch.stack([one.own_error for one in found]))
    if stretch.begin is None:
        return Pulled(None, own, gains)
    matrices, errors = torch.stack([one.matrix for one in found]), torch.stack([one.error for one in found])
    return Pulled(Jacobian(matrices, errors), own, gains)


class _Sample:
    """One sample's rows on their way back.

    Attributes:
        matrix: the Jacobian, (rows, columns) or (tokens, rows, columns).
        error: its Frobenius distance to the exact one at most.
        own: the motion that enters, (D, D).
        own_error: the spectral norm of its distance to the exact one at most.
        gains: for each step, a bound on the norm of the Jacobian from its result.
    """

    matrix: torch.Tensor
    error: torch.Tensor

    def __init__(self, stretch: Stretch, facts: Facts, sample: int) -> None:
        self._stretch, self._facts, self._sample = stretch, facts, sample
        self.gains: dict[int, torch.Tensor] = {}
        last = stretch.steps[-1]
        end = cast("Ball", facts.known[last])
        size = end.hi[0].numel()
        if stretch.by_token:
            self._rows = end.shape[-1]
            ones = torch.eye(self._rows, dtype=torch.float64).reshape(-1, *[1] * (end.hi.ndim - 2), self._rows)
            identity = ones.expand(self._rows, *end.shape[1:]).contiguous()
        else:
            self._rows = size
            identity = torch.eye(size, dtype=torch.float64).reshape(size, *end.shape[1:])
        self._p = {last: Rows.of(identity)}
        self._errors = {last: torch.zeros(self._rows, dtype=torch.float64)}
        self._products = {last: torch.ones((), dtype=torch.float64)}
        self._factors = list[torch.Tensor]()
        self.own, self.own_error = torch.zeros(size, size, dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def pull(self) -> _Sample:
        """Walk back to the begin."""
        facts, begin = self._facts, self._stretch.begin
        flow = {*self._stretch.steps} | ({begin} if begin is not None else set())
        for place in reversed(self._stretch.steps):
            step, mine, error = facts.steps[place], self._p.pop(place), self._errors.pop(place)
            product = self._products.pop(place)
            self.gains[place] = torch.fmin(self._norm(mine, error), round_up(product))
            wanted = [one in flow for one in step.inputs]
            args = [self._argument(one, want) for one, want in zip(step.inputs, wanted, strict=True)]
            self._enter(place, mine, error)
            if not any(wanted):
                continue
            out = self._argument(place, True)
            pulled = cast("Operation", step.operation).pull(cast("list[Ball]", args), cast("Ball", out), mine, wanted)
            length = mine.size + error
            for number, (one, part) in enumerate(zip(step.inputs, pulled, strict=True)):
                if part is not None and one in flow:
                    gain, bend = (self._of(known[place][number]) for known in (facts.first, facts.bends))
                    self._accumulate(one, cast("Rows", part), round_up(gain * error + bend * length + part.err))
                    before = self._products.get(one, torch.zeros((), dtype=torch.float64))
                    self._products[one] = round_up(before + gain * product)
        if begin is not None:
            rows, errors = self._p[begin].hi, self._errors[begin]
            self.matrix = self._tokens(rows) if self._stretch.by_token else rows.flatten(1)
            self.error = round_up(errors.norm())
        if self._factors:
            self.own.add_(squared(torch.cat(self._factors, 1)))
            self._factors.clear()
        self.own_error = round_up(self.own_error + _ROUNDING * (1 + self.own.diagonal().sum()))
        return self

    def _enter(self, place: int, mine: Rows, error: torch.Tensor) -> None:
        """Note the motion by the parameters that enter at a step."""
        step, shape = self._facts.steps[place], mine.hi.shape[1:]
        alike = list[torch.Tensor]()  # drifts that are the same for every channel, of weights and biases say
        for number in range(len(step.inputs)):
            if (place, number) not in self._facts.entries:
                continue
            args = [self._argument(arg, False) for arg in step.inputs]
            drift = cast("Operation", step.operation).drift(args, number, shape)
            factor = self._factor(place, number, drift, error)
            if drift is not None and drift.shape[-1] == 1:
                alike.append(factor * drift.hi)
            elif drift is not None:
                self._add(place, mine, factor * drift.hi)
        if alike:
            self._add(place, mine, torch.cat(alike, 1))

    def _factor(self, place: int, number: int, drift: Ball | None, error: torch.Tensor) -> torch.Tensor:
        """What the drift in an argument is multiplied with; notes how far it can be off."""
        facts, gain = self._facts, self.gains[place]
        count = facts.entries[place, number]
        of = facts.steps[place].inputs[number]
        change, first, bend = (
            self._of(known) for known in (facts.changes[of], facts.first[place][number], facts.bends[place][number])
        )
        most = gain * first * change
        if drift is None:
            self.own.diagonal().add_(round_up(count * most.square()))
        else:
            off = (error.norm() * first + gain * (bend + drift.spread.norm())) * change
            self.own_error = round_up(self.own_error + count * (2 * most * off + off.square()))
        return round_up(change * math.sqrt(count))

    def _add(self, place: int, mine: Rows, drift: torch.Tensor) -> None:
        """Add M M', or keep M for the one product at the end."""
        by_token, width = self._stretch.by_token, mine.hi.shape[-1]
        rows = self._tokens(mine.hi) if by_token else mine.hi.reshape(len(mine.hi), -1, width)
        if by_token and drift.shape[-1] == 1:
            self.own.add_(gram(rows, drift, by_token=True))
            return
        small, apart = (drift, 0.0) if by_token else reduced(drift)
        self._factors.append(factor_of(rows, small, by_token=by_token))
        self.own_error = round_up(self.own_error + self.gains[place].square() * apart)

    def _tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, tokens ..., columns) to (tokens, rows, columns)."""
        return rows.flatten(1, -2).transpose(0, 1)

    def _norm(self, rows: Rows, error: torch.Tensor) -> torch.Tensor:
        """The Frobenius norm, anywhere in the ball."""
        if self._stretch.by_token:
            return Jacobian(self._tokens(rows.hi)[None], error.norm()[None]).frobenius()[0]
        whole: torch.Tensor = rows.size.norm() + error.norm()
        return round_up(whole)

    def _argument(self, place: int, flows: bool) -> Known:
        """One sample's tensor; what flows is seen once for every row."""
        known = self._facts.known[place]
        if not isinstance(known, Ball):
            return self._of(known)[None]
        part = Ball.exact(self._of(known.hi)[None], precise=False)
        return part.map(lambda one: one.expand(self._rows, *one.shape[1:])) if flows else part

    def _accumulate(self, place: int, part: Rows, further: torch.Tensor) -> None:
        part = replace(part, err=torch.zeros_like(part.err))
        if place in self._p:
            part = self._p[place].add(part)
            further = round_up(further + self._errors[place] + part.err)
        self._p[place], self._errors[place] = Rows.of(part.hi), further

    def _of(self, values: torch.Tensor) -> torch.Tensor:
        """This sample's part, or what is the same for all."""
        own: torch.Tensor = values[self._sample if len(values) > 1 else 0]
        return own
