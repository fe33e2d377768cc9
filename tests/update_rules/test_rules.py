from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.from_optimizer import rule_from_optimizer
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import (
    GD,
    RULES,
    SGD,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    linear_rule,
    make_rule,
    rule_from_dict,
)
from tvgrad.update_rules.trajectory import Trajectory

U = 2.0**-53
STEPS = 9
SIZE = 40
SCHEDULE = (0.03, 0.0, 0.2, 0.11, 0.05, 0.3, 0.07, 0.01, 0.4)

COUPLED = [
    GD(0.1),
    GD(SCHEDULE),
    SGD(0.1),
    SGD(0.1, weight_decay=0.3),
    SGD(SCHEDULE, weight_decay=0.3),
    Momentum(0.1, 0.0),
    Momentum(0.1, 0.9),
    Momentum(SCHEDULE, 0.9),
    Momentum(0.1, 0.5, weight_decay=0.3),
    Momentum(0.1, 0.9, dampening=0.4),
    Momentum(SCHEDULE, 0.7, dampening=1.0, weight_decay=0.3),
    Nesterov(0.1, 0.9),
    Nesterov(SCHEDULE, 0.6, weight_decay=0.3),
]
DECOUPLED = [
    SGD(0.1, weight_decay=0.3, decoupled=True),
    SGD(SCHEDULE, weight_decay=2.0, decoupled=True),
    Momentum(0.1, 0.9, weight_decay=0.3, decoupled=True),
    Momentum(SCHEDULE, 0.8, dampening=0.25, weight_decay=0.3, decoupled=True),
    Nesterov(0.1, 0.9, weight_decay=0.3, decoupled=True),
    Nesterov(SCHEDULE, 0.7, weight_decay=0.3, decoupled=True),
]
ADAPTIVE = [
    Adam(0.1),
    Adam(SCHEDULE, betas=(0.0, 0.9)),
    Adam(0.1, betas=(0.7, 0.8), weight_decay=0.3, amsgrad=True),
    AdamW(0.1),
    AdamW(SCHEDULE, eps=1e-3, weight_decay=0.5),
    AdamW(0.1, betas=(0.5, 0.6), amsgrad=True),
]


def label(rule: object) -> str:
    return repr(rule).replace(str(SCHEDULE), "SCHEDULE") if isinstance(rule, UpdateRule) else str(rule)


