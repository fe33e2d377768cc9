"""The optimizer steps of a run, one at a time: rate, batch, consumed gradient, and the weights it was taken at.

A run keeps weights and sums for each epoch, not for each step. Two sources give the steps all the same:

- *records*: where each epoch is one step, the gradient it consumed and the weights it started from are on the disk;
- *replay*: where the order of the batches was recorded, PyTorch's own optimizer goes through them again from theta_0,
  in the run's own dtype and number of threads. It is the same trajectory if it reproduces the recorded weights bit for
  bit. That is checked at the end of every epoch whose weights were kept, and every difference is measured and reported.

Either way one copy of the weights, one gradient and one batch's graph are held at a time.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.precision import preserved_randomness
from tvgrad.problem.objective import Objective
from tvgrad.store.run import Run
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.grouped import AnyRule, GroupedOptimizers
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm, trainable_parameters
from tvgrad.wording import listed

CHANGING = ("momentum", "dampening", "beta1", "beta2", "eps", "weight_decay", "alpha")
"""Columns of a table of steps that are there where a script changed the option while it trained."""

NOISE = {
    "dropout": "its dropout cannot be drawn again",
    "augmentation": "its random augmentation cannot be drawn again",
}


@dataclass(frozen=True)
class Schedule:
    """What the record says of all steps up to an epoch.

    Attributes:
        rule: the run's rule, or the rules of its groups, with the learning rate of each step as recorded.
        ends: steps done at the end of epochs 0, 1, 2 ...
        clips: the factor by which each step's gradient was clipped; 1 where it was not.
        batches: for each epoch the samples of each step, or None where they are not known.
        full: whether every step used the full batch.
        unknown: why the batches are not known, as half a sentence with a way out.
    """

    rule: AnyRule
    ends: tuple[int, ...]
    clips: tuple[float, ...]
    batches: tuple[tuple[torch.Tensor, ...], ...] | None
    full: bool
    unknown: str = ""

    @property
    def clipped(self) -> bool:
        """Whether any step's gradient was clipped."""
        return any(clip != 1 for clip in self.clips)

    def rule_until(self, epoch: int) -> AnyRule:
        """The rule on a schedule that ends with an epoch.

        Args:
            epoch: of the run.

        Returns:
            The same rule with the rates of the steps up to the end of this epoch.
        """
        return self.rule.until(self.ends[epoch])


@dataclass(frozen=True)
class RecordedStep:
    """One optimizer step.

    Attributes:
        epoch: the epoch it belongs to, from 1.
        theta: the weights it started from, in the run's dtype.
        consumed: the gradient that the optimizer consumed.
        unclipped: the gradient before clipping; the same tensors where nothing was clipped.
        after: the weights after the step at the end of an epoch, else None.
    """

    epoch: int
    theta: Weights
    consumed: Weights
    unclipped: Weights
    after: Weights | None

    def to(self, device: torch.device) -> RecordedStep:
        """The same step with its tensors on a device.

        Args:
            device: where to.

        Returns:
            The step; tensors that lie there already are shared.
        """

        def moved(vector: Weights) -> Weights:
            return {name: tensor.to(device) for name, tensor in vector.items()}

        consumed = moved(self.consumed)
        return RecordedStep(
            self.epoch,
            moved(self.theta),
            consumed,
            consumed if self.unclipped is self.consumed else moved(self.unclipped),
            None if self.after is None else moved(self.after),
        )


def schedule_of(run: Run, epoch: int) -> Schedule:
    """Read rates, batches and clipping of all steps up to an epoch.

    Args:
        run: a run that was recorded by epoch.
        epoch: the last epoch wanted.

    Returns:
        The schedule.

    Raises:
        TvgradError: the run has no known rule, was recorded by step, or its table of steps does not fit its epochs.
    """
    if run.unit != "epoch":
        raise TvgradError(f"{run.root} was recorded by step: record it by epoch (--record-at epochs) to explain it")
    rule = run.rule
    if rule is None:
        reason = run.info.get("rule_reason") or "none was recorded"
        raise TvgradError(f"{run.root} has no update rule that tvgrad knows ({reason})")
    points = [run.point(number) for number in range(epoch + 1)]
    ends = tuple(point.steps for point in points)
    table = run.steps()
    table = table.iloc[: ends[-1]] if len(table) else table
    if len(table) not in {0, ends[-1]}:
        raise TvgradError(f"{run.root} lists {len(table)} steps for {ends[-1]}: trace the run again")
    if "skipped" in table and bool((table["skipped"].fillna(0) != 0).any()):
        raise TvgradError(f"{run.root} skipped steps (an overflow of its loss scale), which cannot be explained")
    scheduled = _scheduled(run, rule_from_dict(run.info["rule"]), table, ends[-1])
    clips = _column(table, "clip_factor", ends[-1], 1.0)
    batches, unknown = None, _unrecorded(run)
    if all("batches" in point.files for point in points[1:]):
        batches = tuple(tuple(run.batches(number)) for number in range(1, epoch + 1))
        noted = np.array([len(steps) for steps in batches])
        if not np.array_equal(noted, np.diff(ends)):
            unknown = (
                f"{noted.sum()} batches were noted for {ends[-1]} steps (where gradients are accumulated, note all "
                "samples of a step at once)"
            )
            batches = None
    full = _full_batch(run, ends, table, batches)
    return Schedule(scheduled, ends, tuple(clips.tolist()), None if full else batches, full, unknown)


