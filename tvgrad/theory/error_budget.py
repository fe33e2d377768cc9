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
are; a node that cannot be computed is left out, and its two rows become one under both names. For Adam, kappa is the
multiple of `- sum c_s G_s` that lies nearest to V2; for linear rules it is 1. Shares depend on the order of the nodes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Evaluations, Objective
from tvgrad.problem.samples import map_tensors
from tvgrad.recipes.of_run import check_data
from tvgrad.store.run import Run
from tvgrad.theory.batch_predictions import batch_view
from tvgrad.theory.budget_plan import BudgetPlan, plan_budget
from tvgrad.theory.budget_rows import BudgetTerm, Node, merged, rows_between
from tvgrad.theory.training_steps import (
    RecordedStep,
    Schedule,
    mismatch,
    recorded_steps,
    replayed_steps,
    schedule_of,
)
from tvgrad.update_rules.base import State, UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.vectors.algebra import add_scaled, combination, difference, to_float64, zeros_like
from tvgrad.vectors.parameters import Weights, inner_product, norm

MOST_MISMATCH = 0.1
"""A replay that is further from the recorded weights than this share of the task vector is another trajectory."""


@dataclass(frozen=True)
class ErrorBudget:
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
    objective: Objective,
    epochs: Sequence[int] | None = None,
    seconds: float | None = None,
    remainder: bool = False,
) -> ErrorBudget:
    """Cut the residual of a run's task vector into the terms that explain it.

    Gradients at theta_0 are computed by the objective (float64 keeps their rounding out of the rows); consumed
    gradients are read from the run, or recomputed by replaying its recorded batches. A few vectors are held for each
    epoch asked for, so that one epoch is explained in constant memory.

    Args:
        run: a run recorded by epoch, with a known update rule.
        objective: of the run's recipe, at any weights, in the run's dtype or float64.
        epochs: after which to explain it; by default the last one whose weights were kept.
        seconds: leave out, with a sentence, what is estimated not to fit into this time; None computes all that one
            pass over the data an epoch can give.
        remainder: compute V4 too, one Hessian-vector product of a batch for each mini-batch step.

    Returns:
        The budgets.

    Raises:
        TvgradError: the run cannot be explained, an epoch was not kept, or the data is not what was recorded.
    """
    check_data(run, objective)
    wanted = _epochs(run, epochs)
    schedule = schedule_of(run, wanted[-1])
    plan = plan_budget(run, objective, schedule, len(wanted), seconds, remainder)
    made = _Maker(run, objective, schedule, wanted, plan).make()
    if made is None:
        plan = plan.without_replay(
            "the replay of its batches does not come by the recorded weights: another machine, recipe or script; "
            "what needs the consumed gradients is left out"
        )
        made = _Maker(run, objective, schedule, wanted, plan).make()
    if made is None:
        raise TvgradError(f"{run.root} cannot be explained: {plan.sentences[-1]}")
    return made


def _epochs(run: Run, epochs: Sequence[int] | None) -> list[int]:
    kept = [number for number in run.epochs if number > 0]
    if 0 not in run.epochs or not kept:
        raise TvgradError(f"{run.root} has no task vector: it needs the weights of {run.unit} 0 and of a later one")
    wanted = sorted({int(number) for number in (kept[-1:] if epochs is None else epochs)})
    for number in wanted:
        if number not in kept:
            raise TvgradError(f"{run.root} keeps no weights after {run.unit} {number}: choose from {kept}")
    if not wanted:
        raise TvgradError("no epoch to explain was given")
    return wanted


