"""Certificates against real training: sound for every rule, tight on the reference case, honest about gaps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.bounds.reference import TASKS, Task, reference_tasks, true_error
from tvgrad import bounds
from tvgrad.bounds import Certificate, FeedForward, NoCertificate, multitask_gap_bound
from tvgrad.bounds.certificates.certificate import FORMS
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.bounds.certificates.multitask_gap import GAP_FORMS
from tvgrad.bounds.certificates.tubes import Tube, certify_steps
from tvgrad.bounds.derivatives import derivative_bounds
from tvgrad.errors import TvgradError
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import GD, SGD, Adam, Momentum, Nesterov

EPOCHS = 5


def small_task() -> Task:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    return Task("small", model, inputs, torch.arange(20) % 3)


def problem_of(task: Task) -> FeedForward:
    return FeedForward(task.model, task.inputs, task.targets)


def rule_error(task: Task, rule: LinearRule, epochs: int) -> tuple[float, list[torch.Tensor]]:
    """The error of the first-order prediction under any linear rule, and the weights on the way."""
    start = task.start
    coefficients = torch.from_numpy(rule.coefficient_matrix(epochs))
    shrunk = torch.from_numpy(rule.decay_shrinkages(epochs))
    first = task.gradient(start) + rule.coupled_decay * start
    gradients, weights = [], []
    for step in range(epochs):
        moved = -shrunk[step] * start
        for e, gradient in enumerate(gradients):
            moved = moved - coefficients[step, e] * gradient
        weights.append(start + moved)
        gradients.append(task.gradient(start + moved) + rule.coupled_decay * (start + moved))
    error = sum((coefficients[epochs, e] * (g - first) for e, g in enumerate(gradients)), torch.zeros_like(first))
    return float(error.norm()), weights


RULES: dict[str, Callable[[float], LinearRule]] = {
    "gd": GD,
    "schedule": lambda lr: GD([lr, 2 * lr, 0.5 * lr, lr, lr]),
    "momentum": lambda lr: Momentum(lr, 0.9),
    "dampened": lambda lr: Momentum(lr, 0.9, dampening=0.5),
    "nesterov": lambda lr: Nesterov(lr, 0.8),
    "coupled decay": lambda lr: SGD(lr, weight_decay=0.1),
    "decoupled decay": lambda lr: SGD(lr, weight_decay=0.1, decoupled=True),
    "momentum with decay": lambda lr: Momentum(lr, 0.5, weight_decay=0.05),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 3e-2])
def test_every_form_bounds_the_true_error_of_every_rule(name: str, rate: float) -> None:
    task, rule = small_task(), RULES[name](rate)
    error, weights = rule_error(task, rule, EPOCHS)
    certificate = problem_of(task).certificate(rule, EPOCHS)
    slack = 1e-12 * rate  # rounding of the measured error
    for form in certificate.forms:
        if form.exists:
            assert form.lower - slack <= error <= form.upper + slack, form
            if not form.name.startswith("tube"):
                assert max(float((w - weights[0]).norm()) for w in weights) <= form.radius
        else:
            assert "radius ran to" in form.reason
    assert certificate.error_bound <= 1.01 * error
    assert certificate.lower_bound >= 0.99 * error


@pytest.mark.parametrize("rate", [1e-6, 1e-3])
def test_forms_at_the_start_alone_converge_to_the_truth(rate: float) -> None:
    task = small_task()
    error, _ = rule_error(task, GD(rate), EPOCHS)
    certificate = problem_of(task).certificate(rate, EPOCHS, simulate=False)
    assert "tube" not in {form.name for form in certificate.forms}
    assert certificate.error_bound <= error * (1 + 400 * rate + 1e-5)
    assert certificate.lower_bound >= error * (1 - 400 * rate - 1e-5)
    cubic = next(form for form in certificate.forms if form.name == "cubic")
    assert (cubic.upper, cubic.lower) == (certificate.error_bound, certificate.lower_bound)


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 3e-2])
def test_the_tube_alone_is_as_tight_and_measures_no_jacobian_where_norms_will_do(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task()
    whole = problem_of(task).certificate(rate, EPOCHS)
    measured: list[int] = []
    plain = derivative_bounds.measure
    monkeypatch.setattr(derivative_bounds, "measure", lambda *given: measured.append(1) or plain(*given))
    alone = problem_of(task).certificate(rate, EPOCHS, forms=["tube"])
    assert [form.name for form in alone.forms] == ["closed, uniform", "tube"]
    assert alone.method == "tube"
    assert alone.from_start == alone.closed_form_bound
    assert alone.error_bound <= 1.0001 * whole.error_bound
    assert alone.lower_bound >= 0.9999 * whole.lower_bound
    assert alone.lower_bound <= whole.error_bound
    assert whole.lower_bound <= alone.error_bound
    assert not measured


def test_a_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TvgradError, match="choose of closed, uniform, closed, worst case"):
        problem_of(small_task()).certificate(1e-3, 2, forms=["tubes"])


def test_one_epoch_is_exact() -> None:
    certificate = problem_of(small_task()).certificate(0.1, 1)
    assert certificate.error_bound == 0


def test_a_run_is_certified_from_its_weights() -> None:
    task = small_task()
    problem = problem_of(task)
    _, weights = rule_error(task, GD(0.05), EPOCHS + 1)  # theta_0 .. theta_k
    steps, reason = certify_steps(problem, GD(0.05), weights)
    disturbed = [weights[0], *(w + 1e-6 for w in weights[1:])]
    wider, _ = certify_steps(problem, GD(0.05), disturbed)
    assert len(steps) == len(wider) == EPOCHS
    assert not reason
    for number, (step, wide) in enumerate(zip(steps, wider, strict=True), start=1):
        error, _ = rule_error(task, GD(0.05), number)
        assert error <= step.error <= 1.001 * error
        assert error <= wide.error
        assert step.deviation < 1e-10
        assert wide.deviation >= 1e-6
    with pytest.raises(NoCertificate, match="do not start"):
        certify_steps(problem, GD(0.05), weights[1:])


def test_what_has_no_certificate_says_why() -> None:
    problem = problem_of(small_task())
    with pytest.raises(NoCertificate, match="adam divides by a root"):
        problem.certificate(Adam(1e-3), 5)
    with pytest.raises(TvgradError, match="whole number"):
        problem.certificate(0.1, 0)
    with pytest.raises(TvgradError, match="lr"):
        problem.certificate(-1.0, 5)


@pytest.mark.parametrize(
    ("rate", "epochs", "words"),
    [(1e3, 9, "grows beyond all bounds at step"), (1e130, 2, "logits are not finite at step 1")],
)
def test_a_training_that_overflows_has_no_certificate(rate: float, epochs: int, words: str) -> None:
    """Three matrices without an activation: what descent does to them grows like a power of a power."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)).double()
    problem = FeedForward(model, small_task().inputs, torch.ones(20, 3), "mse")
    with pytest.raises(NoCertificate, match=words):
        problem.certificate(rate, epochs)


