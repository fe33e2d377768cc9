"""What all update rules share: checked options, learning rates, decay, replay on recorded gradients, JSON."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import ParamsT

from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import Weights, same_names_and_shapes

Array = NDArray[np.float64]

Rate = float | Sequence[float]
"""One learning rate for all steps, or one for each step (kept as a tuple)."""

State = tuple[torch.Tensor, ...] | None
"""What a rule remembers of one parameter between steps."""

Rule = TypeVar("Rule", bound="UpdateRule")
Element = TypeVar("Element")


@dataclass(frozen=True)
class UpdateRule(ABC):
    """An update rule and its options; steps are counted from 0.

    Args:
        lr: the learning rate, or a schedule with one rate for each step; a schedule is not continued past its end.

    Raises:
        TvgradError: an option is out of its range.
    """

    lr: Rate

    name: ClassVar[str]
    linear: ClassVar[bool] = False

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

    # Not every rule has these options, and a field declared here would stand in front of the rules' own.
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
        """The share of theta_0 that decoupled decay has taken away after each step.

        Args:
            k: the number of steps.

        Returns:
            `1 - P[s,0]` for s = 0 .. k, to full relative precision however small the decay.
        """
        return np.asarray(-np.expm1(self._log_survival(k)))

    def decay_shrinkage(self, k: int) -> float:
        """The share of theta_0 that decoupled decay takes away in k steps.

        Args:
            k: the number of steps.

        Returns:
            `1 - P[k,0]`.
        """
        return float(self.decay_shrinkages(k)[k])

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
    def _direction(self, gradient: torch.Tensor, state: State, step: int) -> tuple[torch.Tensor, State]:
        """Take in one parameter's gradient; give d of `theta -= eta_step d` and what to keep for the next step."""

    def replay(
        self,
        theta0: Mapping[str, torch.Tensor],
        gradients: Iterable[Mapping[str, torch.Tensor]],
        thetas: Iterable[Mapping[str, torch.Tensor]] | None = None,
        rates: Iterable[float] | None = None,
    ) -> Weights:
        """Perform the rule in float64 on recorded gradients; `without_decay().replay(...)` leaves decay out.

        Gradients and weights are read one step at a time and not kept: the task vector and the rule's own buffers are
        all that is held. Names or shapes that differ, and fewer weights or rates than gradients, are a TvgradError.

        Args:
            theta0: the weights before the first step.
            gradients: the gradient that each step consumed.
            thetas: the weights that each step started from (theta0 first), of which decay takes its part; not read
                by a rule without decay. None: those of the replay itself.
            rates: the learning rate of each step, in the place of the rule's own.

        Returns:
            The task vector after the last gradient: name -> float64 tensor, on theta0's devices.
        """
        task_vector = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in theta0.items()}
        decays = self.coupled_decay > 0 or self.decoupled_decay > 0
        recorded = None if thetas is None or not decays else iter(thetas)
        given = None if rates is None else iter(rates)
        states: dict[str, State] = {}
        for step, gradient in enumerate(gradients):
            rate = None if given is None else _number("replay", "rates", _next(given, "rates", step))
            theta = None if recorded is None else _next(recorded, "weights", step)
            self.advance(task_vector, theta0, gradient, step, states, theta, rate)
        return task_vector

    def advance(
        self,
        task_vector: Mapping[str, torch.Tensor],
        theta0: Mapping[str, torch.Tensor],
        gradient: Mapping[str, torch.Tensor],
        step: int,
        states: dict[str, State],
        theta: Mapping[str, torch.Tensor] | None = None,
        rate: float | None = None,
    ) -> None:
        """Perform one step of `replay`, for callers that look at the task vector between steps.

        Args:
            task_vector: float64 tensors before the step; moved in place.
            theta0: the weights before the first step.
            gradient: the gradient that the step consumes.
            step: the step's number, from 0.
            states: the rule's buffers, empty before the first step; updated in place.
            theta: the weights of which decay takes its part; by default theta0 plus the task vector.
            rate: the learning rate, in the place of the rule's own.
        """
        _check_same("gradient", step, theta0, gradient)
        rate = self.rate(step) if rate is None else rate
        if theta is not None:
            _check_same("weights", step, theta0, theta)
        decays = self.coupled_decay > 0 or self.decoupled_decay > 0
        for name, moved in task_vector.items():
            used = gradient[name].detach().to(moved)
            shrunk = torch.zeros(())
            if decays:
                at = theta0[name].detach().to(moved) + moved if theta is None else theta[name].detach().to(moved)
                used = used + self.coupled_decay * at
                shrunk = self.decoupled_decay * at
            direction, states[name] = self._direction(used, states.get(name), step)
            moved.sub_(direction, alpha=rate)
            if self.decoupled_decay:
                moved.sub_(shrunk, alpha=rate)

    def to_dict(self) -> dict[str, Any]:
        """Describe the rule for JSON.

        Returns:
            `name` and the options, as numbers, booleans and lists; `rule_from_dict` gives the same bits back.
        """
        options = asdict(self).items()
        return {"name": self.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in options}}


def _next(values: Iterator[Element], what: str, step: int) -> Element:
    for value in values:
        return value
    raise TvgradError(f"there are {what} for {step} steps and gradients for more: give one for each gradient")


def _check_same(what: str, step: int, theta0: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    difference = same_names_and_shapes(theta0, found)
    if difference:
        raise TvgradError(f"the {what} of step {step} and theta0 differ ({difference}): record both from one model")


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


def _numbers(owner: str, option: str, values: object) -> tuple[float, ...] | None:
    """Read a sequence of numbers; None for what is no sequence (a tensor without dimensions, for one)."""
    if not isinstance(values, Iterable) or isinstance(values, str) or getattr(values, "ndim", 1) == 0:
        return None
    return tuple(_number(owner, option, value) for value in values)


def _checked(owner: str, option: str, value: object) -> float | bool | tuple[float, ...]:
    if option == "lr":
        rates = _numbers(owner, "rates", value)
        if rates == ():
            raise TvgradError(f"{owner}: the schedule is empty: give one rate for each step")
        return _number(owner, option, value) if rates is None else rates
    if option == "betas":
        betas = _numbers(owner, option, value)
        if betas is None or len(betas) != 2:
            raise TvgradError(f"{owner}: betas {value!r} is not a pair: give {_RANGES[option][1]}")
        return betas
    if option in _RANGES:
        return _number(owner, option, value)
    if not isinstance(value, bool):
        raise TvgradError(f"{owner}: {option} {value!r} is neither True nor False: give one of the two")
    return value