def every_step(
    rule: UpdateRule, theta: torch.Tensor, gradient: Callable[[torch.Tensor, int], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The weights after 0, 1, .. STEPS steps: by PyTorch's optimizer, or by a plain loop where it has none."""
    yield theta.clone()
    if isinstance(rule, LinearRule) and rule.decoupled_decay:
        buffer = None
        mu = getattr(rule, "momentum", 0.0)
        for step in range(STEPS):
            g = gradient(theta, step)
            buffer = g if buffer is None else mu * buffer + (1 - getattr(rule, "dampening", 0.0)) * g
            direction = g + mu * buffer if isinstance(rule, Nesterov) else buffer
            theta = theta - rule.rate(step) * rule.decoupled_decay * theta - rule.rate(step) * direction
            yield theta.clone()
        return
    parameter = nn.Parameter(theta.clone())
    optimizer = rule.make_optimizer([parameter])
    for step in range(STEPS):
        rule.set_rate(optimizer, step)
        parameter.grad = gradient(parameter.detach(), step)
        optimizer.step()
        yield parameter.detach().clone()


def recorded(rule: UpdateRule, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of every step, and gradients that follow no loss at all (STEPS rows)."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(STEPS, SIZE, generator=generator, dtype=torch.float64)
    theta = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return torch.stack(list(every_step(rule, theta, lambda at, step: gradients[step].clone()))), gradients


def rounding(weights: torch.Tensor, step_sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """What float64 may add in STEPS steps: each rounds the weights once and forms its step in a handful of operations.

    A step's own roundings, and those of the buffer, are at most 8 units each of what it moves; every sum over the steps
    has at most STEPS terms.
    """
    return STEPS * U * (2 * weights.abs().amax(0).numpy() + (8 + STEPS) * step_sizes)


@pytest.mark.parametrize("rule", COUPLED + DECOUPLED, ids=label)
def test_coefficients_reproduce_the_optimizer_at_every_step(rule: LinearRule) -> None:
    weights, gradients = recorded(rule)
    matrix = rule.coefficient_matrix(STEPS)
    assert matrix.shape == (STEPS + 1, STEPS)
    assert matrix.dtype == np.float64
    used = (gradients + rule.coupled_decay * weights[:-1]).numpy()
    for k in range(STEPS + 1):
        expected = -rule.decay_shrinkages(k)[k] * weights[0].numpy() - matrix[k] @ used
        allowed = rounding(weights, np.abs(matrix[k]) @ np.abs(used))
        assert (np.abs((weights[k] - weights[0]).numpy() - expected) <= allowed).all()
        assert not matrix[k, k:].any()


@pytest.mark.parametrize("rule", COUPLED + DECOUPLED, ids=label)
def test_the_backward_recurrence_agrees_with_the_forward_one(rule: LinearRule) -> None:
    # All terms are positive, so both are right to a few roundings a step.
    matrix = rule.coefficient_matrix(STEPS)
    first = rule.first_order_weights(STEPS)
    lost = rule.decay_shrinkages(STEPS)
    for k in range(STEPS + 1):
        c = rule.coefficients(k)
        assert c.shape == (k,)
        np.testing.assert_allclose(c, matrix[k, :k], rtol=4 * STEPS * U, atol=0)
        assert rule.first_order_weights(k)[k] == pytest.approx(math.fsum(c), rel=8 * STEPS * U, abs=0)
        assert rule.second_order_weights(k)[k] == pytest.approx(math.fsum(c * first[:k]), rel=16 * STEPS * U, abs=0)
        assert rule.decay_weights(k)[k] == pytest.approx(math.fsum(c * lost[:k]), rel=16 * STEPS * U, abs=0)


def heavy_ball(eta: float, mu: float, ages: NDArray[np.int64]) -> NDArray[np.float64]:
    return eta * (1 - mu**ages) / (1 - mu)


CLOSED_FORMS: list[tuple[LinearRule, Callable[[NDArray[np.int64]], NDArray[np.float64]]]] = [
    (GD(0.3), lambda ages: np.full(len(ages), 0.3)),
    (Momentum(0.3, 0.9), lambda ages: heavy_ball(0.3, 0.9, ages)),
    (Nesterov(0.3, 0.9), lambda ages: 0.3 + 0.9 * heavy_ball(0.3, 0.9, ages)),
    (
        Momentum(0.3, 0.9, dampening=0.2),
        lambda ages: heavy_ball(0.3, 0.9, ages) * np.where(ages == len(ages), 1, 0.8),
    ),
    (SGD(0.3, weight_decay=0.5, decoupled=True), lambda ages: 0.3 * (1 - 0.15) ** (ages - 1)),
]


@pytest.mark.parametrize(("rule", "form"), CLOSED_FORMS, ids=[label(rule) for rule, _ in CLOSED_FORMS])
@pytest.mark.parametrize("k", [1, 2, 5, 60])
def test_closed_forms(rule: LinearRule, form: Callable[[NDArray[np.int64]], NDArray[np.float64]], k: int) -> None:
    np.testing.assert_allclose(rule.coefficients(k), form(k - np.arange(k)), rtol=1e-13)
    # S_e and Q_k once more, from the closed form alone.
    partial = np.array([form(e - np.arange(e)).sum() for e in range(k + 1)])
    assert rule.first_order_weights(k)[k] == pytest.approx(partial[k], rel=1e-13)
    assert rule.second_order_weights(k)[k] == pytest.approx(form(k - np.arange(k)) @ partial[:k], rel=1e-13)


def test_gradient_descent_has_textbook_weights() -> None:
    k = np.arange(8)
    np.testing.assert_array_equal(GD(0.25).first_order_weights(7), 0.25 * k)
    np.testing.assert_array_equal(GD(0.25).second_order_weights(7), 0.25**2 * k * (k - 1) / 2)
    np.testing.assert_array_equal(GD(SCHEDULE).coefficients(5), SCHEDULE[:5])
    np.testing.assert_array_equal(Momentum(SCHEDULE, 0.0).coefficient_matrix(STEPS)[STEPS], SCHEDULE)


def test_a_small_decay_is_not_lost_by_cancellation() -> None:
    # 1 - (1 - 1e-20)^3 is 0 when it is formed by subtraction; here it is 3e-20, and D_k = eta (1 + 2) 1e-20 for k = 3.
    rule = SGD(0.1, weight_decay=1e-19, decoupled=True)
    assert rule.decay_shrinkages(3)[3] == pytest.approx(3e-20, rel=1e-15, abs=0)
    assert rule.decay_weights(3)[3] == pytest.approx(0.1 * 3e-20, rel=1e-15, abs=0)
    np.testing.assert_allclose(
        SGD(SCHEDULE, 2.0, decoupled=True).decay_factors(STEPS),
        [math.prod(1 - 2.0 * eta for eta in SCHEDULE[e:]) for e in range(STEPS + 1)],
        rtol=1e-14,
    )
    assert AdamW(0.1, weight_decay=0.5).decay_shrinkages(2)[2] == pytest.approx(1 - 0.95**2)
    assert not Momentum(0.1, 0.9, weight_decay=0.5).decay_shrinkages(2).any()


def tanh_loss() -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """Mean squared error of a 3-4-2 tanh network, as a function of its 26 weights."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(12, 2, generator=generator, dtype=torch.float64)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(inputs @ theta[:12].view(3, 4) + theta[12:16])
        return (hidden @ theta[16:24].view(4, 2) + theta[24:] - targets).square().mean()

    return loss, torch.randn(26, generator=generator, dtype=torch.float64)


SHAPE = (1.0, 0.5, 2.0, 0.0, 1.5, 1.0, 0.3, 0.7, 1.2)


@pytest.mark.parametrize(
    "rule_at",
    [
        GD,
        lambda eta: GD([eta * s for s in SHAPE]),
        lambda eta: SGD(eta, weight_decay=0.7),
        lambda eta: SGD(eta, weight_decay=0.7, decoupled=True),
        lambda eta: Momentum(eta, 0.8),
        lambda eta: Momentum([eta * s for s in SHAPE], 0.8, dampening=0.3),
        lambda eta: Momentum(eta, 0.8, weight_decay=0.7),
        lambda eta: Momentum(eta, 0.8, weight_decay=0.7, decoupled=True),
        lambda eta: Nesterov(eta, 0.8),
        lambda eta: Nesterov(eta, 0.8, weight_decay=0.7),
        lambda eta: Nesterov([eta * s for s in SHAPE], 0.8, weight_decay=0.7, decoupled=True),
    ],
    ids=lambda rule_at: label(rule_at(0.1)),
)
def test_the_second_order_expansion_leaves_a_third_order_residual(rule_at: Callable[[float], LinearRule]) -> None:
    loss, theta0 = tanh_loss()
    gradient = torch.func.grad(loss)
    etas = [2.0**-power for power in range(9, 14)]
    residuals = []
    for eta in etas:
        rule = rule_at(eta)
        decay = rule.coupled_decay
        last = list(every_step(rule, theta0, lambda at, step: gradient(at)))[-1]
        g0 = gradient(theta0) + decay * theta0
        inner = rule.second_order_weights(STEPS)[STEPS] * g0 + rule.decay_weights(STEPS)[STEPS] * theta0
        curved = torch.func.jvp(gradient, (theta0,), (inner,))[1] + decay * inner
        predicted = -rule.decay_shrinkages(STEPS)[STEPS] * theta0 - rule.first_order_weights(STEPS)[STEPS] * g0 + curved
        residuals.append(float((last - theta0 - predicted).norm()))
    assert min(residuals) > 1e-12  # far above rounding, or the order would mean nothing
    order = np.polyfit(np.log(etas), np.log(residuals), 1)[0]
    assert order == pytest.approx(3, abs=0.1)


def test_adams_weights_are_the_sum_that_defines_them() -> None:
    for rule in (Adam(0.1), Adam(SCHEDULE, betas=(0.0, 0.9)), AdamW(SCHEDULE, betas=(0.6, 0.9))):
        b1 = rule.betas[0]
        for k in range(STEPS + 1):
            brute = [
                sum(rule.rate(e) * (1 - b1) * b1 ** (e - s) / (1 - b1 ** (e + 1)) for e in range(s, k))
                for s in range(k)
            ]
            np.testing.assert_allclose(rule.momentum_weights(k), brute, rtol=1e-14)


def test_adams_weights_reproduce_adam_where_the_preconditioner_is_constant() -> None:
    # With eps = 1e16 the root is far below half an ulp of eps: the denominator is eps itself.
    rule = Adam([1e16 * eta for eta in SCHEDULE], betas=(0.8, 0.999), eps=1e16)
    weights, gradients = recorded(rule)
    c = rule.momentum_weights(STEPS) / 1e16
    allowed = rounding(weights, c @ gradients.abs().numpy())
    assert (np.abs((weights[-1] - weights[0]).numpy() + c @ gradients.numpy()) <= allowed).all()


def test_momentum_weights_of_a_linear_rule_leave_decay_out() -> None:
    for rule in DECOUPLED:
        np.testing.assert_array_equal(rule.momentum_weights(5), rule.without_decay().coefficients(5))
        assert rule.without_decay().decoupled_decay == 0
    assert GD(0.1).without_decay() == GD(0.1)


def as_dicts(rows: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Split each row into two named tensors."""
    return ({"a": row[:10].view(2, 5), "b.c": row[10:]} for row in rows)


def follow(
    rule: UpdateRule,
    theta0: dict[str, torch.Tensor],
    gradients: Iterable[dict[str, torch.Tensor]],
    thetas: Iterable[dict[str, torch.Tensor]] | None = None,
) -> dict[str, torch.Tensor]:
    """The task vector after the last gradient; decay takes its part of the weights given, or of its own."""
    trajectory = Trajectory(rule, theta0)
    for gradient, theta in zip(gradients, itertools.repeat(None) if thetas is None else thetas, strict=False):
        trajectory.step(gradient, theta)
    return trajectory.task_vector


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


@pytest.mark.parametrize("own", [False, True], ids=["recorded weights", "own trajectory"])
@pytest.mark.parametrize("rule", COUPLED + DECOUPLED + ADAPTIVE, ids=label)
def test_a_trajectory_reproduces_the_optimizer(rule: UpdateRule, own: bool) -> None:
    weights, gradients = recorded(rule)
    theta0 = next(as_dicts(weights))
    task_vector = follow(rule, theta0, as_dicts(gradients), None if own else as_dicts(weights))
    assert list(task_vector) == ["a", "b.c"]
    assert all(tensor.dtype == torch.float64 and tensor.shape == theta0[n].shape for n, tensor in task_vector.items())
    exact = weights[-1] - weights[0]
    assert float((flat(task_vector) - exact).norm()) <= 1e-14 * float(weights.abs().amax(0).norm())
    if isinstance(rule, LinearRule) or own:
        return
    # Adam in float32 differs from its trajectory in float64 by its own rounding only, STEPS half ulps and little more.
    single, gradients32 = recorded_in_float32(rule)
    task_vector = follow(rule, next(as_dicts(single)), as_dicts(gradients32), as_dicts(single))
    difference = flat(task_vector) - (single[-1].double() - single[0].double())
    assert 0 < float(difference.abs().max()) < STEPS * 2.0**-23 * float(single.abs().max())


def recorded_in_float32(rule: UpdateRule) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(STEPS, SIZE, generator=generator)
    theta = torch.randn(SIZE, generator=generator)
    return torch.stack(list(every_step(rule, theta, lambda at, step: gradients[step].clone()))), gradients


@pytest.mark.parametrize(
    "rule", [rule for rule in COUPLED + DECOUPLED + ADAPTIVE if rule.coupled_decay + rule.decoupled_decay], ids=label
)
def test_a_trajectory_takes_decay_of_the_weights_given_and_can_leave_it_out(rule: UpdateRule) -> None:
    weights, gradients = recorded(rule)
    theta0 = next(as_dicts(weights))
    plain = follow(rule.without_decay(), theta0, as_dicts(gradients), as_dicts(weights))
    no_decay, _ = recorded(rule.without_decay())
    assert float((flat(plain) - (no_decay[-1] - no_decay[0])).norm()) <= 1e-14 * float(no_decay.abs().amax(0).norm())
    shifted = follow(rule, theta0, as_dicts(gradients), as_dicts(weights + 1.0))
    straight = follow(rule, theta0, as_dicts(gradients), as_dicts(weights))
    assert float((flat(shifted) - flat(straight)).norm()) > 1e-3
    if isinstance(rule, LinearRule):
        share = rule.coefficients(STEPS).sum() * rule.coupled_decay
        if rule.decoupled_decay:
            share = float(rule.rates(STEPS).sum()) * rule.decoupled_decay
        np.testing.assert_allclose((flat(straight) - flat(shifted)).numpy(), share, rtol=1e-12)


def test_a_trajectory_follows_its_schedule_and_changes_nothing_it_reads() -> None:
    weights, gradients = recorded(Momentum(SCHEDULE, 0.9))
    kept = gradients.clone()
    theta0 = next(as_dicts(weights))
    other = follow(Momentum(5.0, 0.9).with_lr(SCHEDULE), theta0, as_dicts(gradients))
    torch.testing.assert_close(other, follow(Momentum(SCHEDULE, 0.9), theta0, as_dicts(gradients)), rtol=0, atol=0)
    torch.testing.assert_close(flat(other), weights[-1] - weights[0], rtol=1e-13, atol=1e-14)
    assert torch.equal(gradients, kept)
    assert not any(tensor.any() for tensor in follow(Adam(0.1), theta0, []).values())


@pytest.mark.parametrize("rule", COUPLED + DECOUPLED + ADAPTIVE, ids=label)
def test_json_round_trip(rule: UpdateRule) -> None:
    rule = rule.with_lr([0.1 + 0.2, 5e-324, 1 / 3])
    description = json.loads(json.dumps(rule.to_dict()))
    assert description == rule.to_dict()
    back = rule_from_dict(description)
    assert back == rule
    assert type(back) is type(rule)
    assert hash(back) == hash(rule)


@pytest.mark.parametrize("rule", COUPLED + ADAPTIVE, ids=label)
def test_a_rule_survives_its_optimizer(rule: UpdateRule) -> None:
    rule = rule.with_lr(0.1)
    optimizer = rule.make_optimizer([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))])
    plain = rule.name == "gd" or (isinstance(rule, Momentum) and not rule.momentum)
    assert rule_from_optimizer(optimizer) == (SGD(0.1) if plain else rule)
    assert not optimizer.defaults.get("fused")


def test_what_an_optimizer_may_look_like() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    warm = torch.optim.SGD(parameters, lr=torch.tensor(0.0))
    assert rule_from_optimizer(warm) == SGD([0.0])

    class Renamed(torch.optim.AdamW):
        pass

    assert rule_from_optimizer(Renamed(parameters, lr=0.1)) == AdamW(0.1)
    # PyTorch ignores dampening where there is no momentum.
    assert rule_from_optimizer(torch.optim.SGD(parameters, lr=0.1, dampening=0.5)) == SGD(0.1)
    optimizer = GD(SCHEDULE).make_optimizer([{"params": parameters}, {"params": [nn.Parameter(torch.zeros(1))]}])
    GD(SCHEDULE).set_rate(optimizer, 4)
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE[4]] * 2


class OwnStep(torch.optim.SGD):
    def step(self, closure=None):  # type: ignore[no-untyped-def]
        return super().step(closure)


def grouped(**differing: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(2))], **differing}]
    return torch.optim.AdamW(groups, lr=0.1)