def test_widths_that_overflow_are_no_bound_and_warn_of_nothing() -> None:
    tube = Tube([problem_of(small_task())], coefficients_of(0.1, 2)).follow()
    tube.hessian_norms[1] = tube.deviations[1] = 1e200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tube.error(2)[1] == math.inf


def test_a_certificate_is_a_row_of_numbers_and_words() -> None:
    certificate = problem_of(small_task()).certificate(1e-3, 5)
    assert list(certificate.row()) == [
        "radius", "error_bound", "lower_bound", "method", "closed_form_bound",
    ]  # fmt: skip
    assert all(isinstance(value, (float, str)) for value in certificate.row().values())


def true_gap(tasks: list[Task], rate: float, epochs: int, alpha: float) -> float:
    start = tasks[0].start
    moved = [torch.zeros_like(start) for _ in tasks]
    together, gap = torch.zeros_like(start), torch.zeros_like(start)
    for _ in range(epochs):
        alone = [task.gradient(start + own) for task, own in zip(tasks, moved, strict=True)]
        joint = [task.gradient(start + together) for task in tasks]
        for number, (a, b) in enumerate(zip(alone, joint, strict=True)):
            gap -= alpha * rate * (a - b)
            moved[number] = moved[number] - rate * a
        together = together - alpha * rate * torch.stack(joint).sum(0)
    return float(gap.norm())


def coefficient(tasks: list[Task], epochs: int, alpha: float, rate: float = 1e-6) -> float:
    """||C_k|| from the gap itself at a small rate."""
    return true_gap(tasks, rate, epochs, alpha) / abs(alpha) / rate**2


