"""Plan: how far to go along a merge, and what it will do to every task, told from one gradient and three products each.

With T = sum_t tau_t and everything taken at theta_0, the loss of task s along the merge is, to second order,

    L_s(a) = L_s + a <g_s, T> + a^2/2 <T, H_s T>,

so that the sum over tasks is least at `a = - sum_s <g_s, T> / sum_s <T, H_s T>`. Of the second-order part,
`a^2/2 <tau_s, H_s tau_s>` is the task's own curvature, which it has without any other task; the rest is *interference*.
Losses measured along T (three a task, a forward pass each) give every parabola a cubic term, because merges leave the
quadratic regime sooner than fine-tuning does: T is longer than each tau_t.

Before training, task vectors are forecast (`tvgrad.theory.forecast`); after it, they are what they are. All numbers are
estimates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.results import Result, Shown
from tvgrad.theory.forecast import WORTHLESS, Forecast, forecast
from tvgrad.theory.held_out import HeldOutCurve, Score, held_out_curve
from tvgrad.theory.merge_curvatures import MergeCurvatures, curvatures
from tvgrad.theory.merge_line import MergeLine, best_coefficient, line_of, measured_losses
from tvgrad.theory.multitask import check_shared_start, total_evaluations
from tvgrad.update_rules.given import Given
from tvgrad.vectors.algebra import combination, to_float64
from tvgrad.vectors.parameters import Weights, inner_product, same_names_and_shapes
from tvgrad.wording import counted

HOLDS_BELOW = 0.1
SMALLEST_SQUARE = sys.float_info.min
WIDEST = 4.0
"""Bound of a task's own coefficient, over the common one."""


@dataclass(frozen=True)
class PlanRow(Result):
    """What a merge will do to one task; estimates, but for `loss`.

    Attributes:
        task: its number, from 0.
        loss: at the pretrained weights.
        slope: `a <g_s, T>`, the first-order change.
        own_curvature: `a^2/2 <tau_s, H_s tau_s>`.
        interference: the rest of the second-order part, `a^2/2 <T, H_s T>` minus the own.
        higher_order: what the losses measured along T add to these.
        predicted_loss: the sum of all.
        coefficient: this task's own, where every task has one.
        relative_second_order_error: of its task vector; NaN for given ones.
        miss: of the quadratic model's gradient at the end of the task's own training; NaN for given ones.
        kind: `estimate`.
    """

    task: int
    loss: float
    slope: float
    own_curvature: float
    interference: float
    higher_order: float
    predicted_loss: float
    coefficient: float
    relative_second_order_error: float
    miss: float
    kind: str = "estimate"


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """How to merge; estimates.

    Attributes:
        coefficient: a, one for all tasks.
        coefficients: one a task, none below 0, and none that differ from the common one unless losses measured with
            them are lower.
        predicted_losses: of every task, merged with `coefficient`.
        relative_second_order_error: the largest of the tasks' (see `tvgrad.theory.forecast.Forecast`); NaN for given
            task vectors.
        holds: whether it is under a tenth, or task vectors are given. Under a tenth the coefficient was found to reach
            the best drop in training loss within one percent for gradient descent and SGD; not so for Adam on
            mini-batches, of which a sentence warns.
        rows: one a task.
        pairs: `pairs[s, t, u]` is `<tau_t, H_s tau_u>`; None where they were not asked for.
        slopes: `slopes[s, u]` is `<g_s, tau_u>`.
        task_vectors: that were forecast or given.
        counts: passes over the data.
        sentences: what the user should know.
        held_out: the scores that `coefficient` was chosen by, where scores were given; else it is of least loss.
    """

    coefficient: float
    coefficients: tuple[float, ...]
    predicted_losses: tuple[float, ...]
    relative_second_order_error: float
    holds: bool
    rows: tuple[PlanRow, ...]
    slopes: NDArray[np.float64]
    pairs: NDArray[np.float64] | None
    task_vectors: tuple[Weights, ...]
    counts: Evaluations
    sentences: tuple[str, ...]
    held_out: HeldOutCurve | None = None


