"""Two verdicts on the first epoch of a run, never one, and the sentence that a reader takes away.

*Step*: did the weights move as the update rule prescribes for the gradient that the optimizer consumed? That is a
question about rounding, and `check_one_epoch` answers it with a bound.

*Gradient*: is the task vector minus the learning rate times g_0, the full-batch gradient at the pretrained weights?
That is the statement of the paper (arXiv 2508.16082), and a run can pass the first and be far from the second: Adam,
several batches, a number format whose spacing swallows the step, dropout. The deviation is shown in either case.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tvgrad.results import Result
from tvgrad.store.measured import as_estimate, error_bar, how_to_get
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.theory.budget_rows import UNEXPLAINED
from tvgrad.theory.equivalence import (
    EXACT,
    FAILS,
    UNTRAINED,
    OneEpochCheck,
    check_one_epoch,
    first_rates,
)
from tvgrad.theory.explain import read_results
from tvgrad.theory.first_step import descent_sums, first_step_files, first_step_tensors
from tvgrad.theory.sketched_step import sketched_cause
from tvgrad.theory.troubles import DIVERGED, KINDS, MOVED, kind_of, troubles_of
from tvgrad.update_rules.grouped import parts_of
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import Adam, Nesterov
from tvgrad.wording import counted, listed, percent

YES, NO, UNKNOWN = "yes", "no", "unknown"

SAME = 0.01
"""A task vector within this relative deviation of minus the rate times the gradient is called that vector."""

PARALLEL = 1 - SAME**2 / 2
"""From this cosine on, the part of a vector across the other is at most `SAME` of its length."""

UNCHANGED = 0.05
"""From which share of unchanged coordinates they are named as a cause."""


@dataclass(frozen=True)
class GradientVerdict(Result):
    """Is the first task vector minus the learning rate times the full-batch gradient?

    Attributes:
        holds: yes, no or unknown (no full-batch gradient at theta_0, or an estimate of unknown error to which the task
            vector is near; no weights after the first epoch; no rate).
        deviation: `||tau_1 + lr g_0|| / ||lr g_0||`, the recorded g_0; NaN where it cannot be formed.
        cosine: `cos(tau_1, -g_0)`.
        gradient_rounding: relative deviation of the recorded g_0 from the same gradient in a wider format, where the
            run says it; else NaN.
        cause: one sentence; empty where the answer is yes.
        error_bar: of a g_0 that is one epoch's estimate: how far two measuring passes differ, relative, infinite where
            they repeat one another; else NaN.
    """

    holds: str
    deviation: float
    cosine: float
    gradient_rounding: float
    cause: str
    error_bar: float = math.nan

    @property
    def sentence(self) -> str:
        """The answer in words: yes or no, how far, and why."""
        if self.holds == UNKNOWN:
            return f"unknown: {self.cause}"
        own = ""
        if self.gradient_rounding > 0:
            own = f", g_0 itself {percent(self.gradient_rounding)} off by the rounding of its format"
        own += _as_estimate(self.error_bar)
        if self.holds == YES:
            return f"yes (deviation {percent(self.deviation)}{own}, {_direction(self.cosine)})"
        return f"no: {percent(self.deviation)} away{own}, {_direction(self.cosine)}; {self.cause}"


@dataclass(frozen=True)
class EquivalenceRow(Result):
    """Both verdicts on a run's first epoch: a row of equivalence.csv.

    Attributes:
        run: the run's name.
        rule: the form of the step that was checked.
        holds: the step: exact, fails or does not apply.
        worst_ratio_to_budget: largest deviation of a coordinate over its rounding bound.
        frozen_share: share of the coordinates with a gradient that the step left unchanged.
        gradient_relative_error: of the consumed gradient to the full-batch one.
        reason: of the step's verdict, one sentence.
        gradient_holds: is the task vector minus the rate times the full-batch gradient: yes, no or unknown.
        deviation: `||tau_1 + lr g_0|| / ||lr g_0||`.
        cosine: `cos(tau_1, -g_0)`.
        cause: of a no or an unknown, one sentence.
        trouble: divergence, a model that got worse, an early end, or weights that moved outside the steps or were not
            recorded, as clauses with their numbers; empty where there is none.
        gradient_error_bar: of a g_0 that is one epoch's estimate: how far two measuring passes differ, relative,
            infinite where they repeat one another; NaN where it is the full batch's.
    """

    run: str
    rule: str
    holds: str
    worst_ratio_to_budget: float
    frozen_share: float
    gradient_relative_error: float
    reason: str
    gradient_holds: str
    deviation: float
    cosine: float
    cause: str
    trouble: str
    gradient_error_bar: float = math.nan

    @property
    def far(self) -> str:
        """How far the task vector is from minus the rate times the gradient, in words."""
        bar = _as_estimate(self.gradient_error_bar)
        return f"{percent(self.deviation)} away, {_direction(self.cosine)}{bar}"


def verdict_rows(run: Run, name: str | None = None, kept: KeptProducts | None = None) -> tuple[EquivalenceRow, ...]:
    """Judge the first epoch of a run, and whether its training diverged.

    Args:
        run: a recorded run.
        name: what to call it; by default its own name.
        kept: numbers of earlier reports; by default all is read.

    Returns:
        One row for each form of the step that was checked; what is said of the gradient is the same in all.
    """
    step = check_one_epoch(run, kept)
    gradient, trouble = gradient_verdict(run, step, kept), "; ".join(troubles_of(run))
    said = {
        "gradient_holds": gradient.holds,
        "deviation": gradient.deviation,
        "cosine": gradient.cosine,
        "cause": gradient.cause,
        "trouble": trouble,
        "gradient_error_bar": gradient.error_bar,
    }
    return tuple(EquivalenceRow(**{**vars(one), **said, "run": name or run.name}) for one in step.verdicts)


def gradient_verdict(run: Run, step: OneEpochCheck, kept: KeptProducts | None = None) -> GradientVerdict:
    """Compare the first task vector with minus the rate times the recorded full-batch gradient.

    Args:
        run: a recorded run.
        step: the check of its first step.
        kept: numbers of earlier reports; by default all is read.

    Returns:
        The verdict, the deviation measured in float64 and never from inner products of the long vectors.
    """
    nothing = math.nan
    lacks, rule = _lacks(run, kept), run.rule
    if lacks is not None or rule is None:
        return GradientVerdict(UNKNOWN, nothing, nothing, nothing, lacks or "")
    rates = sorted({rate for rate in first_rates(run, rule).values() if rate})
    rate = rates[0] if len(rates) == 1 else _nearest_rate(run)

    def compute() -> tuple[float, ...]:
        return descent_sums(run, rate)

    if kept is None:
        apart, length, moved, inner = compute()
    else:
        about = ["gradient", repr(rate), repr(list(run.parameters))]
        apart, length, moved, inner = kept.numbers(first_step_files(run, "gradient"), about, compute)
    if length == 0:
        return GradientVerdict(UNKNOWN, nothing, nothing, nothing, "the full-batch gradient at the start is zero")
    deviation = math.sqrt(apart / length)
    cosine = inner / math.sqrt(moved * length) if moved else nothing
    rounding = float(run.info.get("gradient_rounding") or nothing)
    bar = error_bar(run, 0)
    total = math.fsum([
        deviation,
        0.0 if math.isnan(rounding) else rounding,
        0.0 if bar is None or math.isinf(bar) else bar,
    ])
    bar = nothing if bar is None else bar
    if total <= SAME and math.isinf(bar):  # near an estimate that may be far from the full-batch gradient
        cause = f"{percent(deviation)} away from g_0, which is {as_estimate(bar)}: its two passes drew the same"
        return GradientVerdict(UNKNOWN, deviation, cosine, rounding, cause, bar)
    if total <= SAME:
        return GradientVerdict(YES, deviation, cosine, rounding, "", bar)
    stretch = math.sqrt(moved / length)
    return GradientVerdict(NO, deviation, cosine, rounding, _cause(run, step, cosine, stretch), bar)


def _direction(cosine: float) -> str:
    """The cosine in words; a task vector that is zero, or not finite, has none."""
    return "no direction" if math.isnan(cosine) else f"cosine {cosine:.2f}"


def _nearest_rate(run: Run) -> float:
    """The multiple of minus the gradient that is nearest to the task vector, where there is no one rate."""
    size = along = 0.0
    for _, after, before, gradient in first_step_tensors(run, "gradient"):
        along -= float((after.double() - before.double()) @ gradient.double())
        size += float(gradient.double().square().sum())
    return along / size if size else math.nan


def _as_estimate(bar: float) -> str:
    """What is said of a g_0 that is an estimate, for the end of a sentence."""
    return "" if math.isnan(bar) else f", g_0 being {as_estimate(bar)}"


def _lacks(run: Run, kept: KeptProducts | None) -> str | None:
    """What is missing for a comparison with the full-batch gradient, or None; first what no gradient would help."""
    if 0 not in run.epochs or 1 not in run.epochs:
        return f"the weights after {run.unit} 1 were not recorded or not kept"
    if 0 not in run.having("gradient"):
        if (sketched := sketched_cause(run, kept)) is not None:
            return sketched
        return f"no full-batch gradient at the pretrained weights was recorded ({how_to_get(run)})"
    if run.rule is None:
        return f"the learning rate is not known: {run.info.get('rule_reason') or 'no update rule was recorded'}"
    return None


def _cause(run: Run, step: OneEpochCheck, cosine: float, stretch: float) -> str:
    """Why the task vector is not minus the rate times the gradient, from what the run knows."""
    if not math.isfinite(stretch):
        return f"the weights after {run.unit} 1 are not finite"
    causes = [*_causes_of_the_rule(run), *_causes_of_the_steps(run)]
    moved = run.info.get("moved_outside_steps")
    if moved and step.holds != EXACT:  # an exact step has moved all that moved
        causes.append(f"{MOVED}, seen {counted(moved, 'time')} in the run")
    if not causes:  # one plain step: the error budget splits this very deviation
        budget = _largest_term(run)
        if budget:
            return budget
    shares = [verdict.frozen_share for verdict in step.verdicts if verdict.frozen_share >= UNCHANGED]
    if shares:
        # A mask that restores weights, or a kernel that leaves blocks out, stops coordinates too: only a step without
        # a deviation beyond rounding tells that it was the format.
        by_format = step.holds == EXACT or not (moved or step.holds == FAILS)
        why = f", their step being lost in {run.info.get('dtype', 'their format')}" if by_format else ""
        causes.append(f"{percent(max(shares))} of the coordinates did not change{why}")
    errors = [verdict.gradient_relative_error for verdict in step.verdicts if verdict.gradient_relative_error > SAME]
    if errors:
        scaled = step.holds == EXACT and not causes and cosine >= PARALLEL
        causes.append(
            f"the gradient that the step consumed is {percent(max(errors))} away from the full-batch gradient "
            + (
                f"and parallel to it, {stretch:.3g} times as long (scaled or clipped before the step without a record)"
                if scaled
                else "(dropout, augmentation, noise, other samples or other weights in the mean, or a change of the "
                "gradient between backward and step)"
            )
        )
        if scaled:
            return listed(causes)
    if step.holds == FAILS and not moved:
        causes.append(_why_it_failed(run, step))
    if abs(stretch - 1) > SAME:
        causes.append(
            f"it is {stretch:,.3g} times as long" if stretch < 1000 else f"it is {stretch:,.0f} times as long"
        )
    if causes:
        return listed(causes)
    own = float(run.info.get("gradient_rounding") or 0)
    if own > SAME:
        return f"the recorded gradient is itself {percent(own)} off by the rounding of its format"
    return f"rounding to {run.info.get('dtype', 'the format')} of the weights"


def _why_it_failed(run: Run, step: OneEpochCheck) -> str:
    """What a step beyond its rounding bound is put down to; of another device's kernels there is no bound."""
    reason = next(verdict.reason for verdict in step.verdicts if verdict.holds == FAILS)
    if reason.startswith(UNTRAINED):
        return f"{UNTRAINED} coordinates untrained"
    device = str(run.info.get("device", "cpu"))
    if not device.startswith("cpu"):
        return f"the step exceeds the rounding bound of PyTorch's CPU kernels, and was made on {device}"
    return "something besides this optimizer step moved the weights"


