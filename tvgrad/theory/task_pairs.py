"""How two tasks will relate after fine-tuning, told from the pretrained weights alone; and how they did.

From one gradient and one Hessian-vector product a task comes a quadratic model of each loss
(`tvgrad.theory.secant_model`), and from two models everything that is asked of a pair: the cosine of the task vectors,
what adding one of them to the other's model does to that task's loss, and for which lambda
`theta_0 + tau_a + lambda tau_b` is better than theta_0 on both tasks. All of it is an estimate. How a loss is curved
along the *other* task's gradient is not known from one product; a second one, on the same graph, tells (`cross`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import positive_integer
from tvgrad.results import Plotted, Result, Shown
from tvgrad.theory.multitask import check_shared_start, total_evaluations
from tvgrad.theory.pair_basis import PairBasis, PairForecast
from tvgrad.update_rules.base import Array
from tvgrad.update_rules.given import Given, as_rule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import linear_rule
from tvgrad.update_rules.stability import stability_limit
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import Weights, cosine, same_names_and_shapes

MOST_LAMBDA = 3.0
"""Coefficients are looked for between minus this and this: no quadratic is to be trusted further out."""
FINE, COARSE = 0.01, 0.5  # distance of the coefficients that are tried first: on a quadratic, and on a network
HALVINGS = 8  # of that distance, at each end
IRRELEVANT = 0.1
"""Up to this cosine, in absolute value, two tasks are called irrelevant; beyond it aligned, or contradictory."""


@dataclass(frozen=True)
class PairPrediction(Result):
    """What two tasks will be to each other; all numbers are estimates.

    Attributes:
        task_a: the first task.
        task_b: the second task.
        epochs: k.
        kind: irrelevant, aligned or contradictory, by the cosine of the task vectors; undefined where one is zero, or
            where the rate makes the prediction diverge beyond all numbers.
        cos_gradients: of the gradients at theta_0, which is what is known without a Hessian.
        cos_task_vectors: of the task vectors after k epochs.
        first_order_change: `-S_k <g_a, g_b>`: what adding the other task vector changes in either loss, to first order;
            negative helps.
        change_of_a: L_a at `theta_0 + tau_a + tau_b` minus L_a at `theta_0 + tau_a`, to second order.
        change_of_b: L_b at `theta_0 + tau_a + tau_b` minus L_b at `theta_0 + tau_b`, to second order.
        lambda_low: from this coefficient on `theta_0 + tau_a + lambda tau_b` has both losses below those of theta_0.
        lambda_high: up to this one; of the widest such interval between -3 and 3, NaN where there is none.
    """

    task_a: str
    task_b: str
    epochs: int
    kind: str
    cos_gradients: float
    cos_task_vectors: float
    first_order_change: float
    change_of_a: float
    change_of_b: float
    lambda_low: float
    lambda_high: float


@dataclass(frozen=True)
class PairMeasurement(Result):
    """What two trained task vectors are to each other: the truth beside a `PairPrediction`.

    Attributes:
        task_a: the first task.
        task_b: the second task.
        cos_task_vectors: of the task vectors.
        change_of_a: L_a at `theta_0 + tau_a + tau_b` minus L_a at `theta_0 + tau_a`.
        change_of_b: L_b at `theta_0 + tau_a + tau_b` minus L_b at `theta_0 + tau_b`.
        lambda_low: from this coefficient on `theta_0 + tau_a + lambda tau_b` has both losses below those of theta_0.
        lambda_high: up to this one; of the widest such interval between -3 and 3, NaN where there is none.
    """

    task_a: str
    task_b: str
    cos_task_vectors: float
    change_of_a: float
    change_of_b: float
    lambda_low: float
    lambda_high: float


@dataclass(frozen=True, repr=False)
class TaskPairs(Plotted, Shown):
    """The predictions of all pairs.

    Attributes:
        rows: one for each k and pair.
        counts: gradients and Hessian-vector products that they took.
        sentences: what the user should know.
    """

    rows: tuple[PairPrediction, ...]
    counts: Evaluations
    sentences: tuple[str, ...]


@np.errstate(over="ignore", invalid="ignore")  # huge rates give infinite numbers, and sentences that say so
def relate_tasks(
    objectives: Mapping[str, Objective], rule: Given, epochs: int | Sequence[int], *, cross: bool = False
) -> TaskPairs:
    """Predict how tasks will relate, before any of them is trained.

    Args:
        objectives: task's name -> its loss; all at the same pretrained weights.
        rule: a linear update rule, or an optimizer that follows one; one step an epoch.
        epochs: k, or several: the same gradients and products serve them all.
        cross: take each task's Hessian products with the other tasks' gradients too.

    Returns:
        One row for each k and pair.

    Raises:
        TvgradError: fewer than two tasks, different pretrained weights, a rule that is not linear, a number out of
            range, or a gradient or product that is not finite.

    Examples:
        >>> import torch, tvgrad
        >>> model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> tasks = {
        ...     name: tvgrad.Objective(model, loss, (torch.tensor([inputs]).double(), torch.ones(1, 1).double()))
        ...     for name, inputs in {"a": [1.0, 0.0], "b": [1.0, 1.0]}.items()
        ... }
        >>> row = tvgrad.relate_tasks(tasks, tvgrad.update_rules.GD(0.1), epochs=3).rows[0]
        >>> row.kind, round(row.cos_task_vectors, 3)
        ('aligned', 0.707)
    """
    linear = linear_rule(as_rule(rule))
    ks = [positive_integer(k, "epochs") for k in (epochs if isinstance(epochs, Sequence) else [epochs])]
    for k in ks:
        linear.rates(k)  # before any work, whether the schedule is long enough
    names, tasks = list(objectives), list(objectives.values())
    if len(tasks) < 2:
        raise TvgradError("one task has nothing to relate to: give two or more")
    check_shared_start(tasks)
    before = total_evaluations(tasks)
    basis = PairBasis.of(tasks, names, cross=cross)
    pairs = list(combinations(range(len(tasks)), 2))
    rows: list[PairPrediction] = []
    for k in ks:
        vectors = [basis.task_vector(linear, k, place) for place in range(len(tasks))]
        summed = float(linear.first_order_weights(k)[k])
        rows += [_row(basis, names, vectors, pair, k=k, summed=summed) for pair in pairs]
    said = (_warning(basis, place, name, linear, max(ks)) for place, name in enumerate(names))
    return TaskPairs(tuple(rows), total_evaluations(tasks) - before, tuple(filter(None, said)))


def _row(
    basis: PairBasis, names: Sequence[str], vectors: Sequence[Array], pair: tuple[int, int], *, k: int, summed: float
) -> PairPrediction:
    found = basis.forecast(vectors[pair[0]], vectors[pair[1]], *pair)
    low, high = predicted_interval(found)
    return PairPrediction(
        task_a=names[pair[0]],
        task_b=names[pair[1]],
        epochs=k,
        kind=kind_of(found.cosine),
        cos_gradients=basis.cosine_of_gradients(*pair),
        cos_task_vectors=found.cosine,
        first_order_change=-summed * float(basis.gram[1 + pair[0], 1 + pair[1]]),
        change_of_a=found.changes[0],
        change_of_b=found.changes[1],
        lambda_low=low,
        lambda_high=high,
    )


def predicted_interval(found: PairForecast) -> tuple[float, float]:
    """Find the coefficients with which both losses are predicted to be below those of theta_0.

    Args:
        found: the pair's losses along `tau_a + x tau_b`.

    Returns:
        As `widest_interval`.
    """
    return widest_interval(lambda x: all(_at(line, x) < 0 for line in found.lines), FINE)


def _at(line: Array, x: float) -> float:
    return float(line[0] + line[1] * x + line[2] * x * x)


def _warning(basis: PairBasis, place: int, name: str, rule: LinearRule, epochs: int) -> str | None:
    model = basis.own(place)
    if not model.positive:
        return (
            f"{name}: the loss has little or negative curvature along its gradient, so that nothing tells where its "
            "descent ends: trust the prediction for few epochs"
        )
    limit, rate = stability_limit(rule, model.curvature), float(rule.rates(epochs).max())
    if rate > limit:
        return (
            f"{name}: the learning rate {rate:g} is over the stability limit, {limit:.3g} along the gradient alone, so "
            "that the quadratic model diverges: choose a smaller rate"
        )
    return None


def kind_of(cosine_of_vectors: float) -> str:
    """Name the relation of two tasks.

    Args:
        cosine_of_vectors: of their task vectors.

    Returns:
        `irrelevant`, `aligned` or `contradictory`; `undefined` where the cosine is NaN.
    """
    if math.isnan(cosine_of_vectors):
        return "undefined"
    if abs(cosine_of_vectors) <= IRRELEVANT:
        return "irrelevant"
    return "aligned" if cosine_of_vectors > 0 else "contradictory"


def widest_interval(holds: Callable[[float], bool], distance: float) -> tuple[float, float]:
    """Find the widest interval between -3 and 3 in which something holds.

    Args:
        holds: of a coefficient.
        distance: of the coefficients that are tried first; an interval narrower than that may be missed.

    Returns:
        Its ends, each to 1/256 of the distance; NaN twice where there is none.
    """
    count = round(MOST_LAMBDA / distance)
    tried = [place * distance for place in range(-count, count + 1)]
    inside = [holds(x) for x in tried]
    found = (math.nan, math.nan)
    place = 0
    while place < len(tried):
        if not inside[place]:
            place += 1
            continue
        last = place
        while last + 1 < len(tried) and inside[last + 1]:
            last += 1
        low = tried[place] if place == 0 else _edge(holds, tried[place], tried[place - 1])
        high = tried[last] if last + 1 == len(tried) else _edge(holds, tried[last], tried[last + 1])
        if not high - low <= found[1] - found[0]:
            found = low, high
        place = last + 1
    return found


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


def measure_pair(
    names: tuple[str, str],
    objectives: tuple[Objective, Objective],
    vectors: tuple[Weights, Weights],
    *,
    interval: bool = True,
) -> PairMeasurement:
    """Measure what `relate_tasks` predicts, with the task vectors of trained models.

    It takes some 30 to 60 passes over each task's data, without gradients; 3 without the interval of lambda.

    Args:
        names: of the tasks.
        objectives: their losses, at the pretrained weights.
        vectors: their task vectors.
        interval: look for the interval of lambda; without, its ends are NaN.

    Returns:
        The truth.

    Raises:
        TvgradError: a task vector is of another model.
    """
    for name, vector in zip(names, vectors, strict=True):
        different = same_names_and_shapes(objectives[0].initial, vector)
        if different is not None:
            raise TvgradError(f"the task vector of {name} is of another model than the tasks: {different}")
    left, right = vectors
    start = objectives[0].initial

    def loss(task: int, *terms: tuple[float, Weights]) -> float:
        moved = combination((1.0, start), *terms)
        return objectives[task].value({name: tensor.to(start[name].dtype) for name, tensor in moved.items()})

    together = (1.0, left), (1.0, right)
    low, high = math.nan, math.nan
    if interval:
        base = [task.value() for task in objectives]
        low, high = widest_interval(
            lambda x: all(loss(task, (1.0, left), (x, right)) < base[task] for task in (0, 1)), COARSE
        )
    return PairMeasurement(
        task_a=names[0],
        task_b=names[1],
        cos_task_vectors=cosine(left, right),
        change_of_a=loss(0, *together) - loss(0, (1.0, left)),
        change_of_b=loss(1, *together) - loss(1, (1.0, right)),
        lambda_low=low,
        lambda_high=high,
    )
