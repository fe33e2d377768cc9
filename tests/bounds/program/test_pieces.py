"""Functions with kinks: certificates where no argument reaches one, and none where one may."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import nn

from tests.bounds.program.tape import Node, numbers, softmax
from tests.bounds.program.test_program_certificate import true_error
from tvgrad.bounds import NoCertificate, Program
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.frozen_norm import FrozenNorm
from tvgrad.bounds.program.operation import Enclosure
from tvgrad.bounds.program.pieces import Kink, Pieces
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.recipes.mobilenet import InvertedResidual, MobileNetV2, imagenet_weights
from tvgrad.recipes.suite_data import load

Function = Callable[[torch.Tensor], torch.Tensor]


class Clamp(nn.Module):
    """In place, with numbers, and from one side."""

    def __init__(self, least: float | None, most: float | None) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.0
        x.clamp_(self.least, self.most)
        return x


def between(least: Any, most: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return (lambda v: min(max(v, least), most)), (lambda v: mp.mpf(least < v < most))


# of each module the function and its slope, in numbers of any kind
KINKED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (nn.ReLU, lambda v: max(v, 0), lambda v: mp.mpf(v > 0)),
    "relu in place": (lambda: nn.ReLU(inplace=True), lambda v: max(v, 0), lambda v: mp.mpf(v > 0)),
    "relu6": (nn.ReLU6, *between(0, 6)),
    "leaky": (lambda: nn.LeakyReLU(0.25), lambda v: v if v > 0 else v / 4, lambda v: mp.mpf(1 if v > 0 else 0.25)),
    "steep": (lambda: nn.LeakyReLU(-1.5), lambda v: v if v > 0 else -1.5 * v, lambda v: mp.mpf(1 if v > 0 else -1.5)),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.25, inplace=True), *between(-0.5, 0.25)),
    "clamp": (lambda: Clamp(-0.5, 0.75), *between(-0.5, 0.75)),
    "clamp below": (lambda: Clamp(-0.25, None), *between(-0.25, math.inf)),
    "clamp above": (lambda: Clamp(None, 0.25), *between(-math.inf, 0.25)),
}
SIZES = (3, 5, 4, 3)


def network(name: str, seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    make = KINKED[name][0]
    a, b, c = (nn.Linear(*pair) for pair in itertools.pairwise(SIZES))
    return nn.Sequential(a, make(), b, make(), c).double(), torch.randn(4, 3).double(), torch.arange(4) % 3


def exact_gradient(weights: list[Any], name: str, inputs: torch.Tensor, targets: torch.Tensor) -> list[Any]:
    """Of the mean cross-entropy, in numbers of mpmath."""
    _, value, slope = KINKED[name]
    nodes = [Node(one) for one in weights]
    for x, label in zip(inputs.numpy(), targets.tolist(), strict=True):
        at = Node(numbers(x)[None])
        for layer in range(3):
            at = at @ nodes[2 * layer].turned() + nodes[2 * layer + 1]
            at = at.apply(value, slope) if layer < 2 else at
        p = softmax(at).value
        p[0, label] -= 1
        Node(at.value, (at, lambda _, p=p: p / len(targets))).backward()
    return [one.slope for one in nodes]


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_the_error_in_fifty_digits_lies_between_the_bounds(name: str, seed: int) -> None:
    model, inputs, targets = network(name, seed)
    certificate = Program(model, "cross_entropy", inputs, targets).certificate(0.25, 3)
    with mp.workdps(50):
        start = [numbers(one.detach().numpy()) for one in model.parameters()]
        at, first = [one.copy() for one in start], list[Any]()
        for _ in range(3):
            gradient = exact_gradient(at, name, inputs, targets)
            first = first or gradient
            at = [one - mp.mpf(0.25) * g for one, g in zip(at, gradient, strict=True)]
        far = [(one - old + 3 * mp.mpf(0.25) * g).flatten() for one, old, g in zip(at, start, first, strict=True)]
        true = mp.sqrt(sum(one * one for part in far for one in part))
        assert certificate.lower_bound <= true <= certificate.error_bound
    assert certificate.error_bound <= 1.0001 * certificate.lower_bound


@pytest.mark.parametrize("name", ["relu", "leaky", "relu6", "hardtanh", "clamp", "clamp below", "clamp above"])
def test_values_and_slopes_are_those_of_pytorch_at_the_kinks_too(name: str) -> None:
    """A network of one number, whose argument is its weight."""
    kinks = {"relu6": (0.0, 6.0), "hardtanh": (-0.5, 0.25), "clamp": (-0.5, 0.75), "clamp below": (-0.25,)}
    one = torch.ones(1, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), KINKED[name][0]()).double()
    program = Program(model, "mse", one, 0.125 * one)
    for kink in kinks.get(name, (0.25,) if name == "clamp above" else (0.0,)):
        for weight in (kink, math.nextafter(kink, -9), math.nextafter(kink, 9), kink - 1, kink + 1):
            nn.init.constant_(model[0].weight, weight)  # type: ignore[arg-type]
            loss = (model(one) - 0.125).square().mean()
            (slope,) = torch.autograd.grad(loss, list(model.parameters()))
            at = torch.tensor([weight], dtype=torch.float64)
            found = program.measure(DoubleDouble(at, torch.zeros_like(at)))
            assert found.loss == pytest.approx(float(loss.detach()), rel=1e-15)
            assert float(found.gradient.hi) == pytest.approx(float(slope), rel=1e-14)


def test_a_ball_that_reaches_a_kink_has_no_bound_and_one_that_does_not_has() -> None:
    """The loss is (relu(w) + 1)^2: from w = 0.1 the kink is 0.1 away."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    nn.init.constant_(model[0].weight, 0.1)  # type: ignore[arg-type]
    one = torch.ones(1, 1, dtype=torch.float64)
    program = Program(model, "mse", one, -one)
    assert 2 <= program.hessian_norm(0.099) < 2.001
    assert program.hessian_norm(0.1) == math.inf
    assert program.gradient_norm(0.1) == math.inf
    assert program.certificate(0.01, 3).error_bound > 0
    with pytest.raises(NoCertificate, match=r"an argument of ReLU \(.*line \d+.*\) may be at a kink.*derivative jumps"):
        program.certificate(1.0, 2, simulate=False)