def _largest_term(run: Run) -> str | None:
    """What the error budget of the first epoch says, where it was computed."""
    terms = [term for term in read_results(run)[1] if term.epoch == 1 and not math.isnan(term.share)]
    if not terms:
        return None
    largest = max(terms, key=lambda term: term.share)
    if largest.term == UNEXPLAINED:
        return (
            "the error budget cannot split it, because the gradients that the steps consumed were neither recorded nor "
            "reproduced by a replay"
        )
    return f"by the error budget {percent(largest.share)} of it is {largest.term}"


def _causes_of_the_rule(run: Run) -> list[str]:
    found, parts = [], () if run.rule is None else parts_of(run.rule)
    for rule in parts:
        if isinstance(rule, Adam):
            found.append(f"{rule.name} divides each coordinate of the gradient by its own size")
        elif isinstance(rule, Nesterov):
            found.append(f"Nesterov momentum stretches the first step by 1 + {rule.momentum:g}")
    decays = sorted({rule.coupled_decay or rule.decoupled_decay for rule in parts if rule.decays})
    if decays:
        found.append(f"weight decay {listed([f'{decay:g}' for decay in decays])} moves the weights too")
    rates = [] if run.rule is None else sorted({rate for rate in first_rates(run, run.rule).values() if rate})
    if len(rates) > 1:
        found.append(f"groups of parameters have rates of their own, from {rates[0]:.3g} to {rates[-1]:.3g}")
    return list(dict.fromkeys(found))


