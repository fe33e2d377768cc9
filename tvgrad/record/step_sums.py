"""StepSums: the sums over the steps of a training that explain it, formed where its gradients are.

A script's steps are not recorded one by one. Started again, it forms the sums that an error budget needs, with one
buffer each: those of the training itself, and those of its batches at theta_0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tvgrad.record.step_plan import ScriptSum, StepPlan
from tvgrad.update_rules.grouped import Coefficient, parts_of
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import BLOCK, add_scaled, blocks_of, combination
from tvgrad.vectors.parameters import Weights


class StepSums:
    """The sums of one start of a script.

    Attributes:
        sums: epoch that is explained -> what -> the sum, float64; displacements of float32 weights in float32.
        steps: steps that were added.
    """

    def __init__(self, plan: StepPlan, start: Mapping[str, torch.Tensor]) -> None:
        """Start before the first step.

        Args:
            plan: what is wanted.
            start: name -> theta_0, which stays as it is.
        """
        self.plan = plan
        self.sums: dict[int, dict[ScriptSum, Weights]] = {epoch: {} for epoch in plan.weights}
        self.steps = 0
        self._start = start
        self._rule = rule_from_dict(plan.rule)
        self._full: Trajectory | None = None  # a pass at theta_0 follows no rule
        self._without_decay: Trajectory | None = None

    @property
    def complete(self) -> bool:
        """Whether no step is wanted any more."""
        return self.steps >= self.plan.ends[-1]

    @torch.no_grad()
    def add_training_step(self, consumed: Mapping[str, torch.Tensor], theta: Mapping[str, torch.Tensor]) -> None:
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
            self._add_displacement(epoch, theta, weight)
        self.steps += 1

    def end_training_step(self, after: Mapping[str, torch.Tensor]) -> None:
        """A step of the training was taken.

        Args:
            after: name -> weights.
        """
        full = self._full
        assert full is not None
        for epoch, sums in self.sums.items():
            if self.steps == self.plan.ends[epoch]:
                plain = full.without_decay or (self._without_decay or full).task_vector
                sums[ScriptSum.RULE] = self._kept(full.task_vector)
                sums[ScriptSum.WITHOUT_DECAY] = sums[ScriptSum.RULE]
                if plain is not full.task_vector:
                    sums[ScriptSum.WITHOUT_DECAY] = self._kept(plain)
                if not self._clipped(epoch):
                    sums[ScriptSum.UNCLIPPED] = sums[ScriptSum.CONSUMED]
                sums[ScriptSum.AFTER] = {name: tensor.detach().clone() for name, tensor in after.items()}

    @torch.no_grad()
    def add_batch(self, gradient: Mapping[str, torch.Tensor]) -> bool:
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

    def add_epoch(self, mean: Mapping[str, torch.Tensor]) -> None:
        """Add an epoch at theta_0 that has just ended.

        Args:
            mean: name -> its gradient, batches weighted by their part of the data.
        """
        number = self.plan.ends.index(self.steps)
        for epoch in self.sums:
            if epoch >= number:
                self._add(epoch, ScriptSum.BATCHES_BY_SIZE, self._whole(mean), self.plan.of_epoch(epoch, number))

    def _begin(self) -> None:
        """Follow the rule with its decay and without: in one go, where decay takes no part in the directions."""
        coupled = any(part.coupled_decay for part in parts_of(self._rule))
        self._full = Trajectory(self._rule, self._start, without_decay=self._rule.decays and not coupled)
        if coupled:
            self._without_decay = Trajectory(self._rule.without_decay(), self._start)

    def _wanted(self) -> Sequence[int]:
        return [epoch for epoch in self.sums if self.plan.ends[epoch] > self.steps]

    def _clipped(self, epoch: int) -> bool:
        return any(clip != 1 for clip in self.plan.clips[: self.plan.ends[epoch]])

    def _kept(self, vector: Weights) -> Weights:
        """The vector as it is now: itself, where it moves no more."""
        return vector if self.complete else combination((1.0, vector))

    def _whole(self, gradient: Mapping[str, torch.Tensor]) -> Weights:
        zero = torch.zeros(())
        return {
            name: gradient[name].detach() if name in gradient else zero.to(tensor).expand(tensor.shape)
            for name, tensor in self._start.items()
        }

    def _add(self, epoch: int, what: ScriptSum, vector: Weights, weight: Coefficient) -> None:
        sums = self.sums[epoch]
        if what in sums:
            add_scaled(sums[what], vector, weight)
        else:
            sums[what] = combination((weight, vector))

    def _add_displacement(self, epoch: int, theta: Mapping[str, torch.Tensor], weight: Coefficient) -> None:
        held = self.sums[epoch].setdefault(ScriptSum.DISPLACEMENT, {})
        for name, start in self._start.items():
            # The direction of a difference of gradients, which is an estimate: float32 is enough beside float32 weights
            wide = torch.float64 if start.dtype == torch.float64 else torch.float32
            if name not in held:
                held[name] = torch.zeros_like(start, dtype=wide)
            factor = weight.get(name, 0.0) if isinstance(weight, Mapping) else weight
            for total, here, before in blocks_of([held[name], theta[name], start], BLOCK):
                total.add_((here.double() - before.double()).mul_(factor))


def _times(weight: Coefficient, factor: float) -> Coefficient:
    if isinstance(weight, Mapping):
        return {name: factor * value for name, value in weight.items()}
    return factor * weight