ONE = [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("optimizer", "word"),
    [
        (torch.optim.Adagrad(ONE), "Adagrad is not known"),
        (torch.optim.NAdam(ONE), "NAdam is not known"),
        (OwnStep(ONE, lr=0.1), "OwnStep is not known"),
        (grouped(weight_decay=0.0), "differ in weight_decay"),
        (grouped(lr=0.2), "differ in lr"),
        (torch.optim.SGD(ONE, lr=0.1, maximize=True), "leave maximize out"),
        (torch.optim.SGD(ONE, lr=0.1, momentum=1.5), "momentum 1.5 is out of range"),
    ],
)
def test_an_optimizer_that_follows_no_known_rule_is_refused(optimizer: torch.optim.Optimizer, word: str) -> None:
    assert word in sentence(lambda: rule_from_optimizer(optimizer))


def test_make_rule() -> None:
    assert list(RULES) == ["gd", "sgd", "momentum", "nesterov", "adam", "adamw"]
    assert make_rule("gd", 0.1) == GD(0.1)
    assert make_rule("sgd", 0.1, weight_decay=0.2) == SGD(0.1, 0.2)
    assert make_rule("momentum", 0.1) == Momentum(0.1, 0.9)
    assert make_rule("nesterov", [0.1, 0.2], momentum=0.5) == Nesterov((0.1, 0.2), 0.5)
    assert make_rule("adam", 0.1) == Adam(0.1, weight_decay=0.0)
    assert make_rule("adamw", 0.1) == AdamW(0.1, weight_decay=0.01)
    assert make_rule("adamw", 0.1) != Adam(0.1, weight_decay=0.01)
    assert isinstance(linear_rule(GD(0.1)), LinearRule)