@dataclass
class _Sums:
    """What one epoch's nodes are made of: weighted sums over its steps, in float64."""

    weights: np.ndarray  # c_s
    equal: np.ndarray  # S_E / B_E
    sized: np.ndarray  # S_E n_s / N_E
    vectors: dict[str, Weights] = field(default_factory=dict)
    rule: Weights | None = None  # V1
    plain: Weights | None = None  # V2
    replayed: Weights | None = None  # the replay's own task vector, where its bits differ
    off: float = 0.0

    def add(self, name: str, vector: Mapping[str, torch.Tensor], weight: float) -> None:
        if name not in self.vectors:
            self.vectors[name] = combination((weight, vector))
        else:
            add_scaled(self.vectors[name], vector, weight)


class _Maker:
    """Goes through the steps once and makes the nodes of every epoch that is wanted."""

    def __init__(self, run: Run, objective: Objective, schedule: Schedule, epochs: list[int], plan: BudgetPlan) -> None:
        self.run, self.objective, self.schedule, self.epochs, self.plan = run, objective, schedule, epochs, plan
        rule = run.rule
        if rule is None:
            raise TvgradError(f"{run.root} has no update rule that tvgrad knows")
        self.rule: UpdateRule = schedule.rule(rule, epochs[-1])
        self.device = objective.device
        self.start = to_float64(run.weights(0), self.device)
        self.before = Evaluations(**vars(objective.evaluations))
        self.batch_counts = Evaluations()
        self.began = time.perf_counter()
        sizes = self._sizes()
        self.sums = {epoch: self._empty(epoch, sizes) for epoch in epochs}
        if not isinstance(self.rule, LinearRule) and plan.consumed is None:
            raise TvgradError(
                f"{run.root} was trained by {self.rule.name}, whose preconditioner is known from the consumed "
                f"gradients alone, and {plan.reason}"
            )

    def make(self) -> ErrorBudget | None:
        self._follow()
        if any(sums.off > MOST_MISMATCH for sums in self.sums.values()):
            if not isinstance(self.rule, LinearRule):
                raise TvgradError(
                    f"the replay of {self.run.root} does not come by its recorded weights, and {self.rule.name} cannot "
                    "be explained without: replay it on the machine that recorded it, with the recipe that made it"
                )
            return None
        gradient = self._full_gradient()
        if self.schedule.full:
            for epoch, sums in self.sums.items():
                sums.add("first", gradient, float(sums.weights.sum()))
                sums.vectors["equal"] = sums.vectors["sized"] = sums.vectors["first"]
                if self.plan.consumed is None:
                    self._predicted_displacement(epoch, gradient)
        self._bend()
        rows, residuals, relative, closure = [], {}, {}, 0.0
        sentences = list(self.plan.sentences)
        for epoch, sums in self.sums.items():
            nodes = self._nodes(epoch, sums, gradient)
            found, residual, gap = rows_between(self.run, epoch, nodes)
            rows += found
            residuals[epoch], closure = norm(residual), max(closure, gap)
            length = norm(nodes[0].vector)
            relative[epoch] = residuals[epoch] / length if length else math.nan
            if sums.off:
                sentences.append(
                    f"the replay of the batches differs from the recorded weights of epoch {epoch} by {sums.off:.2g} "
                    "of the task vector: this has a row of its own"
                )
        sentences.append("shares depend on the order of the terms")
        return ErrorBudget(
            tuple(rows), residuals, relative, closure, self._counted(), self.batch_counts, tuple(sentences)
        )

    def _counted(self) -> Evaluations:
        now = self.objective.evaluations
        return Evaluations(gradients=now.gradients - self.before.gradients, hvps=now.hvps - self.before.hvps)

    def _sizes(self) -> np.ndarray:
        """The weight of each step's batch in the mean over the data."""
        if self.schedule.batches is None:
            return np.ones(self.schedule.ends[-1])
        weight, device = self.objective.batch_loss.weight, self.device
        samples = self.objective.samples
        sizes = []
        for indices in itertools.chain.from_iterable(self.schedule.batches):
            if self.objective.batch_loss.count is None:
                sizes.append(float(len(indices)))
            else:
                batch = samples.subset(indices).batch(0, len(indices))
                sizes.append(weight(map_tensors(batch, lambda tensor: tensor.to(device))))
        return np.array(sizes)

    def _empty(self, epoch: int, sizes: np.ndarray) -> _Sums:
        ends = self.schedule.ends
        weights = self.schedule.rule(self.rule, epoch).momentum_weights(ends[epoch])
        equal, sized = np.empty_like(weights), np.empty_like(weights)
        for begin, end in itertools.pairwise(ends[: epoch + 1]):
            total = weights[begin:end].sum()
            equal[begin:end] = total / (end - begin)
            sized[begin:end] = total * sizes[begin:end] / sizes[begin:end].sum()
        return _Sums(weights, equal, sized)

    def _follow(self) -> None:
        """One pass over the steps: the rule in float64, and every sum over steps."""
        if self.plan.consumed == "records":
            steps: Iterable[RecordedStep | None] = recorded_steps(self.run, self.schedule) or ()
        elif self.plan.consumed == "replay":
            steps = replayed_steps(self.run, self.objective, self.schedule)
        else:
            steps = [None] * (self.schedule.ends[-1] if self.plan.batches else 0)
        indices = None
        if self.plan.batches and self.schedule.batches is not None:
            indices = list(itertools.chain.from_iterable(self.schedule.batches))
        plain = self.rule.without_decay()
        decays = bool(self.rule.coupled_decay or self.rule.decoupled_decay)
        full, without = zeros_like(self.start), zeros_like(self.start)
        predicted: Weights = zeros_like(self.start)
        states: tuple[dict[str, State], ...] = ({}, {}, {})
        for index, step in enumerate(steps):
            open_sums = [sums for epoch, sums in self.sums.items() if self.schedule.ends[epoch] > index]
            if step is not None:
                theta = to_float64(step.theta, self.device)
                self.rule.advance(full, self.start, step.consumed, index, states[0], theta)
                if decays:
                    plain.advance(without, self.start, step.consumed, index, states[1])
                moved = difference(theta, self.start)
                for sums in open_sums:
                    weight = float(sums.weights[index])
                    sums.add("consumed", step.consumed, weight)
                    sums.add("displacement", moved, weight)
                    if self.schedule.clipped:
                        sums.add("unclipped", step.unclipped, weight)
                if step.after is not None and step.epoch in self.sums:
                    sums = self.sums[step.epoch]
                    sums.rule, sums.plain = combination((1.0, full)), combination((1.0, without if decays else full))
                    self._compare(step, sums)
            else:
                moved = None
            if indices is not None:
                self._batch(index, indices[index], moved, open_sums, predicted, states[2])

    def _batch(
        self,
        index: int,
        indices: torch.Tensor,
        moved: Weights | None,
        open_sums: list[_Sums],
        predicted: Weights,
        states: dict[str, State],
    ) -> None:
        """What one batch contributes at theta_0: its gradient, and its curvature where that is wanted."""
        view = batch_view(self.objective, indices, self.batch_counts)
        gradient = view.gradient(self.start)
        bent = view.hvp(moved, self.start) if self.plan.remainder and moved is not None and index > 0 else None
        for sums in open_sums:
            sums.add("first", gradient, float(sums.weights[index]))
            sums.add("equal", gradient, float(sums.equal[index]))
            sums.add("sized", gradient, float(sums.sized[index]))
            if bent is not None:
                sums.add("batch bend", bent, float(sums.weights[index]))
            if moved is None:
                sums.add("displacement", predicted, float(sums.weights[index]))
        if moved is None:
            # The displacement to first order, which is all that the curvature term needs.
            self.rule.advance(predicted, self.start, gradient, index, states)

    def _predicted_displacement(self, epoch: int, gradient: Weights) -> None:
        sums = self.sums[epoch]
        rule = self.schedule.rule(self.rule, epoch)
        moved, states = zeros_like(self.start), dict[str, State]()
        for index, weight in enumerate(sums.weights):
            sums.add("displacement", moved, float(weight))
            rule.advance(moved, self.start, gradient, index, states)

    def _compare(self, step: RecordedStep, sums: _Sums) -> None:
        """Whether a replay came by the recorded weights; what differs becomes a row."""
        if self.plan.consumed != "replay" or step.after is None:
            return
        sums.off = mismatch(self.run, step)
        if sums.off:
            sums.replayed = difference(to_float64(step.after, self.device), self.start)

    def _full_gradient(self) -> Weights:
        """g_0: as consumed where the optimizer consumed that very tensor, else computed."""
        if self.schedule.full and self.run.info.get("consumes_recorded_gradient") and 0 in self.run.having("gradient"):
            return to_float64(self.run.gradient(0), self.device)
        return to_float64(self.objective.gradient(self.start))

    def _bend(self) -> None:
        """H_0 times the weighted displacement of every epoch, from one graph a chunk."""
        wanted = [sums for sums in self.sums.values() if "displacement" in sums.vectors and "first" in sums.vectors]
        if self.plan.curvature and wanted:
            products = self.objective.hvps([sums.vectors["displacement"] for sums in wanted], self.start)
            for sums, product in zip(wanted, products, strict=True):
                sums.vectors["bend"] = to_float64(product)

    def _nodes(self, epoch: int, sums: _Sums, gradient: Weights) -> list[Node]:
        """The nodes that can be computed, in order; each names the row that follows it."""
        has, kappa = sums.vectors, 1.0
        minus = {name: combination((-1.0, vector)) for name, vector in has.items()}
        if not isinstance(self.rule, LinearRule) and sums.plain is not None:
            size = inner_product(minus["consumed"], minus["consumed"])
            kappa = inner_product(sums.plain, minus["consumed"]) / size if size else 1.0
        scaled = {name: combination((kappa, vector)) for name, vector in minus.items()}
        narrow = str(self.run.info.get("dtype")) != "float64"
        estimated = self.plan.consumed is None
        curvature = "curvature (predicted displacement)" if estimated and "bend" in has else "curvature"
        nodes: list[Node | str] = [
            Node("V0", difference(to_float64(self.run.weights(epoch), self.device), self.start)),
        ]

        def then(row: str, name: str, vector: Weights | None) -> None:
            nodes.append(row)
            if vector is not None:
                nodes.append(Node(name, vector))

        if sums.replayed is not None:
            then("replay mismatch", "V0'", sums.replayed)
        then("update rounding", "V1", sums.rule)
        then("weight decay", "V2", sums.plain)
        then("preconditioner", "V3", scaled.get("consumed"))
        if self.schedule.clipped:
            then("clipping", "V3'", scaled.get("unclipped"))
        fourth = fifth = None
        if "bend" in scaled:
            fifth = combination((1.0, scaled["first"]), (1.0, scaled["bend"]))
            if self.schedule.full and not estimated:
                fourth = fifth  # every batch is the whole
            elif "batch bend" in scaled:
                fourth = combination((1.0, scaled["first"]), (1.0, scaled["batch bend"]))
        then("remainder and gradient rounding" if narrow else "remainder", "V4", fourth)
        then("batch curvature", "V5", fifth)
        then(curvature, "V6", scaled.get("first"))
        then("batch order", "V7", scaled.get("equal"))
        then("unequal batches", "V8", scaled.get("sized"))
        then("coverage", "V9", combination((-kappa * float(sums.weights.sum()), gradient)))
        return merged(nodes, self._absent())

    def _absent(self) -> set[str]:
        """Rows that are zero by the rule or the schedule, whatever the numbers."""
        absent = set() if self.rule.coupled_decay or self.rule.decoupled_decay else {"weight decay"}
        if isinstance(self.rule, LinearRule):
            absent.add("preconditioner")
        if self.schedule.full:
            absent |= {"batch curvature", "batch order", "unequal batches", "coverage"}
        return absent
