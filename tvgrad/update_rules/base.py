"""What all update rules share: checked options, learning rates, decay, JSON."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import ParamsT

from tvgrad.errors import TvgradError

Array = NDArray[np.float64]

Rate = float | Sequence[float]
"""One learning rate for all steps, or one for each step (kept as a tuple)."""

State = tuple[torch.Tensor, ...] | None
"""What a rule remembers of one parameter between steps."""

Rule = TypeVar("Rule", bound="UpdateRule")


@dataclass(frozen=True)
class UpdateRule(ABC):
    """An update rule and its options; steps are counted from 0.

    Args:
        lr: the learning rate, or a schedule with one rate for each step; a schedule is not continued past its end.

    Raises:
        TvgradError: an option is out of its range.

    Example:
        >>> from tvgrad.update_rules import GD
        >>> GD((0.1, 0.05)).rates(2).tolist()
        [0.1, 0.05]
    """

    lr: Rate

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, _checked(self.name, option.name, getattr(self, option.name)))
        share = self.decoupled_decay * (max(self.lr) if isinstance(self.lr, Sequence) else self.lr)
        if share >= 1:
            raise TvgradError(
                f"{self.name}: lr times weight_decay is {share:g}, so that a step leaves nothing of the weights: "
                "choose a weight_decay below 1/lr"
            )

    @property
    def coupled_decay(self) -> float:
        """The lambda of `g -> g + lambda theta`, or 0."""
        return 0.0 if self._decoupled else self._decay

    @property
    def decoupled_decay(self) -> float:
        """The lambda of `theta -> (1 - eta lambda) theta`, or 0."""
        return self._decay if self._decoupled else 0.0

    @property
    def decays(self) -> bool:
        """Whether the rule has weight decay of either kind."""
        return self._decay > 0

    # Not every rule has these options, and a field declared here would precede the rules' own.
    @property
    def _decay(self) -> float:
        return float(getattr(self, "weight_decay", 0.0))

    @property
    def _decoupled(self) -> bool:
        return bool(getattr(self, "decoupled", False))

    def rate(self, step: int) -> float:
        """Look up the learning rate of one step.

        Args:
            step: the step's number, from 0.

        Returns:
            eta_step.

        Raises:
            TvgradError: the schedule ends before this step.
        """
        if not isinstance(self.lr, Sequence):
            return self.lr
        if not 0 <= step < len(self.lr):
            raise TvgradError(
                f"{self.name}: step {step} is outside the schedule of {len(self.lr)} rates: give one rate for each step"
            )
        return self.lr[step]

    def rates(self, k: int) -> Array:
        """List the learning rates of the first steps.

        Args:
            k: the number of steps.

        Returns:
            eta_0 .. eta_{k-1}.

        Raises:
            TvgradError: k is negative, or the schedule has fewer steps.
        """
        if k < 0:
            raise TvgradError(f"{self.name}: {k} steps were asked for: ask for 0 or more")
        if k > 0:
            self.rate(k - 1)
        return np.array(self.lr[:k], dtype=np.float64) if isinstance(self.lr, Sequence) else np.full(k, self.lr)

    def with_lr(self: Rule, lr: Rate) -> Rule:
        """Change the learning rate.

        Args:
            lr: a rate or a schedule.

        Returns:
            The same rule with that rate.
        """
        return replace(self, lr=lr)

    def until(self: Rule, steps: int) -> Rule:
        """Cut the schedule off.

        Args:
            steps: how many steps are left of it.

        Returns:
            The same rule with the rates of the first steps.
        """
        return self.with_lr(self.rates(steps).tolist())

    def without_decay(self: Rule) -> Rule:
        """Leave weight decay out.

        Returns:
            The same rule with weight decay 0.
        """
        return replace(self, **({"weight_decay": 0.0} if hasattr(self, "weight_decay") else {}))

    def decay_factors(self, k: int) -> Array:
        """What decoupled decay leaves at step k of a weight that was there at step e.

        Args:
            k: the number of steps.

        Returns:
            `P[k,e] = prod_{s=e..k-1} (1 - eta_s lambda)` for e = 0 .. k: all 1 without decoupled decay.
        """
        logs = self._log_survival(k)
        return np.asarray(np.exp(logs[k] - logs))

    def decay_shrinkages(self, k: int) -> Array:
        """The share of theta_0 that decoupled decay has removed after each step.

        Args:
            k: the number of steps.

        Returns:
            `1 - P[s,0]` for s = 0 .. k, to full relative precision however small the decay.
        """
        return np.asarray(-np.expm1(self._log_survival(k)))

    def _log_survival(self, k: int) -> Array:
        """Sum log(1 - eta_s lambda) over the steps before s = 0 .. k."""
        return np.concatenate([np.zeros(1), np.cumsum(np.log1p(-self.rates(k) * self.decoupled_decay))])

    @abstractmethod
    def momentum_weights(self, k: int) -> Array:
        """Weigh each step's gradient in a k-step task vector, without decay and preconditioner.

        Args:
            k: the number of steps.

        Returns:
            c_s for s = 0 .. k-1; Adam: `sum_{e>=s} eta_e (1 - b1) b1^(e-s) / (1 - b1^(e+1))`.
        """

    @abstractmethod
    def make_optimizer(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Build the PyTorch optimizer that performs the rule; under a schedule call `set_rate` before each step.

        Args:
            parameters: what PyTorch's optimizers accept.

        Returns:
            The optimizer, in PyTorch's default implementation.

        Raises:
            TvgradError: PyTorch has no optimizer for the rule.
        """

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give an optimizer the learning rate of the step it is about to make.

        Args:
            optimizer: made by `make_optimizer`.
            step: the step's number, from 0; one past the schedule's end is a TvgradError, as in `rate`.
        """
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate

    @abstractmethod
    def direction(self, gradient: torch.Tensor, state: State, step: int) -> tuple[torch.Tensor, State]:
        """Take in one parameter's gradient.

        Args:
            gradient: in float64, coupled decay included.
            state: what the last call returned; None at the first step.
            step: the step's number, from 0.

        Returns:
            d of `theta -= eta_step d`, and the state for the next step.
        """

    def to_dict(self) -> dict[str, Any]:
        """Describe the rule for JSON.

        Returns:
            `name` and the options, as numbers, booleans and lists; `rule_from_dict` gives the same bits back.
        """
        options = asdict(self).items()
        return {"name": self.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in options}}


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value > 0, "a number above 0"),
    "rates": (lambda value: value >= 0, "one rate of 0 or more for each step"),
    "momentum": (lambda value: 0 <= value < 1, "a number from 0 up to, but not including, 1"),
    "dampening": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "weight_decay": (lambda value: value >= 0, "a number of 0 or more"),
    "betas": (lambda value: 0 <= value < 1, "two numbers from 0 up to, but not including, 1"),
    "eps": (lambda value: value >= 0, "a number of 0 or more"),
}


def _number(owner: str, option: str, value: object) -> float:
    allowed, remedy = _RANGES[option]
    try:
        # bool and str convert to float without complaint, and mean a mistake here.
        number = math.nan if isinstance(value, bool | str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and allowed(number)):
        raise TvgradError(f"{owner}: {option} {value!r} is out of range: give {remedy}")
    return number


def _checked(owner: str, option: str, value: object) -> float | bool | tuple[float, ...]:
    """One option as a rule keeps it: a flag, a number, or (for lr and betas) a tuple of numbers."""
    if option not in _RANGES:
        if not isinstance(value, bool):
            raise TvgradError(f"{owner}: {option} {value!r} is neither True nor False: give one of the two")
        return value
    several = None
    # A tensor without dimensions claims to be iterable, but is one number.
    is_sequence = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
    if option in {"lr", "betas"} and is_sequence:
        several = tuple(_number(owner, "rates" if option == "lr" else option, one) for one in value)  # type: ignore[attr-defined]
    if option == "betas" and (several is None or len(several) != 2):
        raise TvgradError(f"{owner}: betas {value!r} is not a pair: give {_RANGES[option][1]}")
    if several == ():
        raise TvgradError(f"{owner}: the schedule is empty: give one rate for each step")
    return _number(owner, option, value) if several is None else several
