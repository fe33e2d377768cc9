"""Explain a run: predictions compared with what was recorded, and the error budget, kept beside the run as JSON.

`tvgrad explain` computes here what needs model and data; the report only reads the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.regular import read_text, reason_of
from tvgrad.files.writable import make_folder, require_folder
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.recipes.of_run import check_data
from tvgrad.results import Kind, Plotted, Result, Shown, from_json, json_text, to_json
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import predict_batches
from tvgrad.theory.budget_plan import measured_costs
from tvgrad.theory.budget_rows import BudgetTerm
from tvgrad.theory.error_budget import ErrorBudget, epochs_with_task_vector, error_budget
from tvgrad.theory.expansion import expand
from tvgrad.theory.kinks import kink_sentence
from tvgrad.theory.quadratic_path import quadratic_path
from tvgrad.theory.training_steps import Schedule, records_first_gradient, schedule_of
from tvgrad.update_rules.grouped import is_linear
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import linear_rule
from tvgrad.vectors.algebra import difference, to_float64
from tvgrad.vectors.parameters import Weights, norm
from tvgrad.wording import printable

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


@dataclass(frozen=True, repr=False)
class Explanation(Plotted, Shown):
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

    @property
    def rows(self) -> tuple[Result, ...]:
        """What its table shows: predictions against the run, or the error budget where there are none."""
        return self.second_order or self.budget.rows


def explain(
    run: Run,
    objective: Objective,
    epochs: Sequence[int] | None = None,
    *,
    seconds: float | None = None,
    remainder: bool = False,
) -> Explanation:
    """Compare predictions with a run, and cut its residual into terms.

    Args:
        run: a run recorded by epoch.
        objective: of its recipe; float64 keeps gradient rounding out of the rows.
        epochs: whose budgets are made; by default those of all kept epochs, or the last one's where memory is short.
        seconds: leave out, with a sentence, what is estimated not to fit into this time.
        remainder: split the remainder from the batch curvature without a time limit too.

    Returns:
        The explanation.

    Raises:
        TvgradError: the run cannot be explained, or the data is not what was recorded.
    """
    if seconds is not None and not seconds > 0:
        raise TvgradError(f"the time for an explanation must be above 0 seconds, not {seconds}")
    check_data(run, objective)
    kept = epochs_with_task_vector(run)
    schedule = schedule_of(run, kept[-1])
    before = objective.evaluations.copy()
    said: list[str] = []
    batch_counts, rows = Evaluations(), list[SecondOrderError]()
    if isinstance(schedule.rule, LinearRule):
        rows, batch_counts = _second_order_errors(run, objective, schedule, kept, seconds, said)
    else:
        name, grouped = schedule.rule.name, is_linear(schedule.rule)
        said.append(
            f"groups of parameters follow rules of their own ({name}): the expansion in the gradients is left out"
            if grouped
            else f"{name} is not a linear update rule: its task vector has no expansion in the gradients"
        )
    half = None if seconds is None else max(seconds / 2, 1e-9)
    wanted = budget_epochs(run, kept, said) if epochs is None else list(epochs)
    budget = error_budget(run, objective, wanted, seconds=half, remainder=remainder)
    counts = objective.evaluations - before
    return Explanation(tuple(rows), budget, counts, batch_counts + budget.batch_counts, (*said, *budget.sentences))


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


def _second_order_errors(
    run: Run, objective: Objective, schedule: Schedule, kept: Sequence[int], seconds: float | None, said: list[str]
) -> tuple[list[SecondOrderError], Evaluations]:
    """The rows of all kept epochs, the batches' evaluations, and in `said` what was left out."""
    rows, counts = list[SecondOrderError](), Evaluations()
    quadratic = _affords_quadratic(objective, schedule, seconds)
    if quadratic is None:
        said.append(f"the predictions are left out: they do not fit into {seconds:g} s")
        return rows, counts
    if not quadratic and len(schedule.ends) > 3:
        said.append(f"the quadratic model is left out: it does not fit into {seconds:g} s")
    if schedule.batches is not None:
        start = run.weights(0)
        for made in predict_batches(
            objective, linear_rule(schedule.rule), schedule.batches, quadratic=quadratic, at=start
        ):
            if made.epoch in kept and made.order2 is not None:
                rows.append(_compared(run, made.epoch, made.order1, made.order2, made.quadratic))
                counts = made.counts
    else:
        rows += _full_batch_errors(run, objective, schedule, kept, quadratic)
        if not schedule.full:
            said.append("the predictions leave sampling out: the run's batches were not recorded")
    kinks = kink_sentence(objective)
    said += [] if kinks is None else [kinks]
    return rows, counts