def test_an_argument_on_a_kink_has_no_certificate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
    inputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(NoCertificate, match="an argument of ReLU"):
        Program(model, "cross_entropy", inputs, torch.tensor([0, 1])).certificate(0.1, 3)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_in_a_ball_change_by_the_bound_at_most(seed: int) -> None:
    """Wherever there is a bound: in balls half as large as the way to the nearest kink, and larger ones."""
    model, inputs, targets = network("leaky", seed)
    program = Program(model, "cross_entropy", inputs, targets)
    flat = program.flat
    shapes = [(name, one.shape) for name, one in model.named_parameters()]

    def gradient(theta: torch.Tensor) -> torch.Tensor:
        pieces = theta.split([shape.numel() for _, shape in shapes])
        state = {name: part.reshape(shape) for (name, shape), part in zip(shapes, pieces, strict=True)}
        return torch.func.grad(
            lambda s: nn.functional.cross_entropy(torch.func.functional_call(model, s, (inputs,)), targets)
        )(state)  # type: ignore[no-any-return]

    def flattened(theta: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in gradient(theta).values()])  # type: ignore[attr-defined]

    here, bounded = flattened(flat), 0
    for radius in (1e-5, 1e-4, 1e-3, 1e-2):
        limit = program.hessian_norm(radius)
        bounded += math.isfinite(limit)
        for number in range(20):
            step = torch.randn(flat.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            step *= radius / step.norm()
            assert float((flattened(flat + step) - here).norm()) <= limit * radius
    assert bounded
    assert program.hessian_norm(10.0) == math.inf


def test_blocks_of_mobilenet_lie_between_their_bounds() -> None:
    """Frozen batch norms with trained scales, one of a channel that is always 0; ReLU6."""
    torch.manual_seed(0)
    blocks = nn.Sequential(InvertedResidual(3, 3, stride=1, expansion=2), InvertedResidual(3, 4, stride=2, expansion=2))
    model = nn.Sequential(blocks, nn.Flatten(), nn.Linear(16, 3)).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.2, 2.0)  # type: ignore[union-attr]
            nn.init.normal_(layer.bias)
    dead = model[0][0].conv[0][1]  # type: ignore[index]
    dead.running_var[1], dead.weight.data[1], dead.running_mean[1] = 0.0, 1e-3, 0.0
    model[0][0].conv[0][0].weight.data[1] = 0.0  # type: ignore[index]
    inputs, targets = torch.randn(4, 3, 4, 4).double(), torch.arange(4) % 3
    certificate = Program(model, "cross_entropy", inputs, targets).certificate(0.02, 4)
    true = true_error(model, inputs, targets, 0.02, 4)
    assert certificate.lower_bound * (1 - 1e-9) <= true <= certificate.error_bound * (1 + 1e-9)
    assert certificate.error_bound <= 1.0001 * certificate.lower_bound