def plan(
    objectives: Sequence[Objective],
    rule: Given | None = None,
    epochs: int | None = None,
    *,
    batch_size: int | None = None,
    task_vectors: Sequence[Mapping[str, torch.Tensor]] | None = None,
    forecasts: Sequence[Forecast] | None = None,
    pairs: bool = False,
    scores: Sequence[Score] | None = None,
) -> Plan:
    """Plan a merge of tasks, before or after their training.

    Before training it takes two gradients, three Hessian-vector products and up to three losses a task; with `pairs`,
    one product more for each pair of tasks.

    Args:
        objectives: one for each task, all at the same pretrained weights.
        rule: the update rule of the training to come, or an optimizer that follows one.
        epochs: k.
        batch_size: samples in a mini-batch; None is the full batch.
        task_vectors: after training, what came out; rule, epochs and batch size play no part then.
        forecasts: of the task vectors, where they were made already: those of several merges of the same tasks, say.
        pairs: measure how every task's loss is curved along every pair of task vectors, which makes `coefficients`
            exact in the quadratic model.
        scores: one a task, weights -> how good they are on samples that were not trained on, higher is better: the
            coefficient is then the one, of 16 along the same vector, whose mean score is best, and all tasks have it.

    Returns:
        The plan.

    Raises:
        TvgradError: there is no task, tasks start at different weights, a task vector does not fit, or neither a rule
            nor task vectors are given.

    Examples:
        >>> import torch, tvgrad
        >>> model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
        >>> tasks = [tvgrad.Objective(model, loss, (torch.eye(2).double(), torch.full((2, 1), y).double())) for y in (1, 3)]
        >>> found = tvgrad.plan(tasks, tvgrad.update_rules.GD(0.1), epochs=3)
        >>> round(found.coefficient, 6)  # each vector goes 1 - 0.9^3 of its way, and the best point is half of their sum
        1.845018
        >>> found.holds
        True
    """  # noqa: E501 - a doctest
    check_shared_start(objectives)
    before = total_evaluations(objectives)
    start = _start(objectives, rule, epochs, batch_size, task_vectors, forecasts)
    told, vectors = start.told, start.vectors
    merged = combination(*((1.0, vector) for vector in vectors))
    slopes = np.array([[inner_product(gradient, vector) for vector in vectors] for gradient in start.gradients])
    known = curvatures(objectives, vectors, told, slopes, all_pairs=pairs)
    own, curved = np.diag(known.own), known.merged.sum(axis=1)
    line, unknown = line_of(np.array(start.losses), slopes.sum(axis=1), curved)
    coefficient, line, sentences = best_coefficient(line, measured_losses(objectives, merged))
    coefficients, curve = _coefficients(objectives, vectors, coefficient, line, known), None
    if scores is not None:
        if len(scores) != len(objectives):
            raise TvgradError(f"{len(scores)} scores are given for {len(objectives)} tasks: give one for each")
        curve = held_out_curve(scores, to_float64(objectives[0].initial), merged, coefficient)
        coefficient, coefficients = curve.coefficient, (curve.coefficient,) * len(vectors)
    errors = [one.relative_second_order_error for one in told] or [math.nan]
    rows = _rows(coefficient, coefficients, line, own, told)
    return Plan(
        coefficient,
        coefficients,
        tuple(row.predicted_loss for row in rows),
        max(errors),
        not max(errors) >= HOLDS_BELOW,
        rows,
        slopes,
        known.pairs,
        tuple(vectors),
        total_evaluations(objectives) - before,
        unknown + sentences + _doubts(told),
        curve,
    )


def coefficient_along(
    objectives: Sequence[Objective], vector: Mapping[str, torch.Tensor]
) -> tuple[float, tuple[str, ...]]:
    """Plan how far to go along any merged vector: a gradient, a product and a few losses a task.

    Args:
        objectives: one for each task, all at the same pretrained weights.
        vector: that will be added to them, times the coefficient.

    Returns:
        The coefficient, and sentences on what stood in the way of a minimum.

    Raises:
        TvgradError: tasks start at different weights, or the vector does not fit them or is not finite.
    """
    check_shared_start(objectives)
    [merged] = _given(objectives[:1], [vector])
    start = [one.value_and_gradient() for one in objectives]
    slopes = np.array([inner_product(to_float64(gradient), merged) for _, gradient in start])
    curved = np.array([inner_product(to_float64(one.hvp(merged)), merged) for one in objectives])
    line, unknown = line_of(np.array([value for value, _ in start]), slopes, curved)
    coefficient, _, sentences = best_coefficient(line, measured_losses(objectives, merged))
    return coefficient, unknown + sentences


def _rows(
    coefficient: float,
    coefficients: Sequence[float],
    line: MergeLine,
    own: NDArray[np.float64],
    told: Sequence[Forecast],
) -> tuple[PlanRow, ...]:
    return tuple(
        PlanRow(
            task=number,
            loss=float(line.losses[number]),
            slope=coefficient * float(line.slopes[number]) + 0.0,  # no -0 in tables
            own_curvature=coefficient**2 / 2 * float(own[number]),
            interference=coefficient**2 / 2 * float(line.curvatures[number] - own[number]),
            higher_order=coefficient**3 * float(line.cubes[number]) + 0.0,
            predicted_loss=float(line.at(coefficient)[number]),
            coefficient=coefficients[number],
            relative_second_order_error=told[number].relative_second_order_error if told else math.nan,
            miss=told[number].miss if told else math.nan,
        )
        for number in range(len(coefficients))
    )


@dataclass(frozen=True)
class _Start:
    """Losses and gradients at theta_0, and the task vectors: forecast (`told`), or given."""

    losses: list[float]
    gradients: list[Weights]
    told: list[Forecast]
    vectors: list[Weights]


