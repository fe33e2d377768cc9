"""Every constant is needed: made one per cent smaller, it leaves a bound below a value that is attained.

The attained values come from nested autograd on PyTorch's own functions; the mutated bounds from whole problems.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.bounds.losses.test_losses import Case, bits, exact, numbers
from tvgrad.bounds import Activation, FeedForward, activation_of, loss_of

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, threshold=40),
    "logsigmoid": F.logsigmoid,
    "tanhshrink": lambda x: x - torch.tanh(x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sin": torch.sin,
    "identity": lambda x: 1.0 * x,
}
ORDERS = {"b1": 1, "b2": 2, "b3": 3, "b4": 4}
FAR = -1e9  # a target this far makes the residual so large that the activation's derivative alone decides
STEP = 1e-3
CONSTANTS = [
    (name, field)
    for name in FUNCTIONS
    for field in (*ORDERS, "supremum", "at_zero")
    if 0 < getattr(activation_of(name), field) < math.inf
]


def derivatives(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, order: int) -> list[torch.Tensor]:
    """The function and its derivatives at many points."""
    x = x.clone().requires_grad_()
    found = [function(x)]
    for _ in range(order):
        last = found[-1]
        flat = not last.requires_grad
        found.append(torch.zeros_like(x) if flat else torch.autograd.grad(last.sum(), x, create_graph=True)[0])
    return [value.detach() for value in found]


@cache
def steepest(name: str, order: int) -> tuple[float, float]:
    """Where a derivative is largest, and the direction in which the one below it grows in size there."""
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    values = derivatives(FUNCTIONS[name], grid, order)
    at = int(torch.nan_to_num(values[order].abs()).argmax())
    below, slope = float(values[order - 1][at]), float(values[order][at])
    return float(grid[at]), math.copysign(1.0, slope * below if below else 1.0)


def problem_of(activation: Activation, point: float, moving: str) -> FeedForward:
    """`W_2 s(b_1)` with one unit, at b_1 = point and W_2 = 1; one of the two numbers is trainable."""
    first, last = nn.Linear(1, 1).double(), nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(point)
        last.weight.fill_(1.0)
    model = nn.Sequential(first, nn.Tanh(), last).requires_grad_(False)
    {"bias": first.bias, "weight": last.weight}[moving].requires_grad_(True)
    problem = FeedForward(model, torch.ones(1, 1), torch.full((1, 1), FAR), "mse_half")
    hidden = dataclasses.replace(problem.network.layers[0], activation=activation)
    problem.network = dataclasses.replace(problem.network, layers=(hidden, *problem.network.layers[1:]))
    return problem


def attained(name: str, point: float, order: int) -> float:
    """|d^n/db^n| of 1/2 (s(b) - y)^2."""
    at = torch.tensor([point], dtype=torch.float64)
    return abs(float(derivatives(lambda b: (FUNCTIONS[name](b) - FAR) ** 2 / 2, at, order)[order]))


# b4 bounds no derivative of the loss: it widens the third over a ball, in the test after this one
@pytest.mark.parametrize(("name", "field"), [pair for pair in CONSTANTS if pair[1] != "b4"])
def test_no_constant_of_an_activation_can_be_smaller(name: str, field: str) -> None:
    right = activation_of(name)
    wrong = dataclasses.replace(right, **{field: 0.99 * getattr(right, field)})

    def bound(activation: Activation) -> float:
        if field in {"supremum", "at_zero"}:
            return problem_of(activation, place, "weight").worst_case().gradient_norm
        bounds = problem_of(activation, place, "bias").worst_case()
        return (bounds.gradient_norm, bounds.hessian_norm, bounds.hessian_lipschitz)[ORDERS[field] - 1]

    if field in {"supremum", "at_zero"}:
        place = {"supremum": math.pi / 2 if name == "sin" else 40.0, "at_zero": 0.0}[field]
        value = float(FUNCTIONS[name](torch.tensor(place, dtype=torch.float64)))
        truth = abs(value * (value - FAR))
    else:
        place, _ = steepest(name, ORDERS[field])
        truth = attained(name, place, ORDERS[field])
    assert bound(wrong) < truth <= bound(right) <= 1.001 * truth


@pytest.mark.parametrize(("name", "field"), [pair for pair in CONSTANTS if pair[1] in {"b2", "b3", "b4"}])
def test_no_constant_can_be_smaller_where_a_ball_widens_what_was_measured(name: str, field: str) -> None:
    """At the edge of a small ball the derivative below has grown by the constant times the radius."""
    order = ORDERS[field]
    place, direction = steepest(name, order)
    truth = attained(name, place + direction * STEP, order - 1)
    right = activation_of(name)

    def bound(activation: Activation) -> float:
        bounds = problem_of(activation, place, "bias").local(STEP)
        return (bounds.gradient_norm, bounds.hessian_norm, bounds.hessian_lipschitz)[order - 2]

    wrong = dataclasses.replace(right, **{field: 0.99 * getattr(right, field)})
    assert bound(wrong) < truth <= bound(right)


# Losses: (logits, targets) at which each derivative is as large as it can be.

TURN = math.log((1 + 3**-0.5) / (1 - 3**-0.5))  # logits this far apart attain the third derivative's maximum
HARD = torch.tensor([0])
SOFT = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)
GONE = -300.0
HALF = loss_of("mse_half")


def half(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((logits - targets) ** 2).sum() / 2 / len(logits)


def case(name: str, module: nn.Module, targets: torch.Tensor, outputs: int) -> Case:
    return Case(name, loss_of(module), module, lambda n, c, g: targets, (outputs,))


WEIGHTED = nn.CrossEntropyLoss(weight=WEIGHTS)
ZERO, ONE = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
PAIR = bits(1, 2, torch.Generator().manual_seed(0))
TWO = ([-60.0, 60.0], [0.0, 0.0], [TURN, 0.0])
THREE = ([60.0, GONE, -60.0], [0.0, GONE, 0.0], [TURN, GONE, 0.0])
BELOW = -3 * torch.ones(1, 2, dtype=torch.float64)
PLACES = [
    (case("cross entropy", nn.CrossEntropyLoss(), HARD, 2), HARD, TWO),
    (case("smoothed", nn.CrossEntropyLoss(label_smoothing=0.2), HARD, 2), HARD, TWO),
    (case("weighted", WEIGHTED, SOFT, 3), SOFT, THREE),
    (case("bce", nn.BCEWithLogitsLoss(), PAIR, 2), PAIR, ([0.0, 0.0], [0.0, 0.0], [TURN, TURN])),
    (case("bce of one", nn.BCEWithLogitsLoss(), ZERO, 1), ZERO, ([60.0], [0.0], [TURN])),
    (case("bce, weighted", nn.BCEWithLogitsLoss(pos_weight=4 * ONE[0]), ONE, 1), ONE, ([-60.0], [0.0], [TURN])),
    (case("mse", nn.MSELoss(), BELOW, 2), BELOW, ([1.0, 1.0], [1.0, 1.0])),
    (Case("half", HALF, half, numbers), -3 * ONE, ([1.0], [1.0])),
]
NAMES = ("gradient", "hessian", "third")


@pytest.mark.parametrize(
    ("index", "attribute"), [(i, a) for i, (_, _, places) in enumerate(PLACES) for a in range(len(places))]
)
def test_no_bound_of_a_loss_can_be_smaller(index: int, attribute: int) -> None:
    of, given, places = PLACES[index]
    place = places[attribute]
    logits = torch.tensor([place], dtype=torch.float64)
    targets = of.loss.check(given, 1, len(place))
    divisor = of.loss.divisor(targets)
    gradient, hessian, third = exact(of, logits, given)
    truth = float((gradient.norm(dim=1), hessian, third)[attribute])
    norm = float(logits.norm())
    found = {
        "local": float(getattr(of.loss.local(logits, targets), NAMES[attribute])) / divisor,
        "uniform": float(getattr(of.loss.uniform(targets, len(place), norm), NAMES[attribute])) / divisor,
        "worst": of.loss.worst(len(place), norm, float(given.double().norm()))[attribute],
    }
    if of.name == "bce" and attribute == 0:
        del found["uniform"], found["worst"]  # two outputs at their limits: the case below
    if of.name == "smoothed" and attribute == 0:
        del found["worst"]  # holds for probabilities too, whatever the smoothing
    for name, bound in found.items():
        assert truth <= bound * (1 + 1e-12), name
        assert 0.99 * bound < truth, name


def test_the_third_derivative_of_a_saturated_softmax_is_bounded_by_its_curvature() -> None:
    """Sqrt 2 times the curvature is attained in the limit: no factor below it would do."""
    of = PLACES[0][0]
    logits = torch.tensor([[12.0, 0.0]], dtype=torch.float64)
    _, hessian, third = exact(of, logits, HARD)
    bound = float(of.loss.local(logits, HARD).third)
    assert float(third) <= bound < 1.001 * float(third)
    assert float(third) == pytest.approx(math.sqrt(2) * float(hessian), rel=1e-4)


@pytest.mark.parametrize(("start", "radius", "attribute"), [(0.0, 0.05, 0), (TURN, 0.05, 1), (14.0, 0.5, 1)])
def test_no_widening_over_a_ball_of_logits_can_be_smaller(start: float, radius: float, attribute: int) -> None:
    """Two classes, moved apart or together by the radius: what was added for the ball is needed to one per cent."""
    of = PLACES[0][0]
    logits = torch.tensor([[start, 0.0]], dtype=torch.float64)
    step = radius / math.sqrt(2) * torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    there = (exact(of, logits + step, HARD), exact(of, logits - step, HARD))
    here = of.loss.local(logits, HARD)
    wide = of.loss.local(logits, HARD, radius)
    pick = (lambda found: float(found[0].norm()), lambda found: float(found[1]))[attribute]
    truth = max(pick(found) for found in there)
    bound = float(getattr(wide, NAMES[attribute]))
    added = bound - float(here.residual_norm if attribute == 0 else here.hessian)
    assert truth <= bound
    assert bound - truth < 0.03 * added
