"""StepSums: the sums over the steps of a training that explain it, formed where its gradients are.

A script's steps are not recorded one by one. Started again, it forms the sums that an error budget needs: those of the
training itself, and those of its batches at theta_0. They take memory beside the training's own, so that each is held
as narrow as what is said of it allows, and leaves the memory as soon as it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tvgrad.record.spilled_sum import SpilledSum
from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.update_rules.grouped import Coefficient, is_linear, parts_of, rule_of
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import BLOCK, add_scaled, blocks_of, combination
from tvgrad.vectors.lazy import LazyCombination
from tvgrad.vectors.parameters import Weights

Vector = Mapping[str, torch.Tensor]
Keep = Callable[[int, ScriptSum, Vector], Vector]


def copied(epoch: int, what: ScriptSum, content: Vector) -> Weights:  # noqa: ARG001
    """Keep a sum in memory.

    Args:
        epoch: that is explained.
        what: the sum.
        content: it, which may change later.

    Returns:
        A copy.
    """
    return {name: content[name].detach().clone() for name in content}


class StepSums:
    """The sums of one start of a script.

    Attributes:
        sums: epoch that is explained -> what -> the sum, float64, as it was kept; displacements of float32 weights in
            float32. What would be the same as another is not there: WITHOUT_DECAY of a rule that has none, and
            UNCLIPPED where nothing was clipped.
        steps: steps that were added.
    """

    def __init__(
        self,
        plan: StepPlan,
        parameters: Vector,
        start: Vector | None = None,
        *,
        keep: Keep = copied,
        folder: Path | None = None,
    ) -> None:
        """Start before the first step.

        Args:
            plan: what is wanted.
            parameters: name -> tensor, for shapes, dtypes and devices.
            start: name -> theta_0, which is read when it is asked for; None where it is what `parameters` hold and
                go on to hold.
            keep: is handed each sum when it is complete, and returns where it is from then on.
            folder: for files of sums that are not held in memory whole; without it all are.
        """
        self.plan = plan
        self.sums: dict[int, dict[ScriptSum, Vector]] = {epoch: {} for epoch in plan.weights}
        self.steps = 0
        self._parameters = parameters
        self._start = parameters if start is None else start
        self._keep = keep
        self._folder = folder
        self._growing: dict[int, dict[ScriptSum, Weights | SpilledSum]] = {epoch: {} for epoch in plan.weights}
        self._rule = rule_from_dict(plan.rule)
        self._full: Trajectory | None = None  # a pass at theta_0 follows no rule
        self._without_decay: Trajectory | None = None
        self._decayed: Weights = {}
        self._decay = dict.fromkeys(parameters, 0.0)

    @property
    def complete(self) -> bool:
        """Whether no step is wanted any more."""
        return self.steps >= self.plan.ends[-1]

    @torch.no_grad()
    def add_training_step(self, consumed: Vector, theta: Vector) -> None:
        """Add a step of the training, before it is taken.

        Args:
            consumed: name -> gradient, of any dtype; none is zero.
            theta: name -> weights.
        """
        gradient = self._whole(consumed)
        if self._full is None:
            self._begin()
        assert self._full is not None
        self._full.step(gradient, theta)
        if self._without_decay is not None:
            self._without_decay.step(gradient)
        clip = self.plan.clips[self.steps]
        for epoch in self._wanted():
            weight = self.plan.of_steps(epoch, self.steps, self.steps + 1)
            self._add(epoch, ScriptSum.CONSUMED, gradient, weight)
            if self._clipped(epoch):
                self._add(epoch, ScriptSum.UNCLIPPED, gradient, _times(weight, 1 / clip))
        self._add_displacements(theta)
        self.steps += 1

    def end_training_step(self, after: Vector) -> None:
        """A step of the training was taken.

        Args:
            after: name -> weights.
        """
        full = self._full
        assert full is not None
        for epoch in self.sums:
            if self.steps != self.plan.ends[epoch]:
                continue
            self._complete(epoch, ScriptSum.RULE, full.task_vector)
            plain: Vector = (self._without_decay or full).task_vector
            if self._decayed:
                plain = LazyCombination((1.0, plain), (self._decay, self._start), (1.0, self._decayed))
            if self._rule.decays:
                self._complete(epoch, ScriptSum.WITHOUT_DECAY, plain)
            self._complete(epoch, ScriptSum.AFTER, after)
            self._complete_grown(epoch)

    @torch.no_grad()
    def add_batch(self, gradient: Vector) -> bool:
        """Add a step's batches at theta_0.

        Args:
            gradient: name -> gradient before clipping, of any dtype; none is zero.

        Returns:
            Whether an epoch has ended with it.
        """
        whole, ends = self._whole(gradient), self.plan.ends
        place = next(index for index, end in enumerate(ends) if end > self.steps)
        for epoch in self._wanted():
            weight = self.plan.of_steps(epoch, self.steps, self.steps + 1)
            alike = _times(self.plan.of_epoch(epoch, place), 1 / (ends[place] - ends[place - 1]))
            self._add(epoch, ScriptSum.BATCH_GRADIENT, whole, weight)
            self._add(epoch, ScriptSum.EQUAL_BATCHES, whole, alike)
        self.steps += 1
        return self.steps == ends[place]

    def add_epoch(self, mean: Vector) -> None:
        """Add an epoch at theta_0 that has just ended.

        Args:
            mean: name -> its gradient, batches weighted by their part of the data.
        """
        number = self.plan.ends.index(self.steps)
        for epoch in self.sums:
            if epoch >= number:
                self._add(epoch, ScriptSum.BATCHES_BY_SIZE, self._whole(mean), self.plan.of_epoch(epoch, number))
            if epoch == number:
                self._complete_grown(epoch)

    def _begin(self) -> None:
        """Follow the rule with its decay; and without, where the directions depend on it."""
        parts = parts_of(self._rule)
        self._full = Trajectory(self._rule, self._parameters)
        if any(part.coupled_decay for part in parts):
            self._without_decay = Trajectory(self._rule.without_decay(), self._parameters)
        elif self._rule.decays:
            # Without decay the directions are the same: what it took, rate * decay * theta_s, is told from its multiple
            # of theta_0, which is formed at the end, and the small rest, for which the weights' own format is enough.
            self._decayed = self._displacements()

    def _wanted(self) -> Sequence[int]:
        return [epoch for epoch in self.sums if self.plan.ends[epoch] > self.steps]

    def _clipped(self, epoch: int) -> bool:
        return any(clip != 1 for clip in self.plan.clips[: self.plan.ends[epoch]])

    def _whole(self, gradient: Vector) -> Weights:
        zero = torch.zeros(())
        return {
            name: gradient[name].detach() if name in gradient else zero.to(tensor).expand(tensor.shape)
            for name, tensor in self._parameters.items()
        }

    def _add(self, epoch: int, what: ScriptSum, vector: Weights, weight: Coefficient) -> None:
        growing = self._growing[epoch]
        if what not in growing and self._spills(epoch):
            assert self._folder is not None
            growing[what] = SpilledSum(self._parameters, self._folder / f"growing-{epoch}-{what.value}")
        total = growing.get(what)
        if total is None:
            growing[what] = combination((weight, vector))
        elif isinstance(total, SpilledSum):
            total.add(vector, weight)
        else:
            add_scaled(total, vector, weight)

    def _spills(self, epoch: int) -> bool:
        # Beside a rule that keeps averages of its own. Of a linear one, and of one step, rows are zero to the rounding
        # of float64 sums, which float32 would hide.
        if self._folder is None or self._full is None:
            return False
        return not is_linear(self._rule) and self.plan.ends[epoch] > 1

    def _complete(self, epoch: int, what: ScriptSum, content: Vector) -> None:
        self.sums[epoch][what] = self._keep(epoch, what, content)

    def _complete_grown(self, epoch: int) -> None:
        growing = self._growing[epoch]
        for what in list(growing):
            self._complete(epoch, what, growing.pop(what))

    def _displacements(self) -> Weights:
        # The direction of a difference of gradients, which is an estimate: float32 is enough beside float32 weights
        wide = torch.float64
        return {
            name: torch.zeros_like(one, dtype=wide if one.dtype == wide else torch.float32, requires_grad=False)
            for name, one in self._parameters.items()
        }

    def _add_displacements(self, theta: Vector) -> None:
        """Add multiples of theta_s - theta_0: those of each epoch's products, and what decay took."""
        sums = list[tuple[Weights, Coefficient]]()
        for epoch in self._wanted() if self.plan.curvature else ():
            held = self._growing[epoch].setdefault(ScriptSum.DISPLACEMENT, self._displacements())
            assert isinstance(held, dict)
            sums.append((held, self.plan.of_steps(epoch, self.steps, self.steps + 1)))
        if self._decayed:
            decay = {name: self._decay_of(name) for name in self._parameters}
            self._decay = {name: total + decay[name] for name, total in self._decay.items()}
            sums.append((self._decayed, decay))
        if not sums:
            return
        for name in self._parameters:
            here, before = theta[name], self._start[name]
            parts = [*(held[name] for held, _ in sums), here, before.to(here.device)]
            for *totals, here, before in blocks_of(parts, BLOCK):
                moved = here.double() - before.double()
                for total, (_, factor) in zip(totals, sums, strict=True):
                    total.add_(moved, alpha=factor.get(name, 0.0) if isinstance(factor, Mapping) else factor)

    def _decay_of(self, name: str) -> float:
        rule = rule_of(self._rule, name)
        return 0.0 if rule is None else rule.rate(self.steps) * rule.decoupled_decay


def _times(weight: Coefficient, factor: float) -> Coefficient:
    if isinstance(weight, Mapping):
        return {name: factor * value for name, value in weight.items()}
    return factor * weight
