"""Convolutions and average pooling: the matrix is the operator, and bounds hold for steps of the shared kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.bounds import oracles
from tests.bounds.oracles import Case
from tests.bounds.test_feedforward import assert_refused
from tests.bounds.test_soundness import check, check_training, problem_of
from tvgrad.bounds import FeedForward
from tvgrad.bounds.network.shared_kernel import SharedKernel, Windows, pooling_matrix, shared_kernel

Build = Callable[[], nn.Sequential]


def normalised() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, 3))
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
        norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
        norm.weight.copy_(torch.tensor([1.5, -0.5, 1.0]))
    norm.requires_grad_(False)
    return model.eval()


MODELS: dict[str, tuple[tuple[int, ...], Build]] = {
    "plain": ((2, 6, 6), lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, 3))),
    "strided": (
        (2, 6, 5),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.SiLU(),
            nn.Conv2d(4, 2, 2, dilation=(1, 2)), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3),
        ),
    ),
    "grouped": (
        (4, 4, 4),
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding="same", groups=2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
        ),
    ),
    "signal": (
        (2, 9),
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, padding=1), nn.Softplus(threshold=40), nn.AvgPool1d(3), nn.Conv1d(3, 3, 1), nn.Tanh(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        ),
    ),
    "global pooling": (
        (1, 6, 6), lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ),
    "normalised": ((2, 6, 6), normalised),
    "pooled first": (
        (1, 6, 6),
        lambda: nn.Sequential(
            nn.AvgPool2d(3, 1), nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
        ),
    ),
}  # fmt: skip


def case_of(name: str, samples: int = 5, seed: int = 0, scale: float = 1.0) -> Case:
    shape, build = MODELS[name]
    torch.manual_seed(seed)
    model = build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Case(model, inputs, torch.arange(samples) % 3, nn.CrossEntropyLoss(), f"{name} {seed} {scale}")


@pytest.mark.parametrize("name", MODELS)
def test_the_network_read_is_the_module_with_its_gradient_and_products(name: str) -> None:
    case = case_of(name)
    problem = problem_of(case)
    h = case.inputs.flatten(1)
    for layer in problem.network.layers:
        h = layer.activation.value(h @ layer.matrix.T + layer.offset)
    torch.testing.assert_close(h, case.model(case.inputs), rtol=1e-12, atol=1e-13)
    assert list(problem.network.names) == [n for n, p in case.model.named_parameters() if p.requires_grad]
    assert torch.equal(problem.network.flat, case.start)
    direction = torch.randn(len(case.start), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = case.start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.value(at), at, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ direction, at)
    found = problem.products([direction])[0]
    assert float((problem.gradient.value - gradient.detach()).norm()) <= problem.gradient.error < 1e-9
    assert float((found.value - product).norm()) <= found.error < 1e-9
    moved = problem.at(case.start + direction)
    assert torch.equal(moved.network.flat, case.start + direction)


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_no_violation_by_steps_of_a_shared_kernel(name: str, seed: int) -> None:
    radius = (0.0, 0.01, 0.3, 2.0)[seed % 4]
    case = case_of(name, samples=4, seed=seed, scale=(1.0, 3.0)[seed % 2])
    check(case, seed, radius)
    check_training(case, 10.0 ** -(seed % 5))


def operator(shared: SharedKernel, steps: int = 60) -> tuple[float, torch.Tensor]:
    """The largest `||M(U) a||` over unit U and a found by alternating, and its U."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.rand(shared.kernel, generator=generator, dtype=torch.float64) + 0.5
    for _ in range(steps):
        kernel = kernel / kernel.norm()
        left, values, right = torch.linalg.svd(shared.matrix(kernel))
        kernel = shared.collect(torch.outer(left[:, 0], right[0]))
    return float(values[0]), kernel


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "overlap"),
    [
        ((1, 240), (1, 2), (1, 1), 2),
        ((6, 6), (2, 2), (2, 2), 1),
        ((1, 300), (1, 3), (1, 1), 3),
        ((3, 3), (1, 1), (1, 1), 1),
    ],
)
def test_the_gain_of_a_shared_kernel_cannot_be_smaller(
    image: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], overlap: int
) -> None:
    shared = shared_kernel((1, 1), image, Windows(kernel, stride))
    assert shared.overlap == overlap
    found, _ = operator(shared)
    assert 0.99 * shared.weight_gain < found <= shared.weight_gain
    bias = shared.offset(torch.ones(1, dtype=torch.float64))
    assert 0.99 * shared.bias_gain < float(bias.norm()) <= shared.bias_gain


