"""Programs drawn from all operations: gradients against 50 digits entry by entry, bounds against paths that climb."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from torch import nn

from tests.bounds.program.drawn import KINDS, drawn
from tests.bounds.program.test_norms import ascend, loss_of
from tvgrad.bounds import Program, UnsupportedProgram

FEW, MANY = range(3), range(100, 140)


def entries_outside(seed: int, width: int, length: int) -> tuple[int, int]:
    """How many entries of the gradient lie outside the bound, of how many; in both precisions."""
    model, inputs, targets = drawn(seed, width=width, length=length)
    program = Program(model, "cross_entropy", inputs, targets)
    outside = number = 0
    with mp.workdps(50):
        exact = model.exact_gradient(inputs, targets)
        for precise in (True, False):
            found = program.measure(precise=precise)
            pairs = zip(exact, found.gradient.hi.tolist(), found.gradient.lo.tolist(), strict=True)
            apart = [abs(true - mp.mpf(hi) - mp.mpf(lo)) for true, hi, lo in pairs]
            outside += sum(one > found.error for one in apart)
            assert mp.sqrt(sum(one**2 for one in apart)) <= found.error, model.plan
            assert found.error <= (1e-20 if precise else 1e-4), model.plan
            number += len(apart)
    return outside, number


@pytest.mark.parametrize("seed", FEW)
def test_no_entry_of_a_gradient_lies_outside_its_bound(seed: int) -> None:
    outside, number = entries_outside(seed, 4, 6)
    assert outside == 0
    assert number > 60


@pytest.mark.slow
def test_no_entry_of_tens_of_thousands_lies_outside_its_bound() -> None:
    found = [entries_outside(seed, 12, 5) for seed in MANY]
    assert sum(outside for outside, _ in found) == 0
    assert sum(number for _, number in found) >= 30_000


def test_few_seeds_have_most_of_the_operations() -> None:
    drawn_kinds = {kind for seed in MANY for kind, _ in drawn(seed)[0].plan}
    assert drawn_kinds == set(KINDS)


def climbs(seed: int) -> int:
    """Gradient, Hessian and change of the Hessian on paths that climb, against the bounds; how many comparisons."""
    model, inputs, targets = drawn(seed)
    program = Program(model, "cross_entropy", inputs, targets)
    model, inputs = model.double(), inputs.double()
    loss, flat = loss_of(model, inputs, targets)
    gradient = torch.func.grad(loss)
    vector = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        for _ in range(8):
            vector = torch.func.jvp(gradient, (flat,), (vector / vector.norm(),))[1]
    vector, compared = vector / vector.norm(), 0
    for radius in (1e-6, 1e-3, 0.05):
        steep = ascend(lambda theta: gradient(theta).norm(), flat, radius, 4, seed)
        bent = ascend(lambda theta: torch.func.jvp(gradient, (theta,), (vector,))[1].norm(), flat, radius, 4, seed)
        try:
            limits = program.gradient_norm(radius), program.hessian_norm(radius)
        except UnsupportedProgram:  # a softplus may reach its threshold somewhere in a large ball
            continue
        assert max(steep) <= limits[0], (model.plan, radius)
        assert max(bent) <= limits[1], (model.plan, radius)
        compared += len(steep) + len(bent)
    return compared


def test_no_climb_leaves_the_bounds_of_a_drawn_program() -> None:
    assert climbs(4) == 30


@pytest.mark.slow
def test_no_climb_leaves_the_bounds_of_many_drawn_programs() -> None:
    assert sum(climbs(seed) for seed in MANY) > 900