def _scheduled(run: Run, rule: AnyRule, table: pd.DataFrame, steps: int) -> AnyRule:
    """A rule with the rates that were recorded, of each group where they differ."""
    changed = sorted(
        str(one) for one in table if re.sub(r"_\d+$", "", str(one)) in CHANGING and table[one].notna().any()
    )
    if changed:
        what = listed([column.replace("_", " ") for column in changed])
        raise TvgradError(f"{run.root} was trained with a {what} that changed, and an update rule has one")
    common = _column(table, "lr", steps, math.nan)
    if isinstance(rule, UpdateRule):
        return rule.with_lr([rule.rate(step) if math.isnan(rate) else rate for step, rate in enumerate(common)])
    rates = []
    for place, part in enumerate(rule.parts):
        own = np.where(np.isnan(common), _column(table, f"lr_{place}", steps, math.nan), common)
        if rule.members[place] and len(table) and np.isnan(own).any():
            raise TvgradError(
                f"{run.root} has steps that not all of its optimizers took, and which were whose the budget cannot tell"
            )
        rates.append([part.rate(step) if math.isnan(rate) else rate for step, rate in enumerate(own)])
    return rule.with_lrs(rates).simplified(run.parameters)


def _unrecorded(run: Run) -> str:
    """Why a run holds no batches, and how they would be recorded."""
    if "command" in run.info:
        return (
            "the samples of a script's mini-batches are not recorded (record its loop from inside: tvgrad.Recorder "
            'with record=("batches",), and note_batch)'
        )
    return "the samples of its mini-batches were not recorded (trace it with --record batches)"


def _full_batch(
    run: Run, ends: tuple[int, ...], table: pd.DataFrame, batches: tuple[tuple[torch.Tensor, ...], ...] | None
) -> bool:
    """Whether the record says that every epoch is one step on all samples."""
    if not _one_step_an_epoch(ends):
        return False
    if run.info.get("consumes_recorded_gradient"):
        return True
    samples = run.info.get("samples")
    if batches is not None:
        return all(len(steps[0]) == samples for steps in batches)
    sizes = _column(table, "batch_size", ends[-1], math.nan)
    return samples is not None and bool((sizes == samples).all())


def _one_step_an_epoch(ends: tuple[int, ...]) -> bool:
    return all(later - earlier == 1 for earlier, later in itertools.pairwise(ends))


def _column(table: pd.DataFrame, name: str, length: int, missing: float) -> np.ndarray:
    if name not in table or len(table) == 0:
        return np.full(length, missing)
    values = np.asarray(table[name], dtype=np.float64)
    return np.where(np.isnan(values), missing, values)


def records_first_gradient(run: Run) -> bool:
    """Tell whether a run records the full-batch gradient at theta_0 as the very tensor that its optimizer consumed.

    Args:
        run: the run.

    Returns:
        Whether it does.
    """
    return bool(run.info.get("consumes_recorded_gradient")) and 0 in run.having("gradient")


def recorded_steps(run: Run, schedule: Schedule) -> Iterator[RecordedStep] | None:
    """Read the steps from the disk, where each epoch is one step and all it takes was recorded.

    Args:
        run: the run.
        schedule: of the same run.

    Returns:
        The steps, or None where something was not recorded.
    """
    last = len(schedule.ends) - 1
    if not _one_step_an_epoch(schedule.ends):
        return None
    kept, full = set(run.epochs), set(run.having("gradient"))
    if not kept >= set(range(last + 1)) or not all(math.isfinite(clip) and clip > 0 for clip in schedule.clips):
        return None
    if run.info.get("consumes_recorded_gradient") and full >= set(range(last)):
        return _read(run, schedule, last, full_batch=True)
    if set(run.having("epoch_gradient")) >= set(range(1, last + 1)):
        return _read(run, schedule, last, full_batch=False)
    return None