@pytest.mark.parametrize("seed", range(6))
def test_gains_and_adjoints_of_any_convolution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    groups = pick(1, 3)
    channels = (groups * pick(1, 3), groups * pick(1, 3))
    kernel, stride, padding, dilation = (
        (pick(1, 4), pick(1, 4)),
        (pick(1, 3), pick(1, 3)),
        (pick(0, 2), 0),
        (pick(1, 3), 1),
    )
    image = (pick(7, 9), pick(7, 9))  # fmt: skip
    windows = Windows(kernel, stride, padding, dilation)
    shared = shared_kernel(channels, image, windows, groups)
    weight = torch.randn(channels[1], channels[0] // groups, *kernel, generator=generator, dtype=torch.float64)
    inputs = torch.randn(1, channels[0], *image, generator=generator, dtype=torch.float64)
    expected = nn.functional.conv2d(inputs, weight, None, stride, padding, dilation, groups)
    torch.testing.assert_close(shared.matrix(weight) @ inputs.flatten(), expected.flatten(), rtol=1e-12, atol=1e-12)
    assert tuple(expected.shape[2:]) == windows.count(image)
    norm = float(torch.linalg.matrix_norm(shared.matrix(weight), ord=2))
    assert norm <= shared.weight_gain * float(weight.norm())
    assert operator(shared, 20)[0] <= shared.weight_gain * (1 + 1e-12)
    given = torch.randn(shared.index.shape, generator=generator, dtype=torch.float64)
    inner = (shared.matrix(weight) * given).sum()
    torch.testing.assert_close(inner, weight.flatten() @ shared.collect(given), rtol=1e-11, atol=1e-11)
    assert float(shared.collect(given).norm()) <= shared.bias_gain * float(given.norm())


def test_pooling_averages() -> None:
    windows = Windows((3, 3), (2, 2))
    matrix = pooling_matrix(2, (6, 6), windows)
    inputs = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    expected = nn.functional.avg_pool2d(inputs, 3, 2)
    torch.testing.assert_close(matrix @ inputs.flatten(), expected.flatten())
    assert windows.count((6, 6)) == tuple(expected.shape[2:])


IMAGES = torch.ones(2, 2, 6, 6)
REFUSED: dict[str, tuple[nn.Module, torch.Tensor, str]] = {
    "flat data": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), torch.ones(2, 72), "flat data"),
    "a signal": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), torch.ones(2, 2, 6), "3 dimensions"),
    "channels": (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten()), IMAGES, "3 channels and is given 2"),
    "no flatten": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Linear(4, 3)), IMAGES, "Flatten"),
    "images at the end": (nn.Sequential(nn.Conv2d(2, 3, 3)), IMAGES, "ends with images"),
    "reflecting": (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), IMAGES, "reflect"),
    "even kernel": (nn.Sequential(nn.Conv2d(2, 3, 2, padding="same")), IMAGES, "odd"),
    "max pooling": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)), IMAGES, "MaxPool2d"),
    "padded pooling": (nn.Sequential(nn.AvgPool2d(2, padding=1)), IMAGES, "padding"),
    "unequal pooling": (nn.Sequential(nn.AdaptiveAvgPool2d(4)), IMAGES, "different sizes"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 3, 3)), IMAGES, "ConvTranspose2d"),
    "too small": (nn.Sequential(nn.Conv2d(2, 3, 9)), IMAGES, "leaves nothing"),
    "too large": (nn.Sequential(nn.Conv2d(2, 64, 3, padding=1)), torch.ones(1, 2, 64, 64), "smaller images"),
    "train norm": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), IMAGES, "eval"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_are_refused_by_name(name: str) -> None:
    model, inputs, words = REFUSED[name]
    assert_refused(model, inputs, torch.zeros(len(inputs), dtype=torch.long), words)


def test_a_shared_kernel_is_not_bounded_by_its_copies() -> None:
    """The norm of the parameters is the kernel's: a step of norm R moves the operator by sqrt(overlap) R at most."""
    case = case_of("plain")
    layer = problem_of(case).network.layers[0]
    assert layer.moves_weight == pytest.approx(3.0)
    assert layer.moves_bias == pytest.approx(4.0)
    assert math.sqrt(16) * 3 > layer.moves_weight  # what the copies' Frobenius norm would give
    frozen = case.model.requires_grad_(False)
    frozen[3].requires_grad_(True)
    held = FeedForward(frozen, case.inputs, case.targets)
    assert held.network.layers[0].moves_weight == held.network.layers[0].moves_bias == 0
    assert oracles.gradient_norms(case, case.start[None]).shape == (1,)
