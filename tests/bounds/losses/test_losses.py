"""Losses: the gradient, Hessian and third derivative of PyTorch's own losses never exceed the bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tvgrad.bounds.losses import elementwise, softmax
from tvgrad.bounds.losses.base import Loss, UnknownLoss
from tvgrad.bounds.losses.registry import loss_of
from tvgrad.bounds.losses.softmax import THIRD, largest_curvature, widened_curvature, widened_gradient


@dataclass(frozen=True)
class Case:
    """A loss of the library, PyTorch's way to compute it, and targets that fit."""

    name: str
    loss: Loss
    reference: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    targets: Callable[[int, int, torch.Generator], torch.Tensor]
    outputs: tuple[int, ...] = (2, 3, 7)


def labels(n: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(outputs, (n,), generator=generator)


def some_ignored(n: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    chosen = labels(n, outputs, generator)
    chosen[1] = -100
    return chosen


def probabilities(n: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    return torch.softmax(3 * torch.randn(n, outputs, dtype=torch.float64, generator=generator), dim=1)


def bits(n: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(2, (n, outputs), generator=generator).double()


def numbers(n: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, outputs, dtype=torch.float64, generator=generator)


W3 = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)
P3 = torch.tensor([4.0, 1.0, 0.3], dtype=torch.float64)
CASES = [
    Case("cross_entropy", loss_of("cross_entropy"), F.cross_entropy, labels),
    Case("ignored", loss_of("cross_entropy"), F.cross_entropy, some_ignored),
    Case(
        "smoothed",
        loss_of(nn.CrossEntropyLoss(label_smoothing=0.2)),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        labels,
    ),
    Case("weighted", loss_of(nn.CrossEntropyLoss(weight=W3)), nn.CrossEntropyLoss(weight=W3), some_ignored, (3,)),
    Case(
        "weighted and smoothed",
        loss_of("cross_entropy", weight=W3, label_smoothing=0.3),
        nn.CrossEntropyLoss(weight=W3, label_smoothing=0.3),
        some_ignored,
        (3,),
    ),
    Case("probabilities", loss_of("cross_entropy"), F.cross_entropy, probabilities),
    Case(
        "weighted probabilities, summed",
        loss_of(nn.CrossEntropyLoss(weight=W3, label_smoothing=0.1, reduction="sum")),
        nn.CrossEntropyLoss(weight=W3, label_smoothing=0.1, reduction="sum"),
        probabilities,
        (3,),
    ),
    Case("bce", loss_of(nn.BCEWithLogitsLoss()), nn.BCEWithLogitsLoss(), bits, (1, 2, 5)),
    Case(
        "bce summed over outputs",
        loss_of("bce", outputs="sum"),
        lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="sum") / len(f),
        bits,
        (1, 2, 5),
    ),
    Case(
        "bce weighted, soft",
        loss_of(nn.BCEWithLogitsLoss(weight=W3, pos_weight=P3)),
        nn.BCEWithLogitsLoss(weight=W3, pos_weight=P3),
        probabilities,
        (3,),
    ),
    Case("bce sum", loss_of("bce", reduction="sum"), nn.BCEWithLogitsLoss(reduction="sum"), bits),
    Case("mse", loss_of("mse"), F.mse_loss, numbers, (1, 2, 5)),
    Case("mse sum", loss_of(nn.MSELoss(reduction="sum")), nn.MSELoss(reduction="sum"), numbers),
    Case("mse half", loss_of("mse_half"), lambda f, y: ((f - y) ** 2).sum() / 2 / len(f), numbers),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def third_norms(tensors: torch.Tensor) -> torch.Tensor:
    """Norms of symmetric trilinear forms (n, C, C, C) from below: power iteration on the diagonal, from many starts."""
    size = tensors.shape[1]
    eye = torch.eye(size, dtype=torch.float64)
    pairs = [eye[i] + sign * eye[j] for i, j in itertools.product(range(size), repeat=2) for sign in (1.0, -1.0)]
    u = torch.stack([p for p in pairs if float(p.norm()) > 0]).expand(len(tensors), -1, -1)
    u = u / u.norm(dim=2, keepdim=True)
    best = torch.zeros(len(tensors), dtype=torch.float64)
    peak = tensors.abs().amax(dim=(1, 2, 3))[:, None, None] + 1e-300
    for _ in range(40):
        v = torch.einsum("nijk,nbj,nbk->nbi", tensors, u, u)
        value = (v * u).sum(2, keepdim=True)
        best = torch.maximum(best, value.abs().amax(dim=(1, 2)))
        # shifted, so that the iteration does not swing between signs
        u = v * value.sign() / peak + u
        u = u / u.norm(dim=2, keepdim=True)
    return best


def exact(case: Case, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (n, C), largest curvatures (n,) and third-derivative norms (n,) of the mean loss, by autograd.

    No sample's logits enter another's loss, so one backward pass through a sum over samples serves them all.
    """
    f = logits.clone().requires_grad_()
    outputs = range(f.shape[1])

    def rows(of: torch.Tensor) -> torch.Tensor:
        if not of.requires_grad:
            return torch.zeros_like(f)
        return torch.autograd.grad(of.sum(), f, create_graph=True, materialize_grads=True)[0]

    gradient = rows(case.reference(f, targets))
    hessian = torch.stack([rows(gradient[:, j]) for j in outputs], dim=1)
    third = torch.stack([torch.stack([rows(hessian[:, j, k]) for k in outputs], 1) for j in outputs], 1)
    return gradient.detach(), torch.linalg.eigvalsh(hessian.detach())[:, -1], third_norms(third.detach())


@EVERY
def test_bounds_hold_at_the_logits_and_in_a_ball_and_everywhere(case: Case) -> None:
    generator = torch.Generator().manual_seed(5)
    n = 4
    for outputs, spread in itertools.product(case.outputs, (0.1, 1.0, 6.0, 40.0)):
        logits = spread * torch.randn(n, outputs, dtype=torch.float64, generator=generator)
        given = case.targets(n, outputs, generator)
        targets = case.loss.check(given, n, outputs)
        divisor = case.loss.divisor(targets)
        gradients, hessians, thirds = exact(case, logits, given)
        at = case.loss.local(logits, targets)
        torch.testing.assert_close(at.residual / divisor, gradients, rtol=1e-12, atol=1e-14)
        everywhere = case.loss.uniform(targets, outputs, logits.norm(dim=1))
        worst = case.loss.worst(outputs, float(logits.norm(dim=1).max()), float(given.double().norm(dim=-1).max()))
        norms = gradients.norm(dim=1)
        assert bool((at.residual_norm / divisor >= norms * (1 - 1e-15)).all())
        assert bool((at.residual_norm <= at.residual.norm(dim=1) * (1 + 1e-12) + 2 * at.residual_error).all())
        assert float(norms.sum()) <= worst[0] * (n if case.loss.reduction == "sum" else 1)
        for i in range(n):
            hessian, third = float(hessians[i]), float(thirds[i])
            # the oracle's own rounding
            assert hessian <= float(at.hessian[i]) / divisor + 1e-15
            assert hessian >= float(at.hessian[i]) / divisor * (1 - 1e-6) - 1e-14
            assert third <= float(at.third[i]) / divisor + 1e-14
            for bounds in (at, everywhere):
                assert float(norms[i]) <= float(bounds.gradient[i]) / divisor * (1 + 1e-15)
                assert hessian <= float(bounds.hessian[i]) / divisor + 1e-15
                assert third <= float(bounds.third[i]) / divisor + 1e-14
        # a point of the ball: bounds at the centre with its radius against the truth there
        for radius, uphill in ((1e-3, False), (0.3, True), (2.0, False)):
            step = torch.randn(n, outputs, dtype=torch.float64, generator=generator)
            if uphill:
                step = gradients + 1e-30
            step = step / step.norm(dim=1, keepdim=True).clamp(min=1e-300) * radius * (1 - 1e-12)
            wide = case.loss.local(logits, targets, torch.full((n,), radius, dtype=torch.float64))
            there = case.loss.local(logits + step, targets)
            moved, moved_hessians, moved_thirds = exact(case, logits + step, given)
            assert bool((moved.norm(dim=1) <= wide.gradient / divisor * (1 + 1e-14) + 1e-15).all())
            assert bool((there.hessian <= wide.hessian * (1 + 1e-8)).all())
            for i in range(n):
                assert float(moved_hessians[i]) <= float(wide.hessian[i]) / divisor + 1e-15
                assert float(moved_thirds[i]) <= float(wide.third[i]) / divisor + 1e-14


def largest(case: Case, outputs: int, attribute: int) -> float:
    """The largest gradient, Hessian or third derivative found by search over logits, for one set of targets."""
    rows = []
    for spread in torch.linspace(-60, 60, 1201, dtype=torch.float64):
        # two classes at most matter where the constants are attained; the others are sent to minus infinity
        row = torch.full((outputs,), -80.0, dtype=torch.float64)
        row[:2] = (torch.tensor([1.0, -1.0]) * spread)[:outputs]
        rows += [row[list(order)] for order in itertools.permutations(range(outputs))]
    targets = case.targets(1, outputs, torch.Generator().manual_seed(2))
    copies = targets.expand(len(rows), *targets.shape[1:])
    found = exact(case, torch.stack(rows), copies)[attribute].reshape(len(rows), -1)
    return len(rows) * float(found.norm(dim=1).max())


@pytest.mark.parametrize("attribute", [0, 1, 2])
@pytest.mark.parametrize("index", [0, 2, 4, 7, 9])
def test_uniform_bounds_are_attained(index: int, attribute: int) -> None:
    """A constant one per cent smaller would be wrong."""
    case = CASES[index]
    outputs = case.outputs[-1] if len(case.outputs) == 1 else case.outputs[0]
    if case.name == "weighted and smoothed":
        case = Case("no ignored", case.loss, case.reference, labels, (3,))
    targets = case.loss.check(case.targets(1, outputs, torch.Generator().manual_seed(2)), 1, outputs)
    bounds = case.loss.uniform(targets, outputs, math.inf)
    bound = float((bounds.gradient, bounds.hessian, bounds.third)[attribute]) / case.loss.divisor(targets)
    found = largest(case, outputs, attribute)
    assert found <= bound * (1 + 1e-12)
    tight = case.name != "bce weighted, soft" or attribute > 0
    assert not tight or found > 0.992 * bound


def test_constants_are_rounded_up() -> None:
    with mpmath.workdps(40):
        root = mpmath.sqrt
        for constant, exact_value in (
            (THIRD, root(6) / 9),
            (softmax.SQRT_2, root(2)),
            (elementwise._BCE_THIRD, 1 / (6 * root(3))),
        ):
            assert exact_value <= constant <= exact_value * (1 + mpmath.mpf("3e-16"))


def test_third_central_moment() -> None:
    """A variable of range w has |E (u - Eu)^3| <= w^3 / (6 sqrt 3), attained by two values."""
    p = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    two = p * (1 - p) * (1 - 2 * p)
    assert float(two.max()) == pytest.approx(1 / (6 * math.sqrt(3)), rel=1e-8)
    assert pytest.approx(math.sqrt(2) ** 3 / (6 * math.sqrt(3))) == math.sqrt(6) / 9
    generator = torch.Generator().manual_seed(0)
    weights = torch.softmax(4 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64), dim=1)
    values = torch.rand(20_000, 5, generator=generator, dtype=torch.float64)
    values[:, 0], values[:, 1] = 0, 1
    centred = values - (weights * values).sum(1, keepdim=True)
    assert float((weights * centred**3).sum(1).abs().max()) <= 1 / (6 * math.sqrt(3))


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100])
def test_curvature_against_eigenvalues_and_exact_two_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    for spread in (0.0, 0.01, 1.0, 5.0, 30.0, 1000.0):
        logits = spread * torch.randn(40, classes, dtype=torch.float64, generator=generator)
        p = torch.softmax(logits, dim=1)
        bounds = largest_curvature(p)
        eigenvalues = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None])[:, -1]
        assert bool((bounds >= eigenvalues - 1e-15).all())
        assert bool((bounds <= eigenvalues * (1 + 2e-9) + 3e-15).all())
        if classes == 2:
            for row, bound in zip(logits.tolist(), bounds.tolist(), strict=True):
                with mpmath.workdps(400):
                    q = 1 / (1 + mpmath.exp(mpmath.mpf(row[0]) - mpmath.mpf(row[1])))
                    assert 2 * q * (1 - q) <= bound <= 2 * q * (1 - q) * (1 + mpmath.mpf("2e-9")) + 2e-300


def test_curvature_of_three_classes_at_high_precision() -> None:
    """Saturated softmax, where eigenvalues in float64 lose all digits and a bound may not."""
    for logits in ([0.0, -30.0, -31.0], [0.0, 0.0, -50.0], [0.0, -200.0, -300.0], [3.0, 2.0, 1.0], [0.0, -1e-9, -2e-9]):
        with mpmath.workdps(300):
            weights = [mpmath.exp(mpmath.mpf(f)) for f in logits]
            p = [w / sum(weights) for w in weights]
            matrix = mpmath.matrix(3, 3)
            for i, j in itertools.product(range(3), repeat=2):
                matrix[i, j] = (p[i] if i == j else 0) - p[i] * p[j]
            truth = max(mpmath.eigsy(matrix, eigvals_only=True))
            bound = float(largest_curvature(torch.softmax(torch.tensor([logits], dtype=torch.float64), 1))[0])
            assert truth <= bound <= truth * (1 + mpmath.mpf("2e-9"))


def test_widening_takes_the_best_of_its_forms() -> None:
    curvature = torch.tensor([1e-12, 0.3, 0.5], dtype=torch.float64)
    near, far = torch.tensor(1e-3, dtype=torch.float64), torch.tensor(2000.0, dtype=torch.float64)
    assert float(widened_curvature(curvature, near)[0]) == pytest.approx(
        1e-12 * math.exp(math.sqrt(2) * 1e-3), rel=1e-9
    )
    assert float(widened_curvature(curvature, near)[1]) == pytest.approx(0.3 + math.sqrt(6) / 9 * 1e-3, rel=1e-9)
    assert widened_curvature(curvature, far).tolist() == [0.5, 0.5, 0.5]
    assert float(widened_gradient(curvature, far)[0]) == pytest.approx(1000)
    assert float(widened_gradient(curvature, near)[0]) == pytest.approx(1e-15, rel=1e-2)


def test_saturated_losses_keep_positive_bounds() -> None:
    logits = torch.tensor([[900.0, -900.0]], dtype=torch.float64)
    local = loss_of("bce").local(logits, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert 0 < float(local.hessian[0]) < 1e-290
    assert float(local.third[0]) > 0
    crossing = loss_of("bce", outputs="sum").local(logits[:, :1], torch.ones(1, 1).double(), 1000.0)
    assert float(crossing.hessian[0]) >= 0.25
    assert float(crossing.third[0]) >= 1 / (6 * math.sqrt(3))
    assert float(loss_of("cross_entropy").local(logits, torch.tensor([0])).hessian[0]) > 0


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: loss_of("hinge"), "hinge.*cross_entropy, bce"),
    (lambda: loss_of(nn.L1Loss()), "L1Loss"),
    (lambda: loss_of(nn.BCELoss()), "BCEWithLogitsLoss takes the logits"),
    (lambda: loss_of(nn.MSELoss(), half=True), "Options go with the name"),
    (lambda: loss_of(nn.MSELoss(reduction="none")), "neither 'mean' nor 'sum'"),
    (lambda: loss_of("bce", outputs="all"), "outputs 'all'"),
    (lambda: loss_of("mse", colour=1), "colour"),
    (lambda: loss_of("cross_entropy", label_smoothing=1.5), "between 0 and 1"),
    (lambda: loss_of("cross_entropy", weight=torch.tensor([-1.0])), "at least zero"),
    (lambda: loss_of("cross_entropy", weight=torch.ones(2)).check(torch.zeros(3, dtype=torch.long), 3, 4), "2 class"),
    (lambda: loss_of("cross_entropy").check(torch.tensor([0, 5]), 2, 3), "from 0 to 5.*3 outputs"),
    (lambda: loss_of("cross_entropy").check(torch.tensor([-100]), 1, 3), "no sample counts"),
    (lambda: loss_of("cross_entropy").check(torch.tensor([0]), 2, 3), r"shape \(1,\)"),
    (lambda: loss_of("cross_entropy").check(torch.ones(2, 3) * 2, 2, 3), "between 0 and 1"),
    (lambda: loss_of("cross_entropy").check(torch.tensor([], dtype=torch.long), 0, 3), "no targets"),
    (lambda: loss_of("cross_entropy", weight=torch.zeros(3)).divisor(torch.tensor([1])), "zero"),
    (lambda: loss_of("cross_entropy", weight=torch.tensor([0.0, 1.0])).worst(2, 1.0), "need the targets"),
    (lambda: loss_of("bce").check(torch.full((1, 2), 2.0), 1, 2), "between 0 and 1"),
    (lambda: loss_of("bce", pos_weight=torch.ones(3)).check(torch.ones(1, 2), 1, 2), "3 weights for 2"),
    (lambda: loss_of("mse").check(torch.full((1, 2), math.nan), 1, 2), "targets contain NaN"),
    (lambda: loss_of("mse").check(torch.ones(2), 2, 2), "shape"),
    (lambda: loss_of("mse").local(torch.full((1, 2), math.inf).double(), torch.ones(1, 2).double()), "logits contain"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UnknownLoss, match=message):
        make()


def test_loss_objects_and_aliases() -> None:
    loss = loss_of("BCE_with_logits")
    assert loss.name == "bce"
    assert loss_of(loss) is loss
    assert loss_of("mse").check(torch.ones(4), 4, 1).shape == (4, 1)


def fourth_along(case: Case, logits: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor) -> float:
    """The size of the fourth derivative of the first sample's loss along a direction, by nested differentiation."""
    divisor = case.loss.divisor(case.loss.check(targets, len(logits), logits.shape[1]))
    step = torch.zeros_like(logits)
    step[0] = direction / direction.norm()

    def value(t: torch.Tensor) -> torch.Tensor:
        return case.reference(logits + t * step, targets) * divisor

    found = value
    for _ in range(4):
        found = torch.func.grad(found)
    return abs(float(found(torch.zeros((), dtype=torch.float64))))


@EVERY
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_no_fourth_derivative_exceeds_its_bound(case: Case, spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for outputs in case.outputs:
        given = case.targets(2, outputs, generator)
        logits = spread * torch.randn(2, outputs, dtype=torch.float64, generator=generator)
        targets = case.loss.check(given, 2, outputs)
        largest = case.loss.uniform(targets, outputs, math.inf).hessian
        bound = float(case.loss.fourth(case.loss.local(logits, targets).hessian, largest)[0])
        eye = torch.eye(outputs, dtype=torch.float64)
        directions = [eye[0], *(eye[0] - one for one in eye[1:]), torch.randn(outputs, dtype=torch.float64)]
        for direction in directions:
            assert fourth_along(case, logits, given, direction) <= bound * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(("index", "difference"), [(0, 0.0), (0, 14.0), (7, 0.0)])
def test_the_bound_of_the_fourth_derivative_is_attained(index: int, difference: float) -> None:
    """Two classes alike, one that is nearly certain, and a bit: a bound one per cent smaller would be wrong."""
    case = CASES[index]
    outputs = 2 if index == 0 else 1
    logits = torch.zeros(1, outputs, dtype=torch.float64)
    logits[0, 0] = difference
    given = case.targets(1, outputs, torch.Generator().manual_seed(1))
    targets = case.loss.check(given, 1, outputs)
    largest = case.loss.uniform(targets, outputs, math.inf).hessian
    bound = float(case.loss.fourth(case.loss.local(logits, targets).hessian, largest)[0])
    direction = torch.tensor([1.0, -1.0][:outputs], dtype=torch.float64)
    truth = fourth_along(case, logits, given, direction)
    assert 0.99 * bound < truth <= bound * (1 + 1e-9)