def _read(run: Run, schedule: Schedule, last: int, full_batch: bool) -> Iterator[RecordedStep]:
    after = run.weights(0)
    for index in range(last):
        theta, after = after, run.weights(index + 1)
        consumed = run.gradient(index) if full_batch else run.epoch_gradient(index + 1)
        clip = schedule.clips[index]
        unclipped = consumed if clip == 1 else {name: tensor.double() / clip for name, tensor in consumed.items()}
        yield RecordedStep(index + 1, theta, consumed, unclipped, after)


def missing_for_replay(run: Run, schedule: Schedule) -> str | None:
    """Say why a run's mini-batches cannot be gone through again.

    Args:
        run: the run.
        schedule: of the same run.

    Returns:
        Half a sentence, or None where they can.
    """
    if schedule.batches is None:
        return schedule.unknown
    if 0 not in run.epochs:
        return "its pretrained weights were not kept"
    if any(clip == 0 or not math.isfinite(clip) for clip in schedule.clips):
        return "a clip factor in its table of steps is 0 or not finite"
    for name in run.info.get("allowed", ()):
        if name in NOISE:
            return NOISE[name]
    return None


def replayed_steps(run: Run, objective: Objective, schedule: Schedule) -> Iterator[RecordedStep]:
    """Go through the recorded batches again with PyTorch's own optimizer, from the recorded theta_0.

    Args:
        run: a run for which `missing_for_replay` finds nothing missing.
        objective: of the run's recipe, in any dtype.
        schedule: of the same run.

    Yields:
        The steps; a step's tensors are only valid until the next one is asked for.

    Raises:
        TvgradError: the run is not as `missing_for_replay` wants it.
    """
    missing = missing_for_replay(run, schedule)
    if schedule.batches is None or missing:
        raise TvgradError(f"{run.root} cannot be replayed: {missing}")
    dtype = getattr(torch, str(run.info.get("dtype", "float32")))
    loss_of = copy.deepcopy(objective.batch_loss).to(dtype)
    parameters = trainable_parameters(loss_of.model)
    # Data of the run's own types is left alone; what was widened with the objective, or before it, is narrowed again.
    widened = objective.samples.dtype or any(tensor.dtype != dtype for tensor in objective.initial.values())
    samples = objective.samples.with_dtype(dtype) if widened else objective.samples
    with torch.no_grad():
        for name, tensor in run.weights(0).items():
            parameters[name].copy_(tensor)
    optimizers = GroupedOptimizers(schedule.rule, parameters)
    index = 0
    for epoch, batches in enumerate(schedule.batches, start=1):
        for place, indices in enumerate(batches):
            with (
                _threads(int(run.info.get("threads") or torch.get_num_threads())),
                preserved_randomness(objective.device),
            ):
                loss_of.model.zero_grad()
                loss_of(samples.subset(indices).batch(0, len(indices), objective.device)).backward()
                # Copies, because optimizers may change a gradient in place, and do change the weights.
                theta, unclipped = _copies(parameters), _gradients(parameters)
                consumed, clip = unclipped, schedule.clips[index]
                if clip != 1:
                    for parameter in parameters.values():
                        if parameter.grad is not None:
                            parameter.grad.mul_(clip)
                    consumed = _gradients(parameters)
                optimizers.step(index)
            after = _copies(parameters) if place + 1 == len(batches) else None
            yield RecordedStep(epoch, theta, consumed, unclipped, after)
            index += 1


def mismatch(run: Run, step: RecordedStep) -> float:
    """Measure how far a replay is from the recorded weights at the end of an epoch.

    Args:
        run: the run.
        step: the last step of an epoch.

    Returns:
        0 for the same bits, else the distance over the norm of the recorded task vector; NaN where the epoch's weights
        were not kept.
    """
    if step.after is None or step.epoch not in run.epochs:
        return math.nan
    recorded = run.weights(step.epoch)
    if all(torch.equal(tensor, step.after[name].cpu()) for name, tensor in recorded.items()):
        return 0.0
    length = norm(run.task_vector(step.epoch))
    distance = norm(difference(recorded, {name: tensor.cpu() for name, tensor in step.after.items()}))
    return distance / length if length else math.inf


def _copies(parameters: Mapping[str, torch.nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _gradients(parameters: Mapping[str, torch.nn.Parameter]) -> Weights:
    """Copies of the gradients; zeros where a parameter took no part in the loss."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in parameters.items()
    }


@contextmanager
def _threads(count: int) -> Generator[None]:
    """The run's own number of threads, on which the last bit of a matrix product may depend."""
    present = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(present)