def test_rates_come_as_any_sequence_of_numbers() -> None:
    for given in ([0.5, 0.25], np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), (rate for rate in (0.5, 0.25))):
        assert GD(given).lr == (0.5, 0.25)  # type: ignore[arg-type]
    assert GD(torch.tensor(0.5)) == GD(np.float64(0.5)) == GD(0.5)  # type: ignore[arg-type]
    assert GD(1).rates(3).dtype == np.float64
    assert GD(0.5).rates(0).shape == GD((0.5,)).rates(0).shape == (0,)


def sentence(action: Callable[[], object]) -> str:
    """The message of the TvgradError that the action raises; it must be one sentence on one line."""
    with pytest.raises(TvgradError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert not message.endswith(".")
    assert ":" in message  # what is wrong: what to do
    return message


THETA = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: GD(0.0), "gd: lr 0.0 is out of range: give a number above 0"),
        (lambda: GD(-1.0), "lr -1.0"),
        (lambda: GD(math.nan), "lr nan"),
        (lambda: GD(math.inf), "lr inf"),
        (lambda: GD("0.1"), "lr '0.1'"),  # type: ignore[arg-type]
        (lambda: GD(True), "lr True"),
        (lambda: GD([]), "schedule is empty"),
        (lambda: GD([0.1, -0.1]), "rates -0.1"),
        (lambda: GD([0.1, math.nan]), "rates nan"),
        (lambda: GD([0.1]).rates(2), "step 1 is outside the schedule of 1 rates"),
        (lambda: GD([0.1]).coefficients(2), "give one rate for each step"),
        (lambda: GD([0.1]).rate(-1), "step -1 is outside"),
        (lambda: GD(0.1).rates(-1), "ask for 0 or more"),
        (lambda: Momentum(0.1, 1.0), "momentum 1.0"),
        (lambda: Momentum(0.1, -0.1), "momentum -0.1"),
        (lambda: Momentum(0.1, 0.9, dampening=1.5), "dampening 1.5"),
        (lambda: Momentum(0.1, 0.0, dampening=0.5), "leave dampening out"),
        (lambda: Nesterov(0.1, 0.0), "use sgd"),
        (lambda: SGD(0.1, weight_decay=-1.0), "weight_decay -1.0"),
        (lambda: SGD(0.1, decoupled=1), "decoupled 1 is neither"),  # type: ignore[arg-type]
        (lambda: SGD([0.1, 0.5], weight_decay=2.0, decoupled=True), "below 1/lr"),
        (lambda: AdamW(1.0, weight_decay=1.0), "below 1/lr"),
        (lambda: Adam(0.1, betas=(0.9,)), "betas (0.9,) is not a pair"),  # type: ignore[arg-type]
        (lambda: Adam(0.1, betas=(0.9, 1.0)), "betas 1.0"),
        (lambda: Adam(0.1, betas=0.9), "not a pair"),  # type: ignore[arg-type]
        (lambda: Adam(0.1, eps=-1e-8), "eps -1e-08"),
        (lambda: SGD(0.1, 0.1, decoupled=True).make_optimizer(ONE), "use AdamW"),
        (lambda: GD([0.1]).set_rate(torch.optim.SGD(ONE), 1), "give one rate for each step"),
        (lambda: linear_rule(Adam(0.1)), "adam is not a linear"),
        (lambda: make_rule("lion", 0.1), "choose one of gd, sgd, momentum, nesterov, adam, adamw"),
        (lambda: make_rule("gd", 0.1, momentum=0.9), "gd takes no momentum"),
        (lambda: make_rule("sgd", 0.1, momentum=0.0), "use one of momentum, nesterov"),
        (lambda: make_rule("adam", 0.1, momentum=0.9), "adam takes no momentum"),
        (lambda: make_rule("gd", 0.1, weight_decay=0.1), "gd takes no weight decay"),
        (lambda: rule_from_dict({"lr": 0.1}), "no update rule None"),
        (lambda: rule_from_dict({"name": "adamax", "lr": 0.1}), "no update rule 'adamax'"),
        (lambda: rule_from_dict({"name": "gd", "lr": 0.1, "momentum": 0.9}), "gd has no option 'momentum'"),
        (lambda: rule_from_dict({"name": "momentum", "lr": 0.1}), "needs the option 'momentum'"),
        (lambda: rule_from_dict({"name": "gd", "lr": None}), "lr None"),
        (lambda: follow(GD(0.1), THETA, [{"v": torch.zeros(2)}]), "gradient of step 0 and theta0 differ"),
        (lambda: follow(GD(0.1), THETA, [THETA, {"w": torch.zeros(3)}]), "gradient of step 1"),
        (lambda: follow(SGD(0.1, 0.1), THETA, [THETA], [{}]), "weights of step 0 and theta0 differ"),
        (lambda: follow(GD([0.1]), THETA, [THETA, THETA]), "give one rate for each step"),
    ],
)
def test_bad_input_gets_one_sentence(action: Callable[[], object], words: str) -> None:
    assert words in sentence(action)