def _causes_of_the_steps(run: Run) -> list[str]:
    found, steps = [], run.steps(1)
    count = run.point(1).steps
    if run.unit == "epoch" and count != 1:
        size = run.info.get("batch_size")
        cut = f" on mini-batches of {size}" if size else ""
        parts = () if run.rule is None else parts_of(run.rule)
        momentum = any(isinstance(part, LinearRule) and bool(getattr(part, "momentum", 0)) for part in parts)
        found.append(f"epoch 1 took {count} steps{cut}{', weighed by momentum' if momentum else ''}")
    factors = [float(factor) for factor in steps["clip_factor"].dropna()] if "clip_factor" in steps else []
    if min(factors, default=1.0) < 1:
        found.append(f"the gradient was clipped to {min(factors):.2g} of its length")
    values = steps["clip_value"].dropna().tolist() if "clip_value" in steps else []
    if values:
        found.append(f"the coordinates of the gradient were clipped to {min(values):.3g}")
    elif "clipped_in_parts" in steps and steps["clipped_in_parts"].notna().any():
        found.append("the gradient was clipped in parts, by factors that were not recorded")
    return found


def headline(rows: Sequence[EquivalenceRow]) -> str:
    """Say in one line what a reader must know: trouble first, then both verdicts, the negative one first.

    Args:
        rows: of one run or several.

    Returns:
        One line that is true when it is read alone.
    """
    last = {row.run: row for row in rows}  # the rule's own form comes last
    troubles = []
    for kind in (DIVERGED, *KINDS.values()):
        said = [f"{row.run}, {row.trouble}" for row in last.values() if row.trouble and kind_of(row.trouble) == kind]
        if said:
            troubles.append(f"{kind}: {listed(said, 3)}.")
    steps = {row.run: FAILS for row in rows if row.holds == FAILS}
    parts = [_gradient_part(list(last.values())), _step_part(rows, list(last.values()))]
    if steps and not any(row.gradient_holds == NO for row in rows):
        parts.reverse()
    return " ".join([*troubles, *parts])


