"""Explain a run: predictions held against what was recorded, and the error budget, kept beside the run as JSON.

`tvgrad explain` computes here what needs model and data; the report only reads the files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.json_text import json_text
from tvgrad.problem.objective import Evaluations, Objective
from tvgrad.recipes.of_run import check_data
from tvgrad.results import Kind, Result, from_json, to_json
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import predict_batches
from tvgrad.theory.budget_plan import measured_costs
from tvgrad.theory.budget_rows import BudgetTerm
from tvgrad.theory.error_budget import ErrorBudget, error_budget
from tvgrad.theory.expansion import expand
from tvgrad.theory.kinks import kink_sentence
from tvgrad.theory.second_order import quadratic_path
from tvgrad.theory.training_steps import Schedule, schedule_of
from tvgrad.update_rules.linear import LinearRule
from tvgrad.vectors.algebra import difference, to_float64
from tvgrad.vectors.parameters import Weights, norm

RESULTS = "results"
SECOND_ORDER, ERROR_BUDGET, NOTES = "second_order.json", "error_budget.json", "explain.json"
BUDGET_MEMORY = 1_000_000_000  # bytes of sums that all epochs' budgets may take; above it only the last one is made
VECTORS_AN_EPOCH = 8


@dataclass(frozen=True)
class SecondOrderError(Result):
    """Predictions of a task vector against the recorded one; predictions are estimates.

    Attributes:
        run: the run's name.
        epoch: epochs done.
        error_norm: exact: `||tau - order 1||`, the second-order error as it turned out.
        predicted_norm: estimate of it from one Hessian-vector product, with saturation (`tvgrad.theory.expansion`);
            for mini-batches `||order 2 - order 1||`.
        residual_order1: `||tau - order 1|| / ||tau||`, the relative error.
        residual_order2: `||tau - order 2|| / ||tau||`.
        residual_quadratic: the same for the quadratic model, NaN where it was not followed.
        bound: rigorous upper bound on error_norm, NaN where there is none.
        predicted_norm_order2: `||order 2 - order 1||`, the estimate without saturation.
    """

    run: str
    epoch: int
    error_norm: float
    predicted_norm: float
    residual_order1: float
    residual_order2: float
    residual_quadratic: float
    bound: float = math.nan
    predicted_norm_order2: float = math.nan


@dataclass(frozen=True)
class Explanation:
    """What was found about one run.

    Attributes:
        second_order: one row for each kept epoch; empty for rules that are not linear.
        budget: the error budget.
        counts: full-batch gradients and Hessian-vector products.
        batch_counts: those of single batches.
        sentences: what was left out, and why.
    """

    second_order: tuple[SecondOrderError, ...]
    budget: ErrorBudget
    counts: Evaluations
    batch_counts: Evaluations
    sentences: tuple[str, ...]


def explain(
    run: Run,
    objective: Objective,
    seconds: float | None = None,
    remainder: bool = False,
    epochs: Sequence[int] | None = None,
) -> Explanation:
    """Hold predictions against a run, and cut its residual into terms.

    Args:
        run: a run recorded by epoch.
        objective: of its recipe; float64 keeps gradient rounding out of the rows.
        seconds: leave out, with a sentence, what is estimated not to fit into this time.
        remainder: split the remainder from the batch curvature without a time limit too.
        epochs: whose budgets are made; by default those of all kept epochs, or the last one's where memory is short.

    Returns:
        The explanation.

    Raises:
        TvgradError: the run cannot be explained, or the data is not what was recorded.
    """
    if seconds is not None and not seconds > 0:
        raise TvgradError(f"the time for an explanation must be above 0 seconds, not {seconds}")
    check_data(run, objective)
    kept = [number for number in run.epochs if number > 0]
    if 0 not in run.epochs or not kept:
        raise TvgradError(f"{run.root} has no task vector: it needs the weights of {run.unit} 0 and of a later one")
    schedule = schedule_of(run, kept[-1])
    before = Evaluations(**vars(objective.evaluations))
    said: list[str] = []
    rows: list[SecondOrderError] = []
    batch_counts = Evaluations()
    rule = run.rule
    if not isinstance(rule, LinearRule):
        name = "its rule" if rule is None else rule.name
        said.append(f"{name} is not a linear update rule: its task vector has no expansion in the gradients")
    else:
        planned = _planned(objective, schedule, seconds)
        if planned is None:
            said.append(f"the predictions are left out: they do not fit into {seconds:g} s")
        else:
            if not planned and len(schedule.ends) > 3:
                said.append(f"the quadratic model is left out: it does not fit into {seconds:g} s")
            for row, counts in _held_against(run, objective, rule, schedule, kept, planned):
                rows.append(row)
                batch_counts = counts
            if schedule.batches is None and not schedule.full:
                said.append("the predictions leave sampling out: the run's batches were not recorded")
            kinks = kink_sentence(objective)
            said += [] if kinks is None else [kinks]
    spare = None if seconds is None else max(seconds / 2, 1e-9)
    wanted = _budget_epochs(run, kept, said) if epochs is None else list(epochs)
    budget = error_budget(run, objective, wanted, spare, remainder)
    now = objective.evaluations
    counts = Evaluations(gradients=now.gradients - before.gradients, hvps=now.hvps - before.hvps)
    together = Evaluations(
        gradients=batch_counts.gradients + budget.batch_counts.gradients,
        hvps=batch_counts.hvps + budget.batch_counts.hvps,
    )
    return Explanation(tuple(rows), budget, counts, together, (*said, *budget.sentences))


def with_bounds(explanation: Explanation, bounds: Mapping[int, float], sentence: str | None = None) -> Explanation:
    """Put rigorous bounds beside the errors that were measured.

    Args:
        explanation: what was found.
        bounds: epoch -> an upper bound on the second-order error, from a certificate.
        sentence: why there are no more, or None.

    Returns:
        The same with the bounds in its rows.
    """
    rows = tuple(replace(row, bound=bounds.get(row.epoch, math.nan)) for row in explanation.second_order)
    said = () if sentence is None else (sentence,)
    return replace(explanation, second_order=rows, sentences=(*explanation.sentences, *said))


def _planned(objective: Objective, schedule: Schedule, seconds: float | None) -> bool | None:
    """Whether the quadratic model is followed too; None where not even order 2 fits into half the time."""
    if seconds is None:
        return True
    costs = measured_costs(objective)
    epochs = len(schedule.ends) - 1
    passes = epochs if schedule.batches is not None else 1
    first = passes * (costs.gradient + costs.hvp)
    more = costs.hvp * (epochs if schedule.batches is not None else max(0, epochs - 2))
    if first > seconds / 2:
        return None
    return first + more <= seconds / 2


def _held_against(
    run: Run, objective: Objective, rule: LinearRule, schedule: Schedule, kept: Sequence[int], quadratic: bool
) -> Iterator[tuple[SecondOrderError, Evaluations]]:
    device, last = objective.device, kept[-1]
    start = to_float64(run.weights(0), device)
    scheduled = rule.with_lr(schedule.rates)

    def row(
        epoch: int, first: Weights, second: Weights, third: Weights | None, predicted: float | None = None
    ) -> SecondOrderError:
        tau = difference(to_float64(run.weights(epoch), device), start)
        length, error = norm(tau), norm(difference(tau, first))
        scale = length or math.nan
        plain = norm(difference(second, first))
        return SecondOrderError(
            run.name,
            epoch,
            error,
            plain if predicted is None else predicted,
            error / scale,
            norm(difference(tau, second)) / scale,
            math.nan if third is None else norm(difference(tau, third)) / scale,
            predicted_norm_order2=plain,
        )

    if schedule.batches is not None:
        for made in predict_batches(objective, scheduled, schedule.batches, True, quadratic, start):
            if made.epoch in kept and made.order2 is not None:
                yield row(made.epoch, made.order1, made.order2, made.quadratic), made.counts
        return
    consumed = run.info.get("consumes_recorded_gradient") and 0 in run.having("gradient")
    expansion = expand(objective, rule, start, run.gradient(0) if consumed else None)
    path: Iterator[Weights] = iter(())
    if quadratic and schedule.full:
        path = quadratic_path(objective, scheduled, last, expansion, start)
    for epoch in range(1, last + 1):
        third = next(path, None)
        if epoch in kept:
            steps = schedule.ends[epoch]
            upto = scheduled.with_lr(schedule.rates[:steps])
            predicted = float(expansion.saturated_norms(upto, steps)[steps])
            order1, order2 = expansion.order1(upto, steps), expansion.order2(upto, steps)
            yield row(epoch, order1, order2, third, predicted), Evaluations()


def _budget_epochs(run: Run, kept: Sequence[int], said: list[str]) -> list[int]:
    size = sum(math.prod(parameter.shape) for parameter in run.parameters.values())
    if len(kept) * VECTORS_AN_EPOCH * size * 8 <= BUDGET_MEMORY:
        return list(kept)
    said.append(f"the error budget is made for epoch {kept[-1]} alone: those of all epochs would take too much memory")
    return [kept[-1]]


def write_results(run: Run, explanation: Explanation) -> list[Path]:
    """Keep an explanation beside its run, for reports.

    Args:
        run: the run.
        explanation: what was found.

    Returns:
        The files.

    Raises:
        TvgradError: the folder cannot be written.
    """
    folder = run.root / RESULTS
    notes = {
        "sentences": list(explanation.sentences),
        "gradients": explanation.counts.gradients,
        "hvps": explanation.counts.hvps,
        "batch_gradients": explanation.batch_counts.gradients,
        "batch_hvps": explanation.batch_counts.hvps,
        "closure": explanation.budget.closure,
    }
    texts = {
        SECOND_ORDER: to_json(explanation.second_order),
        ERROR_BUDGET: to_json(explanation.budget.rows),
        NOTES: json_text(notes),
    }
    try:
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            write_text_atomically(folder / name, text)
    except OSError as error:
        raise TvgradError(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]


def read_results(run: Run) -> tuple[list[SecondOrderError], list[BudgetTerm]]:
    """Read what `write_results` kept.

    Args:
        run: the run.

    Returns:
        Rows of the second-order table and of the error budget; empty where the run was not explained.

    Raises:
        DamagedRun: a file holds something else.
    """  # noqa: DOC502 - raised by _read
    folder = run.root / RESULTS
    return _read(SecondOrderError, folder / SECOND_ORDER), _read(BudgetTerm, folder / ERROR_BUDGET)


def _read(kind: type[Kind], path: str | os.PathLike[str]) -> list[Kind]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRun(f"{path} cannot be read ({error}): run `tvgrad explain` again") from None
    return from_json(kind, text)
