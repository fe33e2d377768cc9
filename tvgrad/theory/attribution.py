"""Attribution: the part that every sample of the data has in a task vector.

For every rule whose task vector is a weighted sum of gradients,

    tau = - sum_s c_s sum_{i in B_s} (w_i / W_s) grad l_i(theta_s) + rest,

w_i the weight of sample i in its batch's mean and W_s that of the batch. The inner sum is cut by samples, so that the
parts of all samples add up to what the gradients made of the task vector; decay and rounding are the rest. The share
of a sample is `<part, tau> / ||tau||^2`. Shares may be negative: such a sample was gone against.

Nothing here is an estimate. The weights theta_s are those of the training: recorded, or gone through again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.problem.batch_loss import target_of
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import check_data, objective_of
from tvgrad.results import Plotted, Result, Shown, frame_of
from tvgrad.store.given import require_run
from tvgrad.store.run import Run
from tvgrad.theory.error_budget import epochs_with_task_vector
from tvgrad.theory.training_steps import (
    RecordedStep,
    Schedule,
    missing_for_replay,
    recorded_steps,
    replayed_steps,
    schedule_of,
)
from tvgrad.update_rules.grouped import coefficients_by_name, is_linear
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import difference, to_float64, zeros_like
from tvgrad.vectors.parameters import inner_product, norm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ClassShare(Result):
    """The part of all samples of one class in a task vector.

    Attributes:
        label: the class.
        samples: how many it has.
        share: of the task vector; the sum of its samples'.
        smallest: share of one of its samples.
        largest: share of one of its samples.
    """

    label: int
    samples: int
    share: float
    smallest: float
    largest: float


@dataclass(frozen=True, repr=False)
class Attribution(Plotted, Shown):
    """Shares of samples in a task vector.

    Attributes:
        run: the run's name.
        epoch: after which.
        shares: one a sample, in the order of the data; with `rest` they sum to 1.
        rest: the share of what is no sample's: decay, and rounding.
        closure: norm of (task vector - decay's part - sum of all parts) over the task vector's, summed vector by
            vector: what rounding left.
        labels: class of every sample; None where targets are no classes.
        rows: one a class; none where targets are no classes.
    """

    run: str
    epoch: int
    shares: NDArray[np.float64]
    rest: float
    closure: float
    labels: NDArray[np.int64] | None
    rows: tuple[ClassShare, ...]

    def to_frame(self) -> pd.DataFrame:
        """The classes; where targets are no classes, the samples."""
        return frame_of(self.rows) if self.rows else self.samples_frame()

    def samples_frame(self) -> pd.DataFrame:
        """Every sample with its share, and its class where it has one."""
        import pandas as pd

        table = pd.DataFrame({"sample": np.arange(len(self.shares)), "share": self.shares})
        return table if self.labels is None else table.assign(label=self.labels)

    def most_aligned(self, count: int = 10) -> tuple[int, ...]:
        """Find the samples with the largest shares.

        Args:
            count: how many.

        Returns:
            Their positions in the data, the largest share first.
        """
        return tuple(int(one) for one in np.argsort(-self.shares, kind="stable")[:count])

    def least_aligned(self, count: int = 10) -> tuple[int, ...]:
        """Find the samples with the smallest shares: those that the task vector goes against, where they are negative.

        Args:
            count: how many.

        Returns:
            Their positions in the data, the smallest share first.
        """
        return tuple(int(one) for one in np.argsort(self.shares, kind="stable")[:count])


def attribution(run: Run, objective: Objective | Recipe, epoch: int | None = None) -> Attribution:
    """Cut a task vector into the parts of the samples that it was trained on.

    Takes the gradients of all samples at every step, and holds three vectors and one chunk of gradients.

    Args:
        run: a run recorded by epoch whose rule is linear in the gradients. Where an epoch has more than one step its
            batches must be recorded.
        objective: of the run's recipe, in the run's dtype or float64; or the recipe itself, whose gradients are then
            computed in float64.
        epoch: after which; by default the last one whose weights were kept.

    Returns:
        The shares.

    Raises:
        TvgradError: the run was trained by another rule, its steps cannot be gone through, the epoch was not kept, or
            the data is not what was recorded.

    Example:
        >>> import pathlib, torch, tvgrad
        >>> from tvgrad.record.options import TraceOptions
        >>> from tvgrad.record.training_loop import prepare, trace
        >>> data = torch.eye(3).double(), torch.tensor([[1.0], [2.0], [3.0]]).double()
        >>> model = torch.nn.Linear(3, 1, bias=False).double()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> recipe = tvgrad.Recipe(model, torch.nn.MSELoss(), data, lr=0.1, epochs=2)
        >>> run = trace(prepare(recipe, TraceOptions()), pathlib.Path("run"))
        >>> tvgrad.attribution(run, recipe).shares.round(6).tolist()  # 1, 4 and 9 of 14
        [0.071429, 0.285714, 0.642857]
    """  # noqa: DOC502 - raised by what it calls
    require_run(run)
    if isinstance(objective, Recipe):
        objective = objective_of(run, objective, torch.float64)
    check_data(run, objective)
    chosen = _epoch(run, epoch)
    schedule = schedule_of(run, chosen)
    maker = _Parts(run, objective, schedule, chosen)
    for index, step in enumerate(steps_of(run, objective, schedule)):
        maker.add(index, step)
    return maker.attribution()


def steps_of(run: Run, objective: Objective, schedule: Schedule) -> Iterator[RecordedStep]:
    """Go through a run's steps: from its records, or by replaying its batches.

    Args:
        run: the run.
        objective: of its recipe.
        schedule: of the run, up to an epoch.

    Returns:
        The steps.

    Raises:
        TvgradError: its rule is not linear, or neither is possible.
    """
    if not is_linear(schedule.rule):
        raise TvgradError(
            f"{run.root} was trained by {schedule.rule.name}, whose step is no weighted sum of gradients: samples have "
            "shares in runs of gd, sgd, momentum and nesterov"
        )
    recorded = recorded_steps(run, schedule) if schedule.full or schedule.batches is not None else None
    if recorded is not None:
        return recorded
    if schedule.full:
        raise TvgradError(
            f"{run.root} does not keep the weights and gradients of every epoch, where its steps began: trace it "
            "with --keep all, or with --record batches"
        )
    missing = missing_for_replay(run, schedule)
    if missing is not None:
        raise TvgradError(f"{run.root} cannot be gone through step by step: {missing}")
    return replayed_steps(run, objective, schedule)


def batches_of_schedule(schedule: Schedule, samples: int) -> list[torch.Tensor]:
    """List the samples of every step.

    Args:
        schedule: of a run.
        samples: of its data.

    Returns:
        Positions in the data, one tensor a step.
    """
    if schedule.batches is None:
        return [torch.arange(samples)] * schedule.ends[-1]
    return [one for steps in schedule.batches for one in steps]


def _epoch(run: Run, epoch: int | None) -> int:
    kept = epochs_with_task_vector(run)
    if epoch is None:
        return kept[-1]
    if epoch not in kept:
        raise TvgradError(f"{run.root} keeps no weights after {run.unit} {epoch}: choose from {kept}")
    return epoch


class _Parts:
    """Goes through the steps once and adds up what each sample had in them."""

    def __init__(self, run: Run, objective: Objective, schedule: Schedule, epoch: int) -> None:
        self.run, self.objective, self.schedule, self.epoch = run, objective, schedule, epoch
        self.rule = schedule.rule_until(epoch)
        self.home = objective.home
        self.task_vector = to_float64(run.task_vector(epoch), self.home)
        self.length = inner_product(self.task_vector, self.task_vector)
        if not (self.length > 0 and math.isfinite(self.length)):
            raise TvgradError(f"the task vector of {run.root} is zero or not finite after epoch {epoch}: no shares")
        self.start = to_float64(run.weights(0), self.home)
        self.weights = self.rule.momentum_weights(schedule.ends[epoch])
        self.batches = batches_of_schedule(schedule, len(objective.samples))
        self.summed = zeros_like(self.start)
        # A rule is linear in gradients and decayed weights together: without gradients it makes decay's part.
        self.decay, self.nothing = Trajectory(self.rule, self.start), zeros_like(self.start)
        self.shares = np.zeros(len(objective.samples))

    def add(self, index: int, step: RecordedStep) -> None:
        """Add one step's gradients."""
        chosen = self.batches[index]
        view = self.objective.subset(chosen)
        mass = view.sample_weights()
        total = float(mass.sum())  # 0 where all samples of a mini-batch are ignored, whose step has no gradient
        scale = mass * (self.schedule.clips[index] / total if total else 0.0)
        weight = coefficients_by_name(self.rule, self.weights[..., index])
        theta = to_float64(step.theta, self.home)
        if self.rule.decays:
            self.decay.step(self.nothing, theta)
        for indices, gradients in view.sample_gradients(theta):
            by = scale[indices].to(self.home)
            products = torch.zeros(len(indices), dtype=torch.float64, device=self.home)
            for name, rows in gradients.items():
                factor = weight.get(name, 0.0) if isinstance(weight, Mapping) else weight
                wide = rows.double().reshape(len(rows), math.prod(rows.shape[1:]))  # scalar and empty ones, too
                products -= factor * (wide @ self.task_vector[name].flatten())
                self.summed[name] -= factor * (by @ wide).reshape(self.summed[name].shape)
            np.add.at(self.shares, chosen[indices].numpy(), (by * products).cpu().numpy() / self.length)

    def attribution(self) -> Attribution:
        """Sum up."""
        missing = difference(self.task_vector, self.summed)
        unexplained = difference(missing, self.decay.task_vector)
        labels = class_labels(self.objective)
        return Attribution(
            self.run.name,
            self.epoch,
            self.shares,
            inner_product(missing, self.task_vector) / self.length,
            norm(unexplained) / math.sqrt(self.length),
            labels,
            _by_class(self.shares, labels),
        )


def class_labels(objective: Objective) -> NDArray[np.int64] | None:
    """Read the class of every sample.

    Args:
        objective: whose data is read.

    Returns:
        Shape (samples,); None where a sample's target is not one whole number.
    """
    found = []
    for chunk in objective.samples.chunks(objective.chunk_size):
        try:
            target = torch.as_tensor(target_of(chunk))
        except (TvgradError, TypeError, ValueError, RuntimeError):
            return None
        if target.ndim != 1 or target.is_floating_point() or target.is_complex():
            return None
        found.append(target.cpu().to(torch.int64))
    return np.asarray(torch.cat(found).numpy())


def _by_class(shares: NDArray[np.float64], labels: NDArray[np.int64] | None) -> tuple[ClassShare, ...]:
    if labels is None:
        return ()
    return tuple(
        ClassShare(int(label), len(own), math.fsum(own), float(own.min()), float(own.max()))
        for label in np.unique(labels)
        for own in [shares[labels == label]]
    )