@pytest.mark.parametrize("alpha", [0.4, 1.0, -0.3])
@pytest.mark.parametrize("rate", [1e-5, 1e-2])
def test_the_multitask_gap_lies_between_its_bounds(alpha: float, rate: float) -> None:
    first = small_task()
    tasks = [
        first,
        Task("flipped", first.model, -first.inputs, first.targets),
        Task("turned", first.model, first.inputs.roll(1, 1), first.targets),
    ]
    gap = true_gap(tasks, rate, EPOCHS, alpha=alpha)
    found = multitask_gap_bound([problem_of(task) for task in tasks], rate, EPOCHS, alpha=alpha)
    for form in found.forms:
        if form.exists:
            assert form.lower <= gap * (1 + 1e-9) + 1e-13 * rate
            assert form.upper >= gap * (1 - 1e-9) - 1e-13 * rate
    assert found.upper_bound <= 1.01 * gap
    alone = multitask_gap_bound([problem_of(task) for task in tasks], rate, EPOCHS, alpha=alpha, simulate=False)
    assert [form.name for form in alone.forms] == ["closed", "quadratic", "cubic"]
    assert alone.upper_bound == min(form.upper for form in found.forms[:3]) >= gap * (1 - 1e-9)
    if rate < 1e-4:
        assert alone.lower_bound >= 0.999 * gap
        assert alone.upper_bound <= 1.001 * gap
    if math.isfinite(found.coefficient_bound):
        assert coefficient(tasks, EPOCHS, alpha=alpha) <= found.coefficient_bound


def test_every_form_that_is_listed_is_tried() -> None:
    task = small_task()
    found = problem_of(task).certificate(1e-4, EPOCHS).forms
    assert [form.name for form in found] == [form.name for form in FORMS]
    gap = multitask_gap_bound([problem_of(task)] * 2, 1e-4, EPOCHS, alpha=0.4)
    assert [form.name for form in gap.forms] == [form.name for form in GAP_FORMS]


def test_forms_that_would_take_too_long_are_left_out_with_the_reason() -> None:
    problem = problem_of(small_task())
    alone = problem.certificate(1e-6, 101).forms
    together = multitask_gap_bound([problem] * 2, 1e-6, 101, alpha=0.4).forms
    for forms in (alone, together):
        reasons = {form.name: form.reason for form in forms if form.reason}
        assert reasons == dict.fromkeys(("quadratic", "cubic"), "left out: it takes a product an epoch, at most 100")


def test_the_former_name_of_the_gap_warns_and_gives_the_same() -> None:
    problems = [problem_of(small_task())] * 2
    with pytest.warns(DeprecationWarning, match="multitask_gap_bound"):
        former = bounds.multitask_gap(problems, 1e-3, EPOCHS, 0.4)
    assert former == multitask_gap_bound(problems, 1e-3, EPOCHS, alpha=0.4)


def test_tasks_with_different_starts_have_no_common_gap() -> None:
    one, other = small_task(), small_task()
    with torch.no_grad():
        other.model[0].weight.add_(1.0)
    with pytest.raises(TvgradError, match="different weights"):
        multitask_gap_bound([problem_of(one), problem_of(other)], 1e-3, 5, alpha=0.5)
    with pytest.raises(NoCertificate, match="weight decay"):
        multitask_gap_bound([problem_of(one)] * 2, SGD(1e-3, weight_decay=0.1), 5, alpha=0.5)


# Upper bounds over the true error on the reference case, for all forms and for those that use theta_0 alone.
GOALS = {1e-7: (1.01, 1.01), 1e-5: (1.1, 1.01), 1e-4: (1.5, 1.1), 1e-3: (1.5, 2.0), 1e-2: (1.5, None)}


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))], ids=TASKS)
def test_the_reference_case_is_tight(number: int) -> None:
    task = reference_tasks()[number]
    problem = problem_of(task)
    for rate, (goal, goal_at_start) in GOALS.items():
        error = true_error(task, rate, EPOCHS)
        certificate = problem.certificate(rate, EPOCHS)
        at_start = [form for form in certificate.forms if form.exists and form.name != "tube"]
        assert certificate.lower_bound <= error <= certificate.error_bound <= goal * error
        if goal_at_start is not None:
            assert error <= min(form.upper for form in at_start) <= goal_at_start * error
            assert max(form.lower for form in at_start) <= error
        if 0.9e-4 < rate < 1.1e-4:
            assert max(form.lower for form in at_start) > 0
            assert certificate.closed_form_bound >= 1e4 * certificate.error_bound


@pytest.mark.slow
def test_the_reference_gap_is_tight() -> None:
    tasks = list(reference_tasks())
    for rate, at_start in ((1e-7, 1.01), (1e-4, 1.1), (1e-3, 4.0), (1e-2, None)):
        gap = true_gap(tasks, rate, EPOCHS, alpha=0.4)
        found = multitask_gap_bound([problem_of(task) for task in tasks], rate, EPOCHS, alpha=0.4)
        assert found.lower_bound <= gap <= found.upper_bound <= 1.01 * gap
        forms = {form.name: form for form in found.forms}
        if at_start is not None:
            assert gap <= forms["cubic"].upper <= at_start * gap


def test_certificates_compare_and_print() -> None:
    first, second = (problem_of(small_task()).certificate(1e-4, 3) for _ in range(2))
    assert isinstance(first, Certificate)
    assert first.error_bound == second.error_bound
    assert "error_bound" in repr(first)