def _gradient_part(rows: Sequence[EquivalenceRow]) -> str:
    question = "Task vector = -lr x full-batch gradient"
    by_answer = {holds: [row for row in rows if row.gradient_holds == holds] for holds in (NO, UNKNOWN, YES)}
    said, alone = [], len(rows) == 1
    if by_answer[NO]:
        worst = max(by_answer[NO], key=lambda row: row.deviation if math.isfinite(row.deviation) else math.inf)
        many = "" if alone else f" for {len(by_answer[NO])} of {counted(len(rows), 'run')}, worst {worst.run}"
        said.append(f"no{many}: {worst.far}; {worst.cause}")
    if by_answer[UNKNOWN]:
        many = "" if alone else f" for {len(by_answer[UNKNOWN])}"
        said.append(f"unknown{many}: {by_answer[UNKNOWN][0].cause}")
    if by_answer[YES]:
        worst = max(by_answer[YES], key=lambda row: row.deviation)
        many = "" if alone else f" for {len(by_answer[YES])}"
        said.append(f"yes{many}: {'' if alone else 'at most '}{worst.far}")
    return f"{question} after the first epoch: {'; '.join(said)}."


def _step_part(rows: Sequence[EquivalenceRow], last: Sequence[EquivalenceRow]) -> str:
    exact = [row.run for row in last if row.holds == EXACT]
    fails = list(dict.fromkeys(row.run for row in rows if row.holds == FAILS))
    other = [row for row in last if row.holds not in {EXACT, FAILS}]
    said = []
    if fails:
        said.append(f"fails for {listed(fails, 5)}")
    if other:
        why = re.split(r"[,:;]", other[0].reason)[0]
        said.append(f"not checked for {listed([row.run for row in other], 5)} ({why})")
    if exact:
        every = "every run" if len(exact) == len(last) > 1 else listed(exact, 5)
        said.append(f"exact for {every}, within the rounding of one step from the gradient that was consumed")
    return f"Optimizer step: {'; '.join(said)}."
