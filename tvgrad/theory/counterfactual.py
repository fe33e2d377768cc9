"""Counterfactual: the task vector that training without some samples would have made, told without training.

To second order in the rate, the task vector of a linear rule is `-S_k g_0 + Q_k H_0 g_0`, or the same over mini-batches
whose order is known. Taking samples away changes gradient and Hessian; what that changes in the second-order prediction
is added to the task vector as recorded, so that all that the prediction misses on both sides falls out:

    tau_without ~ tau + prediction(kept samples) - prediction(all samples).

With mini-batches the order stays as it was; a batch that loses all its samples has no step, and one that is left with
samples without weight alone (ignored labels) has a step with a gradient of zero, as in training.

How far the second-order prediction is from the training as it was is known, and says how far the change can be trusted:
both miss what is of third order and beyond (`docs/concepts/attribution.md`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.results import Result, Shown
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import predict_batches
from tvgrad.theory.second_order import predict
from tvgrad.theory.training_steps import Schedule, schedule_of
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import combination, to_float64
from tvgrad.vectors.parameters import Weights, cosine, norm

TRUSTED = 0.15
"""Share of the task vector that the prediction of the training as it was may miss: told and true changes of losses were
found to correlate by 0.95 and more up to there, and by less beyond."""


@dataclass(frozen=True)
class CounterfactualRow(Result):
    """What leaving samples out changes; estimates.

    Attributes:
        removed: how many samples are left out.
        change_norm: of the predicted change of the task vector, over the norm of the task vector.
        cosine: between the task vector and the predicted one.
        loss: full-batch loss at the end of the training as it was.
        predicted_loss: the same loss, all samples in it, at the predicted end.
        removed_loss: mean loss of the samples left out, at the end of the training as it was.
        predicted_removed_loss: the same at the predicted end; both are NaN where these samples have no weight.
        missed: the distance between the task vector and its own second-order prediction, over its norm. This is
            measured; the predicted change was found to be off by about this share of itself.
        kind: `estimate`.
    """

    removed: int
    change_norm: float
    cosine: float
    loss: float
    predicted_loss: float
    removed_loss: float
    predicted_removed_loss: float
    missed: float
    kind: str = "estimate"


@dataclass(frozen=True, repr=False)
class Counterfactual(Shown):
    """A training without some samples, told without training.

    Attributes:
        task_vector: that it would have made, to second order.
        row: what that changes.
    """

    task_vector: Weights
    row: CounterfactualRow


class Without:
    """Tells counterfactuals of one run; what they share is computed once.

    Attributes:
        task_vector: of the run.
        epoch: after which.
        missed: the distance between the task vector and its own second-order prediction, over its norm.
    """

    def __init__(self, run: Run, objective: Objective, epoch: int) -> None:
        """Predict the training as it was.

        Args:
            run: a run recorded by epoch under a linear rule; where an epoch has more than one step its batches must be
                recorded.
            objective: of the run's recipe, at its pretrained weights.
            epoch: after which.

        Raises:
            TvgradError: the rule is not linear, a step was clipped, or the batches are not known.
        """
        self.epoch, self._objective = epoch, objective
        schedule = schedule_of(run, epoch)
        if schedule.clipped:
            raise TvgradError(
                f"{run.root} clipped its gradients, and without some samples it would clip them otherwise"
            )
        if not schedule.full and schedule.batches is None:
            raise TvgradError(f"the counterfactual of {run.root} needs its batches, and {schedule.unknown}")
        rule = schedule.rule_until(epoch)
        if not isinstance(rule, UpdateRule):
            raise TvgradError(f"{run.root} has a rule for each group of parameters: counterfactuals take one rule")
        self._rule, self._batches = rule, epoch_batches(schedule, len(objective.samples))
        self._start = to_float64(run.weights(0), objective.home)
        self.task_vector = to_float64(run.task_vector(epoch), objective.home)
        self._before = self._predicted(self._batches)
        self.missed = norm(combination((1.0, self._before), (-1.0, self.task_vector))) / norm(self.task_vector)

    def tell(self, removed: Sequence[int]) -> Counterfactual:
        """Predict the training without some samples.

        Costs a gradient and a Hessian-vector product over the data for each epoch (one of each in all for full-batch
        steps), and four losses.

        Args:
            removed: positions of the samples to leave out.

        Returns:
            What would have come out.

        Raises:
            TvgradError: no samples are given, or none is left.
        """
        gone, kept = self._kept(removed)
        after = self._predicted(kept)
        vector = combination((1.0, self.task_vector), (1.0, after), (-1.0, self._before))
        ends = [combination((1.0, self._start), (1.0, one)) for one in (self.task_vector, vector)]
        view = self._objective.subset(gone)
        loss, predicted, own, predicted_own = (one.value(end) for one in (self._objective, view) for end in ends)
        change = norm(combination((1.0, vector), (-1.0, self.task_vector))) / norm(self.task_vector)
        turned = cosine(self.task_vector, vector)
        losses = loss, predicted, own, predicted_own
        return Counterfactual(vector, CounterfactualRow(len(gone), change, turned, *losses, self.missed))

    def retrained(self, removed: Sequence[int]) -> Weights:
        """Train without some samples, in float64 and with the batches that the run had: the truth.

        Args:
            removed: positions of the samples to leave out.

        Returns:
            The task vector.

        Raises:
            TvgradError: no samples are given, or none is left.
        """
        path = Trajectory(self._rule, self._start)
        for batch in itertools.chain.from_iterable(self._kept(removed)[1]):
            weights = combination((1.0, self._start), (1.0, path.task_vector))
            path.step(self._objective.subset(batch).gradient(weights))
        return path.task_vector

    def _kept(self, removed: Sequence[int]) -> tuple[list[int], list[list[torch.Tensor]]]:
        """The samples left out, in order, and the batches without them."""
        gone = sorted({int(one) for one in removed})
        if not gone:
            raise TvgradError("no samples to leave out are given")
        return gone, without(self._batches, gone, len(self._objective.samples))

    def _predicted(self, batches: Sequence[Sequence[torch.Tensor]]) -> Weights:
        return second_order_vector(self._objective, self._rule, batches, self._start)


def epoch_batches(schedule: Schedule, samples: int) -> list[list[torch.Tensor]]:
    """List the samples of every step, epoch by epoch.

    Args:
        schedule: of a run.
        samples: of its data.

    Returns:
        Positions in the data.
    """
    if schedule.batches is None:
        return [[torch.arange(samples)] for _ in schedule.ends[1:]]
    return [list(steps) for steps in schedule.batches]


def without(batches: Sequence[Sequence[torch.Tensor]], gone: Sequence[int], samples: int) -> list[list[torch.Tensor]]:
    """Take samples out of batches.

    Args:
        batches: positions in the data, epoch by epoch.
        gone: the samples to take out.
        samples: of the data.

    Returns:
        The batches without them, empty ones left out.

    Raises:
        TvgradError: one is no sample of the data, or an epoch is left with none.
    """
    if gone[0] < 0 or gone[-1] >= samples:
        wrong = gone[0] if gone[0] < 0 else gone[-1]
        raise TvgradError(f"samples are numbered from 0 to {samples - 1}: {wrong} is none of them")
    keep = torch.ones(samples, dtype=torch.bool)
    keep[list(gone)] = False
    found = [[kept for one in steps if len(kept := one[keep[one]])] for steps in batches]
    if not all(found):
        raise TvgradError("without these samples an epoch has none left: leave fewer out")
    return found


def second_order_vector(
    objective: Objective, rule: UpdateRule, batches: Sequence[Sequence[torch.Tensor]], start: Weights
) -> Weights:
    """Predict a task vector to second order.

    Args:
        objective: model, loss and data.
        rule: a linear rule, whose schedule counts steps.
        batches: positions of each step's samples, epoch by epoch.
        start: theta_0.

    Returns:
        The prediction, in float64.
    """
    first = batches[0][0]
    if all(len(steps) == 1 and torch.equal(steps[0], first) for steps in batches):
        told = predict(objective.subset(first), rule, len(batches), quadratic=False, at=start)
        return told.order2
    *_, last = predict_batches(objective, rule, batches, at=start)
    assert last.order2 is not None
    return last.order2
