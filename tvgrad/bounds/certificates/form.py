"""Form: one sound way of bounding an error, what it found, and how all forms of a certificate are tried."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from tvgrad.bounds.activations.smooth import OutsideValidity
from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.losses.base import UnknownLoss
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.results import Result
from tvgrad.update_rules.base import Array

Case = TypeVar("Case")

# Rates are between 1e-60 and 1e30 and bounds of derivatives at least 1e-150, so that what underflows is far below.
UNDERFLOW = 1e-200
WORTHLESS = 1e9
MOST_RATE = 1e30


@dataclass(frozen=True)
class Form(Result):
    """What one form of a certificate found: bounds of an error, or the reason why there are none.

    Attributes:
        name: of the form.
        upper: an upper bound of the error's norm; infinity where the form does not exist.
        lower: a lower bound of it.
        radius: of the verified ball round theta_0 (for a tube: the largest distance of the tube from theta_0).
        reason: why the form does not exist; empty where it does.

    Example:
        >>> from tvgrad.bounds import Form
        >>> Form("cubic", upper=2e-5, lower=1e-5, radius=0.1).exists
        True
        >>> Form("closed, local", reason="no ball is known").exists
        False
    """

    name: str
    upper: float = math.inf
    lower: float = 0.0
    radius: float = math.nan
    reason: str = ""

    @property
    def exists(self) -> bool:
        """Whether there is a bound."""
        return math.isfinite(self.upper)

    @classmethod
    def of_error(cls, name: str, error: BoundedVector, rest: float, *, radius: float) -> Form:
        """Bound the error from both sides by a known part of it.

        Args:
            name: of the form.
            error: the known part.
            rest: the norm of the unknown part at most.
            radius: of the verified ball.

        Returns:
            The form.
        """
        return cls(name, error.upper + rest, max(0.0, error.lower - rest), radius)


@dataclass(frozen=True)
class CertificateForm(ABC, Generic[Case]):
    """A way of bounding an error. A certificate has a tuple of them and keeps the best of what they find.

    Attributes:
        name: of the form.
        needs_data: whether it needs samples and targets, not their norms alone.
        simulates: whether it follows the training in float64.
        cost: what it computes in every epoch, for the reason why it was left out.
        most_steps: with more steps it is left out.
    """

    name: str

    needs_data: ClassVar[bool] = True
    simulates: ClassVar[bool] = False
    cost: ClassVar[str] = ""
    most_steps: ClassVar[float] = math.inf

    @abstractmethod
    def attempt(self, case: Case) -> Form:
        """Find the bounds.

        Args:
            case: what is known: losses, and coefficients of the steps.

        Returns:
            The bounds.

        Raises:
            NoCertificate: there are none; the message says why.
        """


def attempt_all(
    forms: Sequence[CertificateForm[Case]], case: Case, *, totals: Array, has_data: bool, simulate: bool, scale: float
) -> tuple[Form, ...]:
    """Try every form that applies.

    Args:
        forms: the forms.
        case: what is known.
        totals: S_s of the rule, (k+1,).
        has_data: whether samples and targets are known.
        simulate: whether the training may be followed in float64.
        scale: an upper bound of what is predicted, next to which bounds are compared.

    Returns:
        What each of them found.
    """
    steps = len(totals) - 1
    found = []
    for form in forms:
        if (form.needs_data and not has_data) or (form.simulates and not simulate):
            continue
        if steps > form.most_steps:
            found.append(Form(form.name, reason=f"left out: it takes {form.cost} an epoch, at most {form.most_steps}"))
            continue
        try:
            found.append(_told(form.attempt(case), scale, float(totals[-1]), UNDERFLOW if steps > 1 else 0.0))
        # a loss may have bounds for its targets alone, an activation for some of the balls that are tried
        except (NoCertificate, UnknownLoss, OutsideValidity) as reason:
            found.append(Form(form.name, reason=str(reason)))
    return tuple(found)


def _told(form: Form, scale: float, rates: float, underflow: float) -> Form:
    """A form's bounds with what underflow can take from them; none where they say nothing."""
    if not form.upper <= WORTHLESS * (scale + underflow):
        reason = f"its bound of {form.upper:.3g} is more than {WORTHLESS:g} times the prediction itself"
        return replace(form, upper=math.inf, lower=0.0, reason=reason)
    if not rates <= MOST_RATE:
        reason = f"the rates add up to {rates:.3g}, and there are bounds up to {MOST_RATE:g}: above, float64 underflows"
        return replace(form, upper=math.inf, lower=0.0, reason=reason)
    lower = form.lower - underflow
    return replace(form, upper=form.upper + underflow, lower=max(0.0, lower))


def best_of(forms: Sequence[Form]) -> tuple[Form, float]:
    """Choose the best bounds.

    Args:
        forms: what all forms found.

    Returns:
        The form with the least upper bound, and the largest lower bound of all.

    Raises:
        NoCertificate: no form gives a bound; the message has every form's reason, each of them told once.
    """
    found = [form for form in forms if form.exists]
    if found:
        return min(found, key=lambda form: form.upper), max(form.lower for form in found)
    reasons: dict[str, list[str]] = {}
    for form in forms:
        reasons.setdefault(form.reason, []).append(form.name)
    told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    raise NoCertificate(f"there is no certificate, lower the learning rate or the number of epochs: {told}")


class ResultOfForms(Result):
    """A result that also keeps what every form found, in an attribute `forms`."""

    def row(self) -> dict[str, Any]:
        """The numbers and words by name; the forms are left out."""
        return {name: value for name, value in super().row().items() if name != "forms"}
