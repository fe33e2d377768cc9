"""The update rules by name: gradient descent, SGD, momentum, Nesterov, Adam, AdamW, each with a rate or a schedule.

They follow PyTorch's optimizers to the letter: the rate stays outside the momentum buffer, the first gradient enters it
undampened, and Adam adds eps after the bias correction of the root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import Array, Rate, State, UpdateRule
from tvgrad.update_rules.grouped import AnyRule, GroupedRule
from tvgrad.update_rules.linear import GradientAverage, LinearRule
from tvgrad.wording import near


@dataclass(frozen=True)
class GD(LinearRule):
    r"""Full-batch gradient descent: $\theta_{e+1} = \theta_e - \eta_e g_e$, one step an epoch, $c_{k,e} = \eta_e$.

    Args:
        lr: rate or schedule.

    Examples:
        >>> from tvgrad.update_rules import GD
        >>> GD([0.5, 0.25]).coefficients(2).tolist()
        [0.5, 0.25]
        >>> GD(0.5).first_order_weights(3).tolist()  # S_k = k eta
        [0.0, 0.5, 1.0, 1.5]
    """

    name: ClassVar[str] = "gd"


@dataclass(frozen=True)
class SGD(LinearRule):
    r"""Stochastic gradient descent without momentum: $\theta_{s+1} = \theta_s - \eta_s g_s$, $c_{k,s} = \eta_s$.

    Args:
        lr: rate or schedule.
        weight_decay: lambda.
        decoupled: shrink the weights by $1 - \eta \lambda$ instead of adding $\lambda \theta$ to the gradient.

    Examples:
        >>> from tvgrad.update_rules import SGD
        >>> SGD(0.5, weight_decay=1.0, decoupled=True).coefficients(2).tolist()
        [0.25, 0.5]
    """

    weight_decay: float = 0.0
    decoupled: bool = False

    name: ClassVar[str] = "sgd"


@dataclass(frozen=True)
class Momentum(LinearRule):
    r"""Heavy ball: $\theta_{s+1} = \theta_s - \eta_s b_s$ with $b_s = \mu b_{s-1} + (1 - d) g_s$ and $b_0 = g_0$.

    Args:
        lr: rate or schedule.
        momentum: mu.
        dampening: d.
        weight_decay: lambda.
        decoupled: shrink the weights by $1 - \eta \lambda$ instead of adding $\lambda \theta$ to the gradient.

    Raises:
        TvgradError: an option is out of its range.

    Examples:
        >>> from tvgrad.update_rules import Momentum
        >>> Momentum(1.0, 0.5).coefficients(3).tolist()
        [1.75, 1.5, 1.0]
    """

    momentum: float
    dampening: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False

    name: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dampening and not self.momentum:
            raise TvgradError("momentum: dampening without momentum has no effect in PyTorch: leave dampening out")

    @property
    def average(self) -> GradientAverage:
        """How a step mixes the gradients so far: in the momentum buffer."""
        return GradientAverage(self.momentum, self.dampening)


@dataclass(frozen=True)
class Nesterov(LinearRule):
    r"""Nesterov momentum as PyTorch writes it.

    $\theta_{s+1} = \theta_s - \eta_s (g_s + \mu b_s)$ with $b_s = \mu b_{s-1} + g_s$; the gradient is that at
    $\theta_s$ itself.

    Args:
        lr: rate or schedule.
        momentum: mu, above 0.
        weight_decay: lambda.
        decoupled: shrink the weights by $1 - \eta \lambda$ instead of adding $\lambda \theta$ to the gradient.

    Raises:
        TvgradError: an option is out of its range.

    Examples:
        >>> from tvgrad.update_rules import Nesterov
        >>> Nesterov(1.0, 0.5).coefficients(3).tolist()
        [1.875, 1.75, 1.5]
    """

    momentum: float
    weight_decay: float = 0.0
    decoupled: bool = False

    name: ClassVar[str] = "nesterov"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.momentum:
            raise TvgradError("nesterov: momentum 0 is plain SGD: give a momentum above 0, or use sgd")

    @property
    def average(self) -> GradientAverage:
        """How a step mixes the gradients so far: the newest once more on top of the momentum buffer."""
        return GradientAverage(self.momentum, lookahead=True)


@dataclass(frozen=True)
class Adam(UpdateRule):
    r"""Adam with bias correction.

    $\theta_{s+1} = \theta_s - \eta_s \hat m_s / (\sqrt{\hat v_s} + \epsilon)$, $\hat m_s = m_s / (1 - \beta_1^{s+1})$,
    $\hat v_s = v_s / (1 - \beta_2^{s+1})$ at step s.

    Args:
        lr: rate or schedule.
        betas: b1 and b2.
        eps: what is added to the root.
        weight_decay: $\lambda$; $\lambda \theta$ is added to the gradient.
        amsgrad: divide by the largest v so far.

    Examples:
        >>> from tvgrad.update_rules import Adam
        >>> Adam(0.1, betas=(0.0, 0.999)).momentum_weights(3).tolist()
        [0.1, 0.1, 0.1]
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    name: ClassVar[str] = "adam"

    def momentum_weights(self, k: int) -> Array:
        r"""Weigh each step's gradient in a k-step task vector, without decay and preconditioner.

        Args:
            k: the number of steps.

        Returns:
            $c_s = \sum_{e=s}^{k-1} \eta_e (1 - \beta_1) \beta_1^{e-s} / (1 - \beta_1^{e+1})$ for $s = 0, \dots, k-1$.
        """
        b1 = self.betas[0]
        # (1 - b1) / (1 - b1^(e+1)) is one over a geometric sum, which has no cancellation for b1 near 1.
        corrected = self.rates(k) / np.cumsum(b1 ** np.arange(k))
        return GradientAverage(b1).unrolled(corrected)

    def make_optimizer(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Build the PyTorch optimizer that performs the rule; under a schedule call `set_rate` before each step.

        Args:
            parameters: what PyTorch's optimizers accept.

        Returns:
            A `torch.optim.Adam` or `torch.optim.AdamW`, in PyTorch's default implementation.
        """
        kind = torch.optim.AdamW if isinstance(self, AdamW) else torch.optim.Adam
        return kind(
            parameters,
            lr=self.rate(0),
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            amsgrad=self.amsgrad,
        )

    def direction(self, gradient: torch.Tensor, state: State, step: int) -> tuple[torch.Tensor, State]:
        """Take in one parameter's gradient: Adam's preconditioned mean.

        Args:
            gradient: in float64, coupled decay included.
            state: what the last call returned; None at the first step.
            step: the step's number, from 0.

        Returns:
            The vector that the rate multiplies before it is subtracted, and the state for the next step.
        """
        b1, b2 = self.betas
        mean, square, *largest = state or (torch.zeros_like(gradient), torch.zeros_like(gradient))
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient.square()
        if self.amsgrad:
            largest = [torch.maximum(largest[0], square) if largest else square]
        root = ((largest[0] if largest else square) / (1 - b2 ** (step + 1))).sqrt() + self.eps
        return mean / (1 - b1 ** (step + 1)) / root, (mean, square, *largest)


@dataclass(frozen=True)
class AdamW(Adam):
    r"""Adam with decoupled weight decay: $\theta$ is multiplied by $1 - \eta \lambda$, then Adam's step is made.

    Args:
        lr: rate or schedule.
        betas: b1 and b2.
        eps: what is added to the root.
        weight_decay: lambda.
        amsgrad: divide by the largest v so far.

    Examples:
        >>> import torch
        >>> from tvgrad.update_rules import AdamW
        >>> rule = AdamW(0.1, weight_decay=0.5)
        >>> type(rule.make_optimizer([torch.nn.Parameter(torch.zeros(2))])).__name__
        'AdamW'
        >>> [round(factor, 4) for factor in rule.decay_factors(2).tolist()]
        [0.9025, 0.95, 1.0]
    """

    weight_decay: float = 0.01

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True


RULES: dict[str, type[UpdateRule]] = {rule.name: rule for rule in (GD, SGD, Momentum, Nesterov, Adam, AdamW)}
"""The rules by the name that the command line and a run directory give them."""

LINEAR_RULES = tuple(name for name, rule in RULES.items() if issubclass(rule, LinearRule))


def linear_rule(rule: AnyRule) -> LinearRule:
    """Make sure that a rule has coefficients.

    Args:
        rule: any rule.

    Returns:
        The same rule.

    Raises:
        TvgradError: it is not linear, or not one for all parameters.

    Examples:
        >>> from tvgrad.update_rules import GD, linear_rule
        >>> linear_rule(GD(0.1)).coefficients(2).tolist()
        [0.1, 0.1]
    """
    if isinstance(rule, GroupedRule):
        raise TvgradError(
            f"groups of parameters follow rules of their own ({rule.name}), so that the task vector has no expansion "
            "with one coefficient a step: give all groups the same options"
        )
    if not isinstance(rule, LinearRule):
        raise TvgradError(
            f"{rule.name} is not a linear update rule, so its task vector has no expansion in the gradients: "
            "use gd, sgd, momentum or nesterov"
        )
    return rule


def _rule_class(name: object) -> type[UpdateRule]:
    if not isinstance(name, str) or name not in RULES:
        raise TvgradError(f"there is no update rule {name!r}: choose one of {', '.join(RULES)}{near(str(name), RULES)}")
    return RULES[name]


def make_rule(name: str, lr: Rate, momentum: float | None = None, weight_decay: float | None = None) -> UpdateRule:
    """Build a rule from what a command line says.

    Args:
        name: one of `RULES`.
        lr: rate or schedule.
        momentum: for momentum and nesterov, where None means 0.9.
        weight_decay: None means the rule's default: 0.01 for adamw, 0 for all others.

    Returns:
        The rule.

    Raises:
        TvgradError: there is no such rule, it does not take the option, or a value is out of range.

    Examples:
        >>> from tvgrad.update_rules import make_rule
        >>> make_rule("momentum", 0.1).momentum
        0.9
    """
    rule = _rule_class(name)
    known = {option.name for option in fields(rule)}
    options: dict[str, Any] = {"momentum": 0.9} if "momentum" in known else {}
    for option, value in (("momentum", momentum), ("weight_decay", weight_decay)):
        if value is not None and option not in known:
            takers = [other for other in RULES if option in {field.name for field in fields(RULES[other])}]
            words = option.replace("_", " ")
            raise TvgradError(f"{name} takes no {words}: leave the {words} out, or use one of {', '.join(takers)}")
        if value is not None:
            options[option] = value
    return rule(lr=lr, **options)


def rule_from_dict(description: Mapping[str, Any]) -> AnyRule:
    """Read what `to_dict` of a rule wrote.

    Args:
        description: `name` and the options, or `groups`.

    Returns:
        The rule, bit for bit; a `GroupedRule` where it has groups.

    Raises:
        TvgradError: an option is unknown, missing or out of range, or there is no such rule.

    Examples:
        >>> from tvgrad.update_rules import Adam, rule_from_dict
        >>> rule_from_dict(Adam(1e-3).to_dict()) == Adam(1e-3)
        True
    """
    if "groups" in description:
        groups = description["groups"]
        parts = tuple(_plain_rule(group["rule"]) for group in groups)
        return GroupedRule(parts, tuple(tuple(map(str, group["parameters"])) for group in groups))
    return _plain_rule(description)


def _plain_rule(description: Mapping[str, Any]) -> UpdateRule:
    options = dict(description)
    rule = _rule_class(options.pop("name", None))
    known = {option.name: option.default is MISSING for option in fields(rule)}
    for option in options:
        if option not in known:
            raise TvgradError(f"{rule.name} has no option {option!r}: give only {', '.join(known)}")
    for option, needed in known.items():
        if needed and option not in options:
            raise TvgradError(f"{rule.name} needs the option {option!r}: add it")
    return rule(**options)