def _affords_quadratic(objective: Objective, schedule: Schedule, seconds: float | None) -> bool | None:
    """Whether the quadratic model fits into half the time; None where not even order 2 does."""
    if seconds is None:
        return True
    costs = measured_costs(objective)
    epochs = len(schedule.ends) - 1
    passes, products = (1, max(0, epochs - 2)) if schedule.batches is None else (epochs, epochs)
    first = passes * (costs.gradient + costs.hvp)
    if first > seconds / 2:
        return None
    return first + products * costs.hvp <= seconds / 2


def _full_batch_errors(
    run: Run, objective: Objective, schedule: Schedule, kept: Sequence[int], quadratic: bool
) -> Iterator[SecondOrderError]:
    rule, start = linear_rule(schedule.rule), to_float64(run.weights(0), objective.home)
    expansion = expand(objective, rule, start, run.gradient(0) if records_first_gradient(run) else None)
    path: Iterator[Weights] = iter(())
    if quadratic and schedule.full:
        path = quadratic_path(objective, rule, kept[-1], expansion, start)
    for epoch in range(1, kept[-1] + 1):
        third = next(path, None)
        if epoch in kept:
            steps, upto = schedule.ends[epoch], linear_rule(schedule.rule_until(epoch))
            predicted = float(expansion.saturated_norms(upto, steps)[steps])
            order1, order2 = expansion.order1(upto, steps), expansion.order2(upto, steps)
            yield _compared(run, epoch, order1, order2, third, predicted)


def _compared(
    run: Run, epoch: int, order1: Weights, order2: Weights, quadratic: Weights | None, predicted: float | None = None
) -> SecondOrderError:
    """Predictions of a task vector compared with the recorded one."""
    tau = to_float64(run.task_vector(epoch), next(iter(order1.values())).device)
    error, plain = norm(difference(tau, order1)), norm(difference(order2, order1))
    length = norm(tau) or math.nan
    return SecondOrderError(
        run=run.name,
        epoch=epoch,
        error_norm=error,
        predicted_norm=plain if predicted is None else predicted,
        residual_order1=error / length,
        residual_order2=norm(difference(tau, order2)) / length,
        residual_quadratic=math.nan if quadratic is None else norm(difference(tau, quadratic)) / length,
        predicted_norm_order2=plain,
    )


def budget_epochs(run: Run, kept: Sequence[int], said: list[str]) -> list[int]:
    """Choose the epochs whose budgets are made.

    Args:
        run: the run.
        kept: epochs with a task vector.
        said: gets a sentence where not all are.

    Returns:
        All of them, or the last one where memory is short.
    """
    size = sum(math.prod(parameter.shape) for parameter in run.parameters.values())
    if len(kept) * VECTORS_AN_EPOCH * size * 8 <= BUDGET_MEMORY:
        return list(kept)
    said.append(f"the error budget is made for epoch {kept[-1]} alone: those of all epochs would take too much memory")
    return [kept[-1]]


def require_place_for_results(run: Run) -> None:
    """Refuse, before long work, a run beside which no results can be kept.

    Args:
        run: the run.

    Raises:
        TvgradError: its folder may not be written to, or something else stands in the place of the results.
    """  # noqa: DOC502 - raised by require_folder, too
    folder = run.root / RESULTS
    if folder.is_symlink():
        raise TvgradError(f"{folder} is a link, and nothing of a run is written through a link: remove it")
    require_folder(folder, "explain a copy of the run", "remove it, or explain a copy of the run")


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
    require_place_for_results(run)
    make_folder(folder, option="RUN, or a copy of it")
    for name, text in texts.items():
        write_text_atomically(folder / name, text, option="RUN, or a copy of it")
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


def _read(kind: type[Kind], path: Path) -> list[Kind]:
    try:
        text = read_text(path, path.parents[1])
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        what = path if path.parent.is_dir() else path.parent
        raise DamagedRun(
            f"{what} cannot be read ({reason_of(error)}): remove it, and run `tvgrad explain` again"
        ) from None
    try:
        found = from_json(kind, text)
    except DamagedRun as error:
        raise DamagedRun(f"{path}: {error}") from None
    return [_shown(one) for one in found]


def _shown(result: Kind) -> Kind:
    """The words of a run, which may be a stranger's, as they are shown to people."""
    words = {name: printable(value) for name, value in result.row().items() if isinstance(value, str)}
    return replace(result, **words)
