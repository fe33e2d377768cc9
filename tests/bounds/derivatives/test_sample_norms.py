"""What is measured for each sample against automatic differentiation: with squared Gram matrices, and without."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from tvgrad.bounds import FeedForward
from tvgrad.bounds.derivatives.sample_norms import SQUARINGS, SampleNorms, measure

WIDTHS = (5, 4, 6, 4, 3)
DEPTH = len(WIDTHS) - 1
EXACT = 1e-9  # what roundings add is near 1e-12 of a norm: a wrong factor is not
Pair = tuple[int, int]


class Model(nn.Module):
    """Four layers of three activations; with a skip, what the first gives is added to what the third computes."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(one, other) for one, other in itertools.pairwise(WIDTHS))
        self.bends = nn.ModuleList([nn.Tanh(), nn.Sigmoid(), nn.GELU()])
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.all_of(x, {})[0][-1]

    def all_of(
        self, x: torch.Tensor, moved: dict[tuple[str, int], torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """z of each layer and h_0, h_1, ..., some of them moved."""
        z, h = list[torch.Tensor](), [x]

        def made(kind: str, index: int, value: torch.Tensor) -> torch.Tensor:
            return value + moved[kind, index] if (kind, index) in moved else value

        for index, layer in enumerate(self.layers):
            value = layer(h[-1]) + h[1] if self.skip and index == 2 else layer(h[-1])
            z.append(made("z", index, value))
            if index < len(self.bends):
                h.append(made("h", index + 1, self.bends[index](z[-1])))
        return z, h


@pytest.fixture(scope="module", params=["chain", "skip"])
def problem(request: pytest.FixtureRequest) -> tuple[Model, FeedForward]:
    model = Model(request.param == "skip").double()
    inputs = torch.randn(7, WIDTHS[0], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return model, FeedForward(model, inputs, torch.arange(7) % WIDTHS[-1])


def jacobian(model: Model, inputs: torch.Tensor, kind: str, start: int, end: int) -> torch.Tensor:
    """dz_end in z_start or h_start, of each sample: (n, outputs, inputs)."""
    width = WIDTHS[start + 1] if kind == "z" else WIDTHS[start]

    def end_of(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return model.all_of(x, {(kind, start): delta})[0][end]

    return vmap(jacrev(end_of, argnums=1), in_dims=(0, None))(inputs, torch.zeros(width, dtype=torch.float64))


def slopes(model: Model, inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """s', s'' and s''' at z of each hidden layer, by differentiating again and again."""
    found = []
    for z, bend in zip(model.all_of(inputs, {})[0], model.bends, strict=False):
        x = z.detach().requires_grad_()
        value, values = bend(x), []
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            values.append(value.detach())
        found.append(values)
    return found


def measured(problem: FeedForward, squarings: int) -> SampleNorms:
    inputs, targets = problem.data()
    (found,) = measure(problem.network, problem.loss, inputs, targets, squarings=squarings)
    return found


def close(found: torch.Tensor, truth: torch.Tensor, factor: float = 1.0) -> None:
    """A bound is not below the truth and, but for a factor that is known, not above it."""
    assert found.shape == truth.shape
    assert (found >= truth * (1 - 1e-14)).all()
    assert (found <= truth * factor * (1 + EXACT) + 1e-300).all()


def norm(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrices, 2)


def columns(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.square().sum(1).sqrt()


def test_jacobians_with_squarings(problem: tuple[Model, FeedForward]) -> None:
    model, (inputs, _) = problem[0], problem[1].data()
    found, bends = measured(problem[1], SQUARINGS), slopes(model, inputs)
    for end in range(DEPTH):
        for start in range(end + 1):
            of_z = jacobian(model, inputs, "z", start, end)
            loose = min(of_z.shape[1:]) ** (1 / 2 ** (SQUARINGS + 2))
            close(found.z_jacobian[start, end], norm(of_z), loose)
            if end < DEPTH - 1:
                close(found.h_jacobian[start, end], norm(bends[end][0][:, :, None] * of_z), loose)
        for start in range(1, end + 1):
            of_h, second = jacobian(model, inputs, "h", start, end), bends[start - 1][1].abs()
            close(found.z_columns[start, end], columns(of_h).amax(1))
            close(found.z_columns_second[start, end], (columns(of_h) * second).amax(1))
            if end < DEPTH - 1:
                bent = columns(bends[end][0][:, :, None] * of_h)
                close(found.h_columns[start, end], bent.amax(1))
                close(found.h_columns_second[start, end], (bent * second).amax(1))
    keys = {(start, end) for end in range(DEPTH) for start in range(1, end + 1)}
    assert set(found.z_columns) == set(found.z_columns_second) == keys
    assert set(found.h_columns) == set(found.h_columns_second) == {pair for pair in keys if pair[1] < DEPTH - 1}


def test_jacobians_without_squarings(problem: tuple[Model, FeedForward]) -> None:
    """Rough norms are the Gram matrix's, and an activation takes its largest slope: no more, and never too little."""
    model, (inputs, _) = problem[0], problem[1].data()
    found, bends = measured(problem[1], 0), slopes(model, inputs)
    tight = measured(problem[1], SQUARINGS)
    for end in range(DEPTH):
        for start in range(end + 1):
            of_z = jacobian(model, inputs, "z", start, end)
            close(found.z_jacobian[start, end], norm(of_z), min(of_z.shape[1:]) ** (1 / 4))
            if end < DEPTH - 1:
                assert (found.h_jacobian[start, end] >= norm(bends[end][0][:, :, None] * of_z)).all()
                close(found.h_jacobian[start, end], bends[end][0].abs().amax(1) * found.z_jacobian[start, end])
        for start in range(1, end + 1):
            for kind in ("columns", "columns_second"):
                of_z = getattr(found, f"z_{kind}")[start, end]
                torch.testing.assert_close(of_z, getattr(tight, f"z_{kind}")[start, end], rtol=1e-12, atol=0.0)
                if end < DEPTH - 1:
                    of_h = getattr(found, f"h_{kind}")[start, end]
                    assert (of_h >= getattr(tight, f"h_{kind}")[start, end] * (1 - 1e-14)).all()
                    close(of_h, bends[end][0].abs().amax(1) * of_z)
    assert set(found.h_jacobian) == set(tight.h_jacobian)
    assert set(found.h_columns) == set(tight.h_columns)


@pytest.mark.parametrize("squarings", [0, SQUARINGS])
def test_what_layers_read_and_what_is_carried_back(problem: tuple[Model, FeedForward], squarings: int) -> None:
    model, (inputs, targets) = problem[0], problem[1].data()
    found, bends = measured(problem[1], squarings), slopes(model, inputs)
    z, h = model.all_of(inputs, {})
    for size, one in zip(found.sizes, h, strict=True):
        close(size, one.norm(dim=1).detach())
    for highest, one in zip(found.highest, z, strict=False):
        torch.testing.assert_close(highest, one.amax(1).detach(), rtol=1e-12, atol=1e-12)
    loss = nn.functional.cross_entropy(z[-1], targets, reduction="sum")
    of_z = torch.autograd.grad(loss, z, retain_graph=True)
    of_h = torch.autograd.grad(loss, h[1:])
    for index in range(DEPTH):
        close(found.z_gradient[index], of_z[index].norm(dim=1))
        if index < DEPTH - 1:
            orders = {0: torch.ones(()), 2: bends[index][1].abs(), 3: bends[index][2].abs()}
            for order, factor in orders.items():
                truth = (of_h[index].abs() * factor).amax(1)
                torch.testing.assert_close(found.h_gradient[order, index], truth, rtol=1e-9, atol=1e-15)
            for order in (1, 2, 3):
                close(found.maxima[order, index], bends[index][order - 1].abs().amax(1))
