"""One epoch is exact: is the first task vector, to the last bit that storage allows, the step that the rule prescribes?

One epoch of full-batch gradient descent is one step, so `tau_1 = -lr g_0` (Zhou et al., arXiv 2508.16082). In floating
point the two sides differ by the rounding of one step, for which `tvgrad.update_rules.rounding` has a bound for every
coordinate: `exact` means that no coordinate exceeds it. Other rules have a first step of their own form, which is
checked in the same way; where a form does not apply, the assumption that fails is named and the deviation measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tvgrad.problem.checks import ALLOWABLE
from tvgrad.results import Result, Shown
from tvgrad.store.given import require_run
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.measured import as_estimate, error_bar
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.theory.first_step import Comparison, Form, compare, gradient_error
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.grouped import AnyRule, GroupedRule, parts_of, rule_of
from tvgrad.update_rules.rounding import (
    adam_rounding_bound,
    direction_rounding_bound,
    gradient_step_rounding_bound,
    shrinkage_rounding_bound,
)
from tvgrad.update_rules.rules import GD, SGD, Adam, Momentum, Nesterov
from tvgrad.wording import counted, listed

EXACT, FAILS, APPLIES_NOT = "exact", "fails", "does not apply"
GRADIENT_FORM = "tau_1 = -lr g_0"
UNTRAINED = "the optimizer's fused kernel left"
"""How the reason of a step begins that a defect of PyTorch cut short."""


@dataclass(frozen=True)
class StepVerdict(Result):
    """What was found for one form of the first step.

    Attributes:
        run: the run's name.
        rule: the form that was checked, as a formula.
        holds: exact, fails or does not apply.
        worst_ratio_to_budget: largest deviation of a coordinate over its rounding bound; at most 1 when exact, NaN
            where there is no gradient to compare with.
        frozen_share: share of the coordinates with a gradient that the step left as they were, bit for bit.
        gradient_relative_error: distance between the consumed and the full-batch gradient over the latter's norm;
            0 where the optimizer consumed the very tensor, NaN where one of them was not recorded.
        reason: one sentence: what was compared, or which assumption fails.
    """

    run: str
    rule: str
    holds: str
    worst_ratio_to_budget: float
    frozen_share: float
    gradient_relative_error: float
    reason: str


@dataclass(frozen=True, repr=False)
class OneEpochCheck(Shown):
    """The verdicts on a run's first epoch.

    Attributes:
        verdicts: the gradient form `tau_1 = -lr g_0` first, then the rule's own form where it is another.
    """

    verdicts: tuple[StepVerdict, ...]

    @property
    def holds(self) -> str:
        """The best verdict: exact if one form is, fails if one that applies does not hold."""
        found = [verdict.holds for verdict in self.verdicts]
        return FAILS if FAILS in found else EXACT if EXACT in found else APPLIES_NOT

    def _facts(self) -> dict[str, str]:
        return {"holds": repr(self.holds), "verdicts": str(len(self.verdicts))}


def check_one_epoch(run: Run, kept: KeptProducts | None = None) -> OneEpochCheck:
    """Check the first epoch of a run against the gradient that its optimizer consumed.

    Args:
        run: a recorded run.
        kept: numbers of earlier reports; by default all is read.

    Returns:
        One verdict for the gradient form, and one for the rule's own form where that is another.

    Raises:
        TvgradError: it is no run.

    Examples:
        >>> import torch, tvgrad
        >>> model, loss = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss()
        >>> objective = tvgrad.Objective(model, loss, (torch.randn(12, 4), torch.arange(12) % 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tvgrad.Recorder("run", model, optimizer, objective) as recorder:
        ...     for name, parameter in model.named_parameters():
        ...         parameter.grad = recorder.gradient[name].clone()
        ...     optimizer.step()
        ...     recorder.note_step(batch_size=12)
        ...     recorder.end_epoch()
        >>> tvgrad.check_one_epoch(tvgrad.Run.open("run")).holds
        'exact'
    """  # noqa: DOC502 - raised by require_run
    require_run(run)
    rule = run.rule
    if not {0, 1} <= set(run.epochs):
        missing = f"the weights after {run.unit} 1 were not recorded or not kept"
        return OneEpochCheck((_verdict(run, GRADIENT_FORM, APPLIES_NOT, missing),))
    if rule is None:
        missing = f"the update rule is not known: {run.info.get('rule_reason') or 'none was recorded'}"
        return OneEpochCheck((_verdict(run, GRADIENT_FORM, APPLIES_NOT, missing),))
    steps = run.point(1).steps
    consumed, error = _consumed(run, steps, kept)
    rates = first_rates(run, rule)
    said = [repr(rule), repr(rates), repr(list(run.parameters))]
    plain = all(isinstance(part, GD | SGD | Momentum) and not part.decays for part in parts_of(rule))
    obstacle = _obstacle(run, steps)
    kind = consumed or ("gradient" if 0 in run.having("gradient") else None)
    verdicts = []
    if not plain or obstacle:
        why = obstacle or listed(list(dict.fromkeys(map(_other_form, filter(_moves_otherwise, parts_of(rule))))))
        measured = (
            None
            if kind is None
            else compare(
                run, kind, {name: _linear_form(rates[name]) for name in rates}, about=["linear", *said], kept=kept
            )
        )
        verdicts.append(_verdict(run, GRADIENT_FORM, APPLIES_NOT, _with_deviation(why, measured), measured, error))
    if obstacle:
        return OneEpochCheck(tuple(verdicts))
    own = _own_forms(rule, rates)
    if own is None:
        unknown = f"the form of {rule.name}'s first step is not known here"
        return OneEpochCheck((*verdicts, _verdict(run, f"the first step of {rule.name}", APPLIES_NOT, unknown)))
    formula, form = own
    if consumed is None:
        why = "the gradient that the step consumed was not recorded: trace with --record gradients or epoch-gradients"
        if any(SKETCHED[one] in run.point(at).files for one, at in (("gradient", 0), ("epoch_gradient", 1))):
            why = "of the gradient that the step consumed only a sketch was kept: trace with --keep-gradients all"
        measured = None if kind is None else compare(run, kind, form, about=["own", *said], kept=kept)
        if plain:
            why = _with_deviation(why, measured)
        return OneEpochCheck((*verdicts, _verdict(run, formula, APPLIES_NOT, why, measured)))
    found = compare(run, consumed, form, about=["own", *said], kept=kept)
    exact = found.worst <= 1.0
    reason = _reason(run, exact, found) + _which_gradient(consumed, error, error_bar(run, 0))
    verdicts.append(_verdict(run, formula, EXACT if exact else FAILS, reason, found, error))
    return OneEpochCheck(tuple(verdicts))


def _verdict(
    run: Run, rule: str, holds: str, reason: str, found: Comparison | None = None, error: float = math.nan
) -> StepVerdict:
    worst, unchanged = (math.nan, math.nan) if found is None else (found.worst, found.unchanged)
    allowed = [ALLOWABLE[name] for name in run.info.get("allowed", ()) if name in ALLOWABLE]
    return StepVerdict(run.name, rule, holds, worst, unchanged, error, "; ".join([reason, *allowed]))


def first_rates(run: Run, rule: AnyRule) -> dict[str, float]:
    """Find the learning rates of the first step.

    Args:
        run: the run.
        rule: its update rule, for runs that recorded no rates.

    Returns:
        Name of a parameter -> its rate as recorded, else that of the rule; 0 where no rule moves it.
    """
    steps = run.steps(1)
    row = {} if not len(steps) else {str(name): float(value) for name, value in steps.iloc[0].items()}
    common = row.get("lr", math.nan)
    found = {}
    for name in run.parameters:
        part = rule_of(rule, name)
        place = rule.index.get(name) if isinstance(rule, GroupedRule) else None
        recorded = row.get(f"lr_{place}", math.nan) if math.isnan(common) else common
        found[name] = 0.0 if part is None else part.rate(0) if math.isnan(recorded) else recorded
    return found


def _consumed(run: Run, steps: int, kept: KeptProducts | None) -> tuple[str | None, float]:
    """Which record holds the gradient that the first step consumed, and how far it is from the full-batch one."""
    full = 0 in run.having("gradient")
    if run.info.get("consumes_recorded_gradient") and full:
        return "gradient", 0.0
    if steps == 1 and 1 in run.having("epoch_gradient"):
        return "epoch_gradient", gradient_error(run, kept) if full else math.nan
    return None, math.nan


def _obstacle(run: Run, steps: int) -> str | None:
    """The assumption of a single full-batch step that fails, or None."""
    if run.unit == "step":
        return None  # what step 1 consumed is what it is checked against, and its error tells whether that is g_0
    size = run.info.get("batch_size")
    if steps != 1:
        cut = f" (mini-batches of {size})" if size else ""
        return f"epoch 1 took {steps} steps{cut}, and only one full-batch step is minus the rate times the gradient"
    return None


def _moves_otherwise(rule: UpdateRule) -> bool:
    """Whether the first step is another one than that of gradient descent."""
    return rule.decays or not isinstance(rule, GD | SGD | Momentum)


def _other_form(rule: UpdateRule) -> str:
    if isinstance(rule, Adam):
        return f"{rule.name} divides each coordinate of the gradient by its own size"
    if isinstance(rule, Nesterov):
        return f"Nesterov momentum stretches the first step by 1 + {rule.momentum:g}"
    if rule.decoupled_decay:
        return f"weight decay {rule.decoupled_decay:g} shrinks the weights"
    if rule.coupled_decay:
        return f"weight decay {rule.coupled_decay:g} adds to the gradient"
    return f"{rule.name} takes another first step"


def _own_forms(rule: AnyRule, rates: Mapping[str, float]) -> tuple[str, dict[str, Form]] | None:
    """The formulas of the first step, and the form of each parameter; None where one is not known."""
    forms, counts = dict[str, Form](), dict[str, int]()
    for name, rate in rates.items():
        part = rule_of(rule, name)
        own = ("tau_1 = 0", _linear_form(0.0)) if part is None else _own_form(part, rate)
        if own is None:
            return None
        counts[own[0]] = counts.get(own[0], 0) + 1
        forms[name] = own[1]
    several = len(counts) > 1
    said = [f"{formula} ({counted(count, 'tensor')})" if several else formula for formula, count in counts.items()]
    if len({rate for rate in rates.values() if rate}) > 1:
        said[-1] += ", lr of each group"
    return "; ".join(said), forms


def _own_form(rule: UpdateRule, lr: float) -> tuple[str, Form] | None:
    """The first step of the rules that are known by name, and of no other."""
    if not isinstance(rule, GD | SGD | Momentum | Nesterov | Adam):
        return None
    if isinstance(rule, Adam):
        form = _adam_form(lr, rule)
        decay = " - lr decay theta_0" if rule.decoupled_decay else ""
        along = "h" if rule.coupled_decay else "g_0"
        where = ", h = g_0 + decay theta_0" if rule.coupled_decay else ""
        return f"tau_1 = -lr {along} / (|{along}| + eps){decay}{where}", form
    momentum = rule.momentum if isinstance(rule, Nesterov) else 0.0
    factor = "(1 + momentum) " if momentum else ""
    along = "(g_0 + decay theta_0)" if rule.coupled_decay else "g_0"
    shrink = " - lr decay theta_0" if rule.decoupled_decay else ""
    form = _linear_form(lr, momentum, rule.coupled_decay, rule.decoupled_decay)
    return f"tau_1 = -lr {factor}{along}{shrink}", form


def _linear_form(lr: float, momentum: float = 0.0, coupled: float = 0.0, decoupled: float = 0.0) -> Form:
    def form(after: Tensor, before: Tensor, gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        along = (gradient + coupled * before) * (1 + momentum)
        step = lr * along
        extra = lr * direction_rounding_bound(gradient, before, momentum, coupled, dtype)
        bound = gradient_step_rounding_bound(after, before, step.abs() + extra, along, dtype) + extra
        if decoupled:
            bound += shrinkage_rounding_bound(before, dtype)
        return -step - lr * decoupled * before, bound

    return form


def _adam_form(lr: float, rule: Adam) -> Form:
    eps, coupled, decoupled = rule.eps, rule.coupled_decay, rule.decoupled_decay

    def form(after: Tensor, before: Tensor, gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        along = gradient + coupled * before
        root = along.abs() + eps
        predicted = torch.where(root > 0, -lr * along / root, 0.0)
        bound = adam_rounding_bound(after, before, along, dtype, lr, rule.betas, eps, decoupled > 0)
        if coupled:
            # The error of g + lambda theta, relative to it, moves the quotient by at most the same share.
            error = direction_rounding_bound(gradient, before, 0.0, coupled, dtype)
            bound += lr * torch.minimum(2 * error / root, torch.full_like(error, 2.0))
        return predicted - lr * decoupled * before, bound

    return form


def _with_deviation(why: str, found: Comparison | None) -> str:
    if found is None:
        return why
    if not math.isfinite(found.relative):
        return f"{why} (lr g_0 is zero, as where a warm-up begins at a rate of 0)"
    return f"{why} (measured: the norm of tau_1 + lr g_0 is {found.relative:.2g} that of lr g_0)"


def _which_gradient(consumed: str, error: float, bar: float | None) -> str:
    """What g_0 stands for where the optimizer consumed another tensor than the recorded full-batch gradient."""
    if consumed == "gradient":
        return ""
    if math.isnan(error):
        return "; g_0 is the gradient that the step consumed, and no full-batch gradient was recorded beside it"
    full = "the full-batch gradient" if bar is None else f"a measured gradient that is {as_estimate(bar)}"
    return f"; g_0 is the gradient that the step consumed, off {full} by {error:.2g} of its norm"


def _reason(run: Run, exact: bool, found: Comparison) -> str:
    dtype = run.info.get("dtype", "its dtype")
    if exact:
        unchanged = f"; {found.unchanged:.1%} of the coordinates are unchanged, their step being under half an ulp"
        return f"every coordinate within the rounding of one {dtype} step" + unchanged * (found.unchanged >= 5e-4)
    if run.info.get("fused") and dtype in {"bfloat16", "float16"} and found.worst_moved <= 1.0:
        return (
            f"{UNTRAINED} {found.unchanged:.1%} of the {dtype} coordinates untrained, whole "
            "blocks of them (a defect of PyTorch on the CPU): use fused=False"
        )
    if not str(run.info.get("device", "cpu")).startswith("cpu"):
        where = run.info["device"]
        return f"a coordinate exceeds the rounding bound of PyTorch's CPU kernels, and the run is from {where}"
    return (
        "a coordinate exceeds the rounding bound of one step: the weights moved by something besides this optimizer "
        "step (gradient clipping after the record, another optimizer, edited files)"
    )
