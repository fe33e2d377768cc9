"""Soundness of derivative norms: each operation against its exact derivatives, and programs by ascent over balls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.bounds.program.programs import random_program
from tvgrad.bounds import Program
from tvgrad.bounds.program.affine import Linear, MatrixProduct, Multiple, Product, Sum
from tvgrad.bounds.program.attention import Attention
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.cross_entropy import RowsCrossEntropy
from tvgrad.bounds.program.elementwise import InverseRoot, Smooth, Square
from tvgrad.bounds.program.normalisation import LayerNorm, Softmax
from tvgrad.bounds.program.operation import Enclosure, Operation
from tvgrad.bounds.program.patches import Patches
from tvgrad.bounds.program.rearrangements import Total

Function = Callable[..., torch.Tensor]
LABELS = torch.tensor([[1]])


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(0.6 * q @ k.mT, -1) @ v


def layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, (4,), w, b, 0.1)


def rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(x, (4,), w, 0.1)


# what is read by the four windows of 2 x 2 in a picture of 3 x 3
WINDOWS = torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]])

CASES: dict[str, tuple[Operation, Function, tuple[tuple[int, ...], ...], float]] = {
    "matrix product": (MatrixProduct(), torch.matmul, ((2, 3), (3, 2)), 0.9),
    "linear": (Linear(), nn.functional.linear, ((1, 3), (2, 3), (2,)), 0.9),
    "product": (Product(), torch.mul, ((3,), (3,)), 0.99),
    "broadcast product": (Product(), torch.mul, ((2, 3), (1, 1)), 0.5),
    "sum": (Sum(-2.0), lambda a, b: a - 2 * b, ((2, 3), (3,)), 0.99),
    "scale": (Multiple(-3.0), lambda a: -3 * a, ((4,),), 0.99),
    "square": (Square(), torch.square, ((3,),), 0.99),
    "mean": (Total((0,), False, True), lambda a: a.mean(0), ((3, 2),), 0.99),
    "tanh": (Smooth("tanh"), torch.tanh, ((3,),), 0.5),
    "gelu": (Smooth("gelu"), nn.functional.gelu, ((3,),), 0.5),
    "gelu_tanh": (Smooth("gelu_tanh"), lambda x: nn.functional.gelu(x, approximate="tanh"), ((3,),), 0.5),
    "silu": (Smooth("silu"), nn.functional.silu, ((3,),), 0.5),
    "softmax": (Softmax(), lambda x: torch.softmax(x, -1), ((1, 2),), 0.5),
    "softmax of three": (Softmax(), lambda x: torch.softmax(x, -1), ((2, 3),), 0.3),
    "layer norm": (LayerNorm(0.1), layer_norm, ((2, 4), (4,), (4,)), 0.3),
    "rms norm": (LayerNorm(0.1, centred=False), rms_norm, ((2, 4), (4,)), 0.3),
    "patches": (Patches(WINDOWS), lambda x: nn.functional.unfold(x[None], 2)[0].T, ((1, 3, 3),), 0.99),
    "attention": (Attention(0.6, None), attention, ((1, 3, 2), (1, 3, 2), (1, 3, 2)), 0.2),
    "cross-entropy": (RowsCrossEntropy(0.0), lambda z: nn.functional.cross_entropy(z, LABELS[0]), ((1, 2),), 0.5),
}


def enclosed(args: list[torch.Tensor], reach: float) -> list[Any]:
    return [
        Enclosure.of(Ball.exact(one[None], precise=False), torch.tensor([reach], dtype=torch.float64)) for one in args
    ]


def second_norm(function: Function, args: list[torch.Tensor], i: int, j: int, p: torch.Tensor) -> float:
    """The norm of <p, D^2 f [u_i, v_j]>, an exact matrix of second derivatives."""

    def tested(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        moved = list(args)
        moved[i] = first
        if i != j:
            moved[j] = other
        return (p * function(*moved)).sum()

    gradient = torch.func.grad(tested, argnums=0)
    matrix = torch.func.jacfwd(gradient, argnums=0 if i == j else 1)(args[i], args[j])
    return float(torch.linalg.matrix_norm(matrix.reshape(args[i].numel(), args[j].numel()), 2))


@pytest.mark.parametrize("name", CASES)
def test_no_operation_exceeds_its_bounds_anywhere_in_a_ball(name: str) -> None:
    """Drawn centres, and 3 points on the rim of each ball; `tight` is how near the truth comes somewhere."""
    operation, function, shapes, tight = CASES[name]
    generator = torch.Generator().manual_seed(0)
    closest = 0.0
    for number in range(18):
        size, reach = (0.3, 1.0, 3.0)[number % 3], (0.0, 0.01, 0.3)[number // 3 % 3]
        args = [size * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        given = enclosed(args, reach) + ([LABELS] if name == "cross-entropy" else [])
        value = function(*args)
        out = Enclosure.of(Ball.exact(value[None], precise=False), torch.zeros(1, dtype=torch.float64))
        p = torch.randn(value.shape, generator=generator, dtype=torch.float64).abs()
        tested = Enclosure.of(Ball.exact(p[None], precise=False), torch.zeros(1, dtype=torch.float64))
        first, second = operation.first(given, out), operation.second(given, out, tested)
        for _ in range(1 if not reach else 3):
            points = []
            for one in args:
                direction = torch.randn(one.shape, generator=generator, dtype=torch.float64)
                points.append(one + reach * direction / direction.norm())
            for index, bound in enumerate(first[: len(args)]):
                true = torch.func.jacrev(function, argnums=index)(*points).reshape(value.numel(), -1)
                share = float(torch.linalg.matrix_norm(true, 2) / bound) if float(bound) else 0.0
                assert share <= 1, (name, index)
                closest = max(closest, share if not reach else 0.0)
                for other in range(index, len(args)):
                    limit = float(second.get((index, other), torch.zeros(1)))
                    assert second_norm(function, points, index, other, p) <= limit + 1e-12, (name, index, other)
    assert closest >= tight, closest


ATTAINED: dict[str, tuple[Operation, Function, list[list[float]], list[float] | None]] = {
    "square": (Square(), torch.square, [[0.7]], [1.0]),
    "product": (Product(), torch.mul, [[2.0], [3.0]], [1.0]),
    "softmax of two": (Softmax(), lambda x: torch.softmax(x, -1), [[0.3, 0.3]], None),
    "layer norm": (LayerNorm(0.1), lambda x: nn.functional.layer_norm(x, (3,), eps=0.1), [[0.2, 0.2, 0.2]], None),
    "tanh": (Smooth("tanh"), torch.tanh, [[0.0]], None),
    "rms norm": (
        LayerNorm(0.1, centred=False),
        lambda x: nn.functional.rms_norm(x, (3,), eps=0.1),
        [[0.0, 0.0, 0.0]],
        None,
    ),
    "bend of rms norm": (
        LayerNorm(0.1, centred=False),
        lambda x: nn.functional.rms_norm(x, (2,), eps=0.1),
        # a.u = 1 / sqrt 3 along the row itself, of length sqrt d: |x|^2 / d = eps / 2
        [[0.1**0.5, 0.0]],
        [1.0, 0.0],
    ),
    "inverse root": (InverseRoot(), lambda x: 1 / x.sqrt(), [[0.3]], None),
    "bend of inverse root": (InverseRoot(), lambda x: 1 / x.sqrt(), [[0.3]], [1.0]),
    "patches": (Patches(WINDOWS), lambda x: nn.functional.unfold(x[None], 2)[0].T, [[[[0.0] * 3] * 3]], None),
    "bend of tanh": (Smooth("tanh"), torch.tanh, [[0.6584789484624084]], [1.0]),
}


@pytest.mark.parametrize("name", ATTAINED)
def test_a_bound_one_per_cent_smaller_is_caught(name: str) -> None:
    operation, function, values, p = ATTAINED[name]
    args = [torch.tensor(one, dtype=torch.float64) for one in values]
    given, value = enclosed(args, 0.0), function(*args)
    out = Enclosure.of(Ball.exact(value[None], precise=False), torch.zeros(1, dtype=torch.float64))
    if p is None:
        (bound,), jacobian = operation.first(given, out), torch.func.jacrev(function)(*args)
        true = float(torch.linalg.matrix_norm(jacobian.reshape(value.numel(), -1), 2))
        assert 0.99 * float(bound) < true <= float(bound) * (1 + 1e-14)
    else:
        tested = torch.tensor(p, dtype=torch.float64)
        pairs = operation.second(
            given, out, Enclosure.of(Ball.exact(tested[None], precise=False), torch.zeros(1).double())
        )
        for (i, j), bound in pairs.items():
            true = second_norm(function, args, i, j, tested)
            assert 0.99 * float(bound) < true <= float(bound) * (1 + 1e-14)


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[Function, torch.Tensor]:
    """The mean loss as a function of the flat parameters."""
    parameters = dict(model.named_parameters())
    shapes = [(name, one.shape) for name, one in parameters.items()]
    flat = torch.cat([one.detach().flatten() for one in parameters.values()])

    def loss(theta: torch.Tensor) -> torch.Tensor:
        pieces = theta.split([shape.numel() for _, shape in shapes])
        state = {name: piece.reshape(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return nn.functional.cross_entropy(torch.func.functional_call(model, state, (inputs,)), targets)

    return loss, flat


def ascend(size: Function, start: torch.Tensor, radius: float, steps: int, seed: int) -> list[float]:
    """Values of a function on a path that climbs it within a ball."""
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at, found = start + radius * direction / direction.norm(), []
    for _ in range(steps):
        slope, value = torch.func.grad_and_value(size)(at)
        found.append(float(value))
        at = start + radius * ((at - start) / radius + slope / (slope.norm() + 1e-300))
        at = start + (at - start) * min(1.0, radius / float((at - start).norm()))
    return [*found, float(size(at))]


@pytest.mark.parametrize("seed", range(5))
def test_no_ascent_leaves_the_bounds_of_a_program(seed: int) -> None:
    model, inputs, targets = random_program(seed)
    program = Program(model, "cross_entropy", inputs, targets)
    loss, flat = loss_of(model, inputs, targets)
    gradient = torch.func.grad(loss)
    vector = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(10):
        vector = torch.func.jvp(gradient, (flat,), (vector / vector.norm(),))[1]
    vector = vector / vector.norm()
    assert float(torch.func.jvp(gradient, (flat,), (vector,))[1].norm()) <= program.hessian_norm()
    for radius in (1e-3, 0.03):
        climbed = ascend(lambda theta: gradient(theta).norm(), flat, radius, 8, seed)
        assert max(climbed) <= program.gradient_norm(radius)
        bent = ascend(lambda theta: torch.func.jvp(gradient, (theta,), (vector,))[1].norm(), flat, radius, 5, seed)
        assert max(bent) <= program.hessian_norm(radius)
        assert program.hessian_norm() <= program.hessian_norm(radius)


CLIMBERS, CLIMBS, PROGRAMS = 60, 14, 30  # twice, for gradient and Hessian, at two radii: 100,800 comparisons


def climb(size: Function, start: torch.Tensor, radius: float, seed: int) -> torch.Tensor:
    """The largest value of a function on paths that climb it within a ball, each from a point of its own."""
    many = torch.randn(CLIMBERS, len(start), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    away, found = radius * many / many.norm(dim=1, keepdim=True), []
    both = torch.func.vmap(torch.func.grad_and_value(size))
    for _ in range(CLIMBS):
        slopes, values = both(start + away)
        found.append(values)
        away = away / radius + slopes / (slopes.norm(dim=1, keepdim=True) + 1e-300)
        away = radius * away / away.norm(dim=1, keepdim=True).clamp(min=1.0)
    return torch.stack(found).amax()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + PROGRAMS))
def test_no_ascent_of_many_leaves_the_bounds_of_a_program(seed: int) -> None:
    model, inputs, targets = random_program(seed)
    program = Program(model, "cross_entropy", inputs, targets)
    loss, flat = loss_of(model, inputs, targets)
    gradient = torch.func.grad(loss)
    vector = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(10):
        vector = torch.func.jvp(gradient, (flat,), (vector / vector.norm(),))[1]
    vector = vector / vector.norm()
    for radius in (1e-3, 0.03):
        steepest = climb(lambda theta: gradient(theta).norm(), flat, radius, seed)
        assert float(steepest) <= program.gradient_norm(radius)
        bent = climb(lambda theta: torch.func.jvp(gradient, (theta,), (vector,))[1].norm(), flat, radius, seed + 1)
        assert float(bent) <= program.hessian_norm(radius)