@pytest.mark.slow
def test_the_last_two_blocks_of_mobilenet_have_a_certificate() -> None:
    encoder = MobileNetV2().double()
    encoder.load_state_dict(imagenet_weights())
    encoder.eval().requires_grad_(False)
    images, labels = load("mnist").train
    large = nn.functional.interpolate(images[:2].double().reshape(-1, 1, 28, 28), size=64).expand(-1, 3, -1, -1)
    with torch.no_grad():
        inputs = encoder.features[:16]((large - 0.45) / 0.225)
    blocks = encoder.features[16:].requires_grad_(False)
    blocks[:2].requires_grad_(True)
    head = nn.Linear(MobileNetV2.WIDTH, 10).double().requires_grad_(False)
    model = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    program = Program(model, "cross_entropy", inputs, labels[:2])
    certificate = program.certificate(3e-4, 5)
    true = true_error(model, inputs, labels[:2], 3e-4, 5)
    assert certificate.lower_bound * (1 - 1e-9) <= true <= certificate.error_bound * (1 + 1e-9)
    assert certificate.error_bound <= 1.0001 * certificate.lower_bound


def exactly(tensor: torch.Tensor, reach: float = 0.0) -> Enclosure:
    return Enclosure.of(Ball.exact(tensor[None], precise=False), torch.tensor([reach], dtype=torch.float64))


def test_a_frozen_batch_norm_is_bounded_channel_by_channel() -> None:
    """A channel with a tiny variance and as small a weight does not count; each bound is nearly reached."""
    torch.manual_seed(0)
    mean, inverse = torch.randn(3).double(), torch.tensor([0.5, 300.0, 2.0], dtype=torch.float64)
    operation = FrozenNorm(2)

    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x - mean[:, None, None]) * (inverse * w)[:, None, None] + b[:, None, None]

    def tested(x: torch.Tensor, w: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (p * function(x, w, w)).sum()  # the bias has no part in it

    for reach in (0.0, 0.1):
        centre = torch.randn(1, 3, 2, 2).double(), torch.tensor([1.0, 1e-3, -2.0]).double(), torch.randn(3).double()
        p = torch.randn(1, 3, 2, 2).double()
        x, w, b = (exactly(one, reach) for one in centre)
        given = [x, exactly(mean), exactly(inverse), w, b]
        out = exactly(function(*centre))
        first, second = operation.first(given, out), operation.second(given, out, exactly(p))
        bounds = [float(torch.as_tensor(first[index])) for index in (0, 3, 4)]
        for number in range(20):
            at = []
            for one in centre:
                step = torch.randn(one.shape, generator=torch.Generator().manual_seed(number)).double()
                at.append(one + reach * step / step.norm())
            true = [
                float(torch.linalg.matrix_norm(torch.func.jacrev(function, argnums=n)(*at).reshape(12, -1), 2))
                for n in range(3)
            ]
            assert all(mine <= most for mine, most in zip(true, bounds, strict=True))

            bend = torch.func.jacrev(torch.func.grad(tested), argnums=1)(at[0], at[1], p).reshape(12, 3)
            assert float(torch.linalg.matrix_norm(bend, 2)) <= float(second[0, 3])
            if not reach:
                assert all(mine >= 0.999999 * most for mine, most in zip(true, bounds, strict=True))
                assert float(torch.linalg.matrix_norm(bend, 2)) >= 0.999999 * float(second[0, 3])
    assert bounds[0] < 60  # where the two alone are 300 and 2


def test_numbers_of_a_frozen_norm_carry_their_rounding() -> None:
    """Of 1 / sqrt(variance + eps), which enters the derivatives."""
    rounded = Ball(torch.ones(1, 3).double(), None, torch.full((1, 3), 1e-3).double())
    x = Ball.exact(torch.randn(2, 1, 3, 4).double(), precise=False)
    numbers_ = Ball.exact(torch.ones(1, 3).double(), precise=False)
    args = [x, numbers_, rounded, numbers_, numbers_]
    out = FrozenNorm(1).value(*args)
    assert bool((out.err >= 0.999e-3 * (x.hi - 1).abs()).all())
    pulled = FrozenNorm(1).pull(args, out, Ball.exact(torch.ones_like(x.hi), precise=False), [True, *[False] * 4])[0]
    assert pulled is not None
    assert bool((pulled.err >= 0.999e-3).all())


def test_an_argument_that_is_not_known_exactly_may_lie_on_either_line() -> None:
    relu = Pieces("ReLU", ((0, 0), (1, 0)), (Kink(0),))
    far = 2.0**-20
    x = Ball(torch.tensor([[0.5, -0.5, far / 8, -far / 8, 0.0]]).double(), None, torch.full((1, 5), far).double())
    found, slope = relu.value(x), relu.derivative(x)
    for value in (x.hi - far, x.hi, x.hi + far):
        assert bool(((value.clamp(min=0) - found.hi).abs() <= found.err).all())
        assert bool((((value > 0).double() - slope.hi).abs() <= slope.err).all())
    assert slope.err.tolist() == [[0, 0, 1, 1, 1]]
    assert math.isnan(float(relu.value(Ball.exact(torch.tensor([[math.nan]]).double(), precise=True)).hi))
