"""The error budget: why a practical task vector is not minus the gradient, term by term.

The residual `tau - (-kappa S g_0)` is cut into rows by nodes, each of which undoes one thing that the training did:

    V0   tau as recorded                                                   V0 - V1   update rounding
    V1   the rule in float64 on the gradients as consumed                  V1 - V2   weight decay
    V2   the same without decay                                            V2 - V3   preconditioner
    V3   kappa ( - sum c_s G_s )                                           V3 - V3'  clipping (where a step was clipped)
    V3'  kappa ( - sum c_s G_s before clipping )                           V3' - V4  remainder (third order and up)
    V4   kappa ( - sum c_s [ g_{B_s} + H_{B_s} (theta_s - theta_0) ] )     V4 - V5   batch curvature
    V5   kappa ( - sum c_s g_{B_s} - H_0 sum c_s (theta_s - theta_0) )     V5 - V6   curvature
    V6   kappa ( - sum c_s g_{B_s} )                                       V6 - V7   batch order
    V7   kappa ( - sum (S_E / B_E) g_{B_s} )                               V7 - V8   unequal batches
    V8   kappa ( - sum (S_E n_s / N_E) g_{B_s} )                           V8 - V9   coverage
    V9   - kappa S g_0

with gradients and Hessians on the right at theta_0. The rows telescope, so their sum is the residual whatever the nodes
are; a node that cannot be computed is left out, and its two rows become one under both names. Where the consumed
gradients are neither recorded nor replayed, the row that begins at V0 is called unexplained. For Adam, kappa is the
multiple of `- sum c_s G_s` that lies nearest to V2; for linear rules it is 1. Shares depend on the order of the nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import check_data, objective_of
from tvgrad.results import Plotted, Shown
from tvgrad.store.given import require_run
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import batch_view
from tvgrad.theory.budget_plan import BudgetPlan, Source, plan_budget
from tvgrad.theory.budget_rows import BudgetTerm, Row, rows_between
from tvgrad.theory.budget_sums import EpochSums, StepSum
from tvgrad.theory.training_steps import (
    RecordedStep,
    Schedule,
    mismatch,
    recorded_steps,
    records_first_gradient,
    replayed_steps,
    schedule_of,
)
from tvgrad.update_rules.grouped import is_linear
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import combination, difference, to_float64
from tvgrad.vectors.parameters import Weights, inner_product

MOST_MISMATCH = 0.1
"""A replay that is further from the recorded weights than this share of the task vector is another trajectory."""


@dataclass(frozen=True, repr=False)
class ErrorBudget(Plotted, Shown):
    """Error budgets of a run after some epochs.

    Attributes:
        rows: the terms, epoch by epoch.
        residual_norms: epoch -> `||V0 - V9||`.
        relative_residuals: epoch -> the same over the norm of the task vector.
        closure: the largest norm of (sum of the rows - residual) over the residual's, summed vector by vector.
        counts: full passes over the data: gradients and Hessian-vector products.
        batch_counts: gradients and products of single batches.
        sentences: what was left out, and why.
    """

    rows: tuple[BudgetTerm, ...]
    residual_norms: dict[int, float]
    relative_residuals: dict[int, float]
    closure: float
    counts: Evaluations
    batch_counts: Evaluations
    sentences: tuple[str, ...]


def error_budget(
    run: Run,
    objective: Objective | Recipe,
    epochs: Sequence[int] | None = None,
    *,
    seconds: float | None = None,
    remainder: bool = False,
) -> ErrorBudget:
    """Cut the residual of a run's task vector into the terms that explain it.

    Gradients at the pretrained weights are computed by the objective (float64 keeps their rounding out of the rows);
    consumed gradients are read from the run, or recomputed by replaying its recorded batches. A few vectors are held
    for each epoch asked for, so that one epoch is explained in constant memory.

    Args:
        run: a run recorded by epoch, with a known update rule.
        objective: of the run's recipe, at any weights, in the run's dtype or float64; or the recipe itself, whose
            gradients are then computed in float64.
        epochs: after which to explain it; by default the last one whose weights were kept.
        seconds: leave out, with a sentence, what is estimated not to fit into this time; None computes all that one
            pass over the data an epoch can give.
        remainder: compute V4 too, one Hessian-vector product of a batch for each mini-batch step.

    Returns:
        The budgets.

    Raises:
        TvgradError: the run cannot be explained, an epoch was not kept, or the data is not what was recorded.

    Examples:
        >>> import pathlib, torch, tvgrad
        >>> from tvgrad.record.options import TraceOptions
        >>> from tvgrad.record.training_loop import prepare, trace
        >>> data = torch.randn(12, 4).double(), torch.arange(12) % 3
        >>> recipe = tvgrad.Recipe(torch.nn.Linear(4, 3).double(), torch.nn.CrossEntropyLoss(), data, lr=0.1, epochs=3)
        >>> run = trace(prepare(recipe, TraceOptions()), pathlib.Path("run"))
        >>> budget = tvgrad.error_budget(run, recipe.objective())
        >>> [row.term for row in budget.rows if abs(row.share) > 0.5]
        ['curvature']
        >>> abs(sum(row.share for row in budget.rows) - 1) < 1e-9
        True
    """  # noqa: DOC502 - raised by what it calls
    require_run(run)
    if isinstance(objective, Recipe):
        objective = objective_of(run, objective, torch.float64)
    if not isinstance(objective, Objective):
        raise TvgradError(
            f"a {type(objective).__name__} is no objective: pass the recipe, or tvgrad.Objective(model, loss, data)"
        )
    check_data(run, objective)
    wanted = _epochs(run, epochs)
    schedule = schedule_of(run, wanted[-1])
    plan = plan_budget(run, objective, schedule, targets=len(wanted), seconds=seconds, remainder=remainder)
    maker = _BudgetMaker(run, objective, schedule, wanted, plan)
    if maker.follow_steps() > MOST_MISMATCH:
        maker = _BudgetMaker(run, objective, schedule, wanted, plan.without_replay())
        maker.follow_steps()
    return maker.budget()


def epochs_with_task_vector(run: Run) -> list[int]:
    """List the epochs after which a run has a task vector.

    Args:
        run: the run.

    Returns:
        At least one epoch, in order.

    Raises:
        TvgradError: there is none.
    """
    kept = [number for number in run.epochs if number > 0]
    if 0 not in run.epochs or not kept:
        raise TvgradError(f"{run.root} has no task vector: it needs the weights of {run.unit} 0 and of a later one")
    return kept


def _epochs(run: Run, epochs: Sequence[int] | None) -> list[int]:
    kept = epochs_with_task_vector(run)
    wanted = sorted({int(number) for number in (kept[-1:] if epochs is None else epochs)})
    for number in wanted:
        if number not in kept:
            raise TvgradError(f"{run.root} keeps no weights after {run.unit} {number}: choose from {kept}")
    if not wanted:
        raise TvgradError("no epoch to explain was given")
    return wanted


class _BudgetMaker:
    """Goes through the steps once and makes the nodes of every epoch that is wanted."""

    def __init__(self, run: Run, objective: Objective, schedule: Schedule, epochs: list[int], plan: BudgetPlan) -> None:
        self.run, self.objective, self.schedule, self.plan = run, objective, schedule, plan
        self.rule = schedule.rule_until(epochs[-1])
        self.linear = is_linear(self.rule)
        if not self.linear and plan.source is None:
            raise TvgradError(
                f"{run.root} was trained by {self.rule.name}, whose preconditioner is known from the consumed "
                f"gradients alone, and {plan.reason}"
            )
        self.home = objective.home
        self.start = to_float64(run.weights(0), self.home)
        self.before = objective.evaluations.copy()
        self.batch_counts = Evaluations()
        self.batches = list(itertools.chain.from_iterable(schedule.batches or ()))
        sizes = self._batch_sizes()
        self.sums = {epoch: self._empty_sums(epoch, sizes) for epoch in epochs}

    def _batch_sizes(self) -> np.ndarray:
        """The weight of each step's batch in the mean over the data."""
        if not self.batches:
            return np.ones(self.schedule.ends[-1])
        loss = self.objective.batch_loss
        if loss.count is None:
            return np.array([float(len(indices)) for indices in self.batches])
        pick, device = self.objective.samples.subset, self.objective.device
        return np.array([loss.weight(pick(indices).batch(0, len(indices), device)) for indices in self.batches])

    def _empty_sums(self, epoch: int, sizes: np.ndarray) -> EpochSums:
        ends = self.schedule.ends
        rule = self.schedule.rule_until(epoch)
        weights = rule.momentum_weights(ends[epoch])
        equal, by_size = np.empty_like(weights), np.empty_like(weights)
        for begin, end in itertools.pairwise(ends[: epoch + 1]):
            total = weights[..., begin:end].sum(axis=-1, keepdims=True)
            equal[..., begin:end] = total / (end - begin)
            by_size[..., begin:end] = total * sizes[begin:end] / sizes[begin:end].sum()
        return EpochSums(rule, weights, equal, by_size)

    def follow_steps(self) -> float:
        """Go through the steps: the rule in float64, and every sum over steps.

        Returns:
            The largest mismatch of a replay with the recorded weights.
        """
        full = without_decay = Trajectory(self.rule, self.start)
        if self.rule.decays:
            without_decay = Trajectory(self.rule.without_decay(), self.start)
        predicted = Trajectory(self.rule, self.start)  # to first order, where the steps are not known
        for index, step in enumerate(self._steps()):
            later = [sums for epoch, sums in self.sums.items() if self.schedule.ends[epoch] > index]
            if step is None:
                moved = predicted.task_vector
            else:
                theta = to_float64(step.theta, self.home)
                moved = difference(theta, self.start)
                full.step(step.consumed, theta)
                if without_decay is not full:
                    without_decay.step(step.consumed)
                for sums in later:
                    sums.add(StepSum.CONSUMED, step.consumed, index)
                    if self.schedule.clipped:
                        sums.add(StepSum.UNCLIPPED, step.unclipped, index)
            for sums in later:
                sums.add(StepSum.DISPLACEMENT, moved, index)
            if self.plan.batches:
                gradient = self._add_batch(index, moved, later)
                if step is None:
                    predicted.step(gradient)
            if step is not None and step.after is not None and step.epoch in self.sums:
                self._end_epoch(step, step.after, full, without_decay)
        return max(sums.mismatch for sums in self.sums.values())

    def _steps(self) -> Iterable[RecordedStep | None]:
        """The steps; None for each where consumed gradients and moving weights are left out."""
        if self.plan.source is Source.RECORDS:
            return (step.to(self.home) for step in recorded_steps(self.run, self.schedule) or ())
        if self.plan.source is Source.REPLAY:
            return (step.to(self.home) for step in replayed_steps(self.run, self.objective, self.schedule))
        return [None] * len(self.batches if self.plan.batches else ())

    def _add_batch(self, index: int, moved: Weights, later: list[EpochSums]) -> Weights:
        """Add what one batch contributes at theta_0: its gradient, and its curvature where that is wanted."""
        view = batch_view(self.objective, self.batches[index], self.batch_counts)
        gradient = view.gradient(self.start)
        product = view.hvp(moved, self.start) if self.plan.remainder and index > 0 else None
        for sums in later:
            for name in (StepSum.BATCH_GRADIENT, StepSum.EQUAL_BATCHES, StepSum.BATCHES_BY_SIZE):
                sums.add(name, gradient, index)
            if product is not None:
                sums.add(StepSum.BATCH_PRODUCT, product, index)
        return gradient

    def _end_epoch(self, step: RecordedStep, after: Weights, full: Trajectory, without_decay: Trajectory) -> None:
        """Keep the rule's nodes of an epoch, and the replay's own where its weights are not those recorded."""
        sums = self.sums[step.epoch]
        sums.nodes[Row.UPDATE_ROUNDING] = combination((1.0, full.task_vector))
        sums.nodes[Row.WEIGHT_DECAY] = combination((1.0, without_decay.task_vector))
        if self.plan.source is Source.REPLAY:
            sums.mismatch = mismatch(self.run, step)
            if sums.mismatch:
                sums.nodes[Row.REPLAY_MISMATCH] = difference(to_float64(after, self.home), self.start)

    def budget(self) -> ErrorBudget:
        """Make the budget of what was summed."""
        gradient = self._full_gradient()
        if self.schedule.full:
            for epoch, sums in self.sums.items():
                summed = combination((sums.total, gradient))
                for name in (StepSum.BATCH_GRADIENT, StepSum.EQUAL_BATCHES, StepSum.BATCHES_BY_SIZE):
                    sums.vectors[name] = summed
                if self.plan.source is None:
                    self._predict_displacement(epoch, gradient)
        self._multiply_displacements()
        sentences = list(self.plan.sentences)
        budgets = {}
        for epoch, sums in self.sums.items():
            nodes = self._nodes(sums, gradient)
            unexplained = self.plan.source is None
            budgets[epoch] = rows_between(
                self.run, epoch, nodes, absent=self._absent(), terms=self._terms(), unexplained=unexplained
            )
            if sums.mismatch:
                sentences.append(
                    f"the replay of the batches differs from the recorded weights of epoch {epoch} by "
                    f"{sums.mismatch:.2g} of the task vector: this has a row of its own"
                )
        sentences.append("shares depend on the order of the terms")
        return ErrorBudget(
            tuple(row for budget in budgets.values() for row in budget.rows),
            {epoch: budget.residual_norm for epoch, budget in budgets.items()},
            {epoch: budget.relative_residual for epoch, budget in budgets.items()},
            max(budget.gap for budget in budgets.values()),
            self.objective.evaluations - self.before,
            self.batch_counts,
            tuple(sentences),
        )

    def _full_gradient(self) -> Weights:
        """g_0: as consumed where the optimizer consumed that very tensor, else computed."""
        if self.schedule.full and records_first_gradient(self.run):
            return to_float64(self.run.gradient(0), self.home)
        return to_float64(self.objective.gradient(self.start))

    def _predict_displacement(self, epoch: int, gradient: Weights) -> None:
        """The displacements to first order, which is all that the curvature term needs."""
        predicted = Trajectory(self.schedule.rule_until(epoch), self.start)
        for index in range(self.sums[epoch].weights.shape[-1]):
            self.sums[epoch].add(StepSum.DISPLACEMENT, predicted.task_vector, index)
            predicted.step(gradient)

    def _multiply_displacements(self) -> None:
        """H_0 times the summed displacement of every epoch, from one graph a chunk."""
        both = {StepSum.DISPLACEMENT, StepSum.BATCH_GRADIENT}
        wanted = [sums for sums in self.sums.values() if both <= sums.vectors.keys()]
        if self.plan.curvature and wanted:
            products = self.objective.hvps([sums.vectors[StepSum.DISPLACEMENT] for sums in wanted], self.start)
            for sums, product in zip(wanted, products, strict=True):
                sums.vectors[StepSum.FULL_PRODUCT] = to_float64(product)

    def _nodes(self, sums: EpochSums, gradient: Weights) -> dict[Row, Weights]:
        """The nodes that can be computed."""
        kappa = 1.0
        if not self.linear and Row.WEIGHT_DECAY in sums.nodes:
            consumed = sums.vectors[StepSum.CONSUMED]
            size = inner_product(consumed, consumed)
            kappa = -inner_product(sums.nodes[Row.WEIGHT_DECAY], consumed) / size if size else 1.0
        scaled = {name: combination((-kappa, vector)) for name, vector in sums.vectors.items()}
        sum_of = {
            Row.PRECONDITIONER: StepSum.CONSUMED,
            Row.CLIPPING: StepSum.UNCLIPPED,
            Row.CURVATURE: StepSum.BATCH_GRADIENT,
            Row.BATCH_ORDER: StepSum.EQUAL_BATCHES,
            Row.UNEQUAL_BATCHES: StepSum.BATCHES_BY_SIZE,
        }
        nodes = sums.nodes | {row: scaled[name] for row, name in sum_of.items() if name in scaled}
        if StepSum.FULL_PRODUCT in scaled:
            at_start = (1.0, scaled[StepSum.BATCH_GRADIENT])
            nodes[Row.BATCH_CURVATURE] = combination(at_start, (1.0, scaled[StepSum.FULL_PRODUCT]))
            if self.schedule.full and self.plan.source is not None:  # every batch is the whole
                nodes[Row.REMAINDER] = nodes[Row.BATCH_CURVATURE]
            elif StepSum.BATCH_PRODUCT in scaled:
                nodes[Row.REMAINDER] = combination(at_start, (1.0, scaled[StepSum.BATCH_PRODUCT]))
        nodes[Row.COVERAGE] = combination((-kappa, combination((sums.total, gradient))))
        return nodes

    def _terms(self) -> dict[Row, str]:
        """Longer names for rows that hold something besides."""
        terms = {}
        if str(self.run.info.get("dtype")) != "float64":
            terms[Row.REMAINDER] = "remainder and gradient rounding"
        if self.plan.source is None and self.plan.curvature:
            terms[Row.CURVATURE] = "curvature (predicted displacement)"
        return terms

    def _absent(self) -> set[Row]:
        """Rows that are zero by the rule, the schedule or the source, whatever the numbers."""
        absent = {Row.REPLAY_MISMATCH}
        if not self.schedule.clipped:
            absent.add(Row.CLIPPING)
        if not self.rule.decays:
            absent.add(Row.WEIGHT_DECAY)
        if self.linear:
            absent.add(Row.PRECONDITIONER)
        if self.schedule.full:
            absent |= {Row.BATCH_CURVATURE, Row.BATCH_ORDER, Row.UNEQUAL_BATCHES, Row.COVERAGE}
        return absent
