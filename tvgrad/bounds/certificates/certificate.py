"""Certificates: before training, how far k epochs can take a task vector from its first-order prediction.

`certify` tries every form of `FORMS` that applies and keeps the least upper and the largest lower bound;
`Certificate.forms` says what each of them gave, and why the others do not exist. Another form is one class with a
method `attempt`, and one line here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvgrad.bounds.certificates.ball_forms import LocalForm, RemainderForm, UniformForm, WorstCaseForm
from tvgrad.bounds.certificates.batches import Batches, steps_of
from tvgrad.bounds.certificates.coefficients import NoCertificate, coefficients_of
from tvgrad.bounds.certificates.expansion_point import ExpansionPoint, TaskExpansion
from tvgrad.bounds.certificates.form import CertificateForm, Form, ResultOfForms, attempt_all, best_of
from tvgrad.bounds.certificates.taylor_models import TaylorForm
from tvgrad.bounds.certificates.tubes import TubeForm
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import round_up
from tvgrad.update_rules.base import UpdateRule

UNIFORM = UniformForm("closed, uniform")
TUBE = TubeForm("tube")

FORMS: tuple[CertificateForm[TaskExpansion], ...] = (
    UNIFORM,
    WorstCaseForm("closed, worst case"),
    LocalForm("closed, local"),
    RemainderForm("remainder", layerwise=False),
    RemainderForm("layer-wise", layerwise=True),
    TaylorForm("quadratic", cubic=False),
    TaylorForm("cubic", cubic=True),
    TUBE,
)


@dataclass(frozen=True, repr=False)
class Certificate(ResultOfForms):
    r"""Bounds on the error of the first-order prediction of a task vector.

    The error is $\lVert \tau_k + S_k g_0 \rVert$; for gradient descent $S_k = \eta k$.

    They hold for the iterates of exact arithmetic, started from the weights as stored; a run in floating point adds
    its own rounding.

    Attributes:
        radius: of a ball round the pretrained weights that holds the iterates before the last.
        error_bound: an upper bound of the error.
        lower_bound: a lower bound of it.
        method: the form that gave the upper bound.
        closed_form_bound: what the uniform closed form gives, for comparison; infinity where it has no ball.
        forms: every form with its bounds, or the reason why it gives none.

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> certificate = FeedForward(model, inputs, targets).certificate(0.01, epochs=5)
        >>> certificate.lower_bound <= certificate.error_bound <= certificate.from_start
        True
        >>> [form.name for form in certificate.forms if form.exists][-3:]
        ['quadratic', 'cubic', 'tube']
    """

    radius: float
    error_bound: float
    lower_bound: float
    method: str
    closed_form_bound: float
    forms: tuple[Form, ...] = ()

    @property
    def from_start(self) -> float:
        """The least upper bound of the forms that know the pretrained weights alone; infinity where none has a ball."""
        return min((form.upper for form in self.forms if form.name != TUBE.name), default=math.inf)


def certify(
    problem: DerivativeBounds,
    rule: UpdateRule | float,
    epochs: int,
    *,
    simulate: bool = True,
    batches: Batches | None = None,
    forms: Sequence[str] | None = None,
) -> Certificate:
    """Bound the error of the first-order prediction before training.

    Args:
        problem: the network with its data.
        rule: a linear rule making one step an epoch, or the learning rate of gradient descent.
        epochs: k.
        simulate: also try a tube round the path that float64 takes, which costs k gradients, as much as the training;
            without it all forms use theta_0 alone.
        batches: for each epoch the positions of the samples of each step; None: one step on all samples. With batches
            there is the tube alone.
        forms: names of those to try; None: all.

    Returns:
        The best bounds.

    Raises:
        NoCertificate: no form gives a bound; the message says why, form by form.
        TvgradError: the batches do not fit, or a form is not known.
    """
    chosen = _named(forms)
    used = None if batches is None else tuple(steps_of(batches, epochs, problem.samples))
    start = ExpansionPoint(problem, coefficients_of(rule, epochs if used is None else len(used)))
    rule_of = start.coefficients
    steepest = problem.gradient.upper if problem.has_data else problem.gradient_norm()
    scale = float(rule_of.totals[-1]) * steepest
    scale = round_up(
        scale + (float(rule_of.shrunk[-1]) + float(rule_of.totals[-1]) * rule_of.coupled) * start.theta_norm
    )
    tried = chosen if used is None else (TubeForm(TUBE.name, used),)
    if used is not None and not (simulate and problem.has_data):
        raise NoCertificate("mini-batches have the tube alone, which follows the training on given samples")
    found = attempt_all(tried, start, totals=rule_of.totals, has_data=problem.has_data, simulate=simulate, scale=scale)
    best, lower = best_of(found)
    uniform = next((form.upper for form in found if form.name == UNIFORM.name), math.inf)
    return Certificate(best.radius, best.upper, lower, best.name, uniform, found)


def _named(forms: Sequence[str] | None) -> tuple[CertificateForm[TaskExpansion], ...]:
    """The forms of these names, quick tubes among them, and the uniform closed form, which takes no time."""
    if forms is None:
        return FORMS
    wanted = {forms} if isinstance(forms, str) else set(forms)
    for name in sorted(wanted - {form.name for form in FORMS}):
        raise TvgradError(
            f"there is no form {name!r} of a certificate: choose of {', '.join(one.name for one in FORMS)}"
        )
    chosen = [form for form in FORMS if form.name in wanted or form is UNIFORM]
    return tuple(replace(TUBE, rough=True) if form is TUBE else form for form in chosen)