def _start(
    objectives: Sequence[Objective],
    rule: Given | None,
    epochs: int | None,
    batch_size: int | None,
    task_vectors: Sequence[Mapping[str, torch.Tensor]] | None,
    forecasts: Sequence[Forecast] | None,
) -> _Start:
    if task_vectors is not None:
        vectors = _given(objectives, task_vectors)
        found = [one.value_and_gradient() for one in objectives]
        return _Start([value for value, _ in found], [to_float64(gradient) for _, gradient in found], [], vectors)
    told = _forecasts(objectives, rule, epochs, batch_size) if forecasts is None else list(forecasts)
    if len(told) != len(objectives):
        raise TvgradError(f"{len(told)} forecasts are given for {len(objectives)} tasks: give one for each")
    models = [one.model for one in told]
    vectors = [one.task_vector for one in told]
    for number, vector in enumerate(vectors):
        _check_size(number, vector)
    return _Start([one.loss for one in models], [one.gradient for one in models], told, vectors)


def _forecasts(
    objectives: Sequence[Objective], rule: Given | None, epochs: int | None, batch_size: int | None
) -> list[Forecast]:
    if rule is None or epochs is None:
        raise TvgradError("a plan needs an update rule and a number of epochs, or the task vectors of a training")
    return [forecast(one, rule, epochs, batch_size) for one in objectives]


def _given(objectives: Sequence[Objective], vectors: Sequence[Mapping[str, torch.Tensor]]) -> list[Weights]:
    if len(vectors) != len(objectives):
        raise TvgradError(f"{len(vectors)} task vectors are given for {len(objectives)} tasks: give one for each")
    for number, (objective, vector) in enumerate(zip(objectives, vectors, strict=True)):
        misfit = same_names_and_shapes(objective.initial, vector)
        if misfit is not None:
            raise TvgradError(f"task vector {number} does not fit the model of its task: {misfit}")
        if not all(torch.isfinite(tensor).all() for tensor in vector.values()):
            raise TvgradError(f"task vector {number} is not finite: leave that task out")
        _check_size(number, vector)
    return [to_float64(vector, objectives[0].home) for vector in vectors]


def _check_size(number: int, vector: Mapping[str, torch.Tensor]) -> None:
    """Refuse a task vector whose inner products float64 cannot hold."""
    largest = max((float(tensor.detach().abs().max()) for tensor in vector.values() if tensor.numel()), default=0.0)
    square = largest * largest
    if largest > 0 and not SMALLEST_SQUARE <= square < math.inf:
        wrong = "underflow" if square < SMALLEST_SQUARE else "overflow"
        raise TvgradError(
            f"task vector {number} has entries up to {largest:g}, whose squares {wrong} in float64, so that no "
            f"curvature along it can be told: leave that task out, or train it with another rate"
        )


def _coefficients(
    objectives: Sequence[Objective], vectors: Sequence[Weights], common: float, line: MergeLine, known: MergeCurvatures
) -> tuple[float, ...]:
    """One coefficient a task: the quadratic model's, as far as losses measured there are below the common one's."""
    linear, summed, count = known.slopes.sum(axis=0), known.summed, len(vectors)
    even = np.full(count, common)
    # The quadratic's own scale, or the search would stop where it starts.
    size = max(float(np.abs(linear).max()), 1e-300)

    def value(a: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        image = summed @ a
        return float(linear @ a + a @ image / 2) / size, (linear + image) / size

    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is not below the common one's loss
        wanted = minimize(value, even, jac=True, method="L-BFGS-B", bounds=[(0.0, WIDEST * common)] * count).x
    reached = float(line.at(common).sum())
    for part in (1.0, 0.5):
        tried = even + part * (wanted - even)
        merged = combination(*zip(tried.tolist(), vectors, strict=True))
        if float(measured_losses(objectives, merged)(1.0).sum()) < reached:
            return tuple(tried.tolist())
    return tuple(even.tolist())


def _doubts(told: Sequence[Forecast]) -> tuple[str, ...]:
    """What to know of forecasts that are far out, or that lack what decides."""
    said = []
    far = [str(number) for number, one in enumerate(told) if one.miss > WORTHLESS]
    if far:
        said.append(
            f"at the end of the training of {counted(len(far), 'task')} (number {', '.join(far)}) the gradient is "
            "further from the quadratic model than it is long: their task vectors will be others, and the coefficient "
            "may be far off; plan again when they are trained"
        )
    spread = [one.model.variance for one in told]
    if any(one is not None and any(bool((part > 0).any()) for part in one.values()) for one in spread):
        said.append(
            "Adam's steps on mini-batches depend on their order, which no forecast knows: the coefficient was found to "
            "be too large by up to a half; plan again when the tasks are trained"
        )
    return tuple(said)
