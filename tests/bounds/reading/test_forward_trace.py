"""Reading modules by recording their forward: what is read is the module, and what is not known is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.bounds import residual_cases
from tests.bounds.residual_cases import STYLES, Block, Functional
from tests.bounds.test_feedforward import assert_refused
from tvgrad.bounds import FeedForward, UnsupportedNetwork
from tvgrad.bounds.rounding import passes

INPUTS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(9, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(9) % 3


def body(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), *after)


def last(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts, nn.Linear(4, 3))


def norm(width: int) -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(width)
    with torch.no_grad():
        made.running_mean.uniform_(-1, 1)
        made.running_var.uniform_(0.5, 2)
        made.weight.uniform_(-2, 2)
    return made.requires_grad_(False)


class Methods(nn.Module):
    """Operations as methods and functions, a value used three times, one that nobody uses, and a default argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.blocks = nn.Linear(4, 3), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.unused = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x.flatten(1)
        self.unused(x)
        for block in self.blocks:
            x = x + F.silu(block(x)) + x.sigmoid()
        return self.head(F.softplus(x, threshold=40)) if mask is None else mask


class Given(nn.Module):
    """A module whose forward is given, with one layer."""

    def __init__(self, forward: Callable[[nn.Linear, torch.Tensor], object], width: int = 4) -> None:
        super().__init__()
        self.layer, self.called = nn.Linear(4, width), forward

    def forward(self, x: torch.Tensor) -> object:
        return self.called(self.layer, x)


def in_place(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    h = layer(x)
    kept = h
    h += x
    return h + kept


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"style {style}": lambda style=style: last(Block(body(), style=style)) for style in STYLES},
    "projection": lambda: last(Block(body(), nn.Linear(4, 4), nn.SiLU()), Block(body())),
    "activation ends the body": lambda: last(Block(body(nn.Sigmoid()))),
    "activation opens the body": lambda: last(nn.Linear(4, 4), Block(nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))),
    "norm opens the body": lambda: last(nn.Linear(4, 4), Block(nn.Sequential(norm(4), nn.Tanh(), nn.Linear(4, 4)))),
    "norm on the data": lambda: last(Block(nn.Sequential(norm(4), nn.Linear(4, 4)))),
    "norm in the body": lambda: last(Block(body(norm(4)), after=nn.Tanh())),
    "norm after the sum": lambda: last(Block(body(), after=nn.Sequential(norm(4), nn.Tanh()))),
    "norm after the activation": lambda: last(Block(body(), after=nn.Sequential(nn.Tanh(), norm(4)))),
    "block at the end": lambda: nn.Sequential(nn.Linear(4, 3), Block(nn.Sequential(nn.Linear(3, 3), nn.GELU()))),
    "block alone": lambda: Block(body()),
    "nested": lambda: last(Block(nn.Sequential(Block(body()), nn.Linear(4, 4)))),
    "empty skip of an empty body": lambda: last(Block(nn.Identity())),
    "two activations": lambda: last(nn.Linear(4, 4), nn.Tanh(), nn.Sigmoid()),
    "functions": lambda: Functional(4, 3),
    "methods": Methods,
    "in place": lambda: last(Given(in_place)),
    "frozen body": lambda: last(Block(body().requires_grad_(False))),
    **residual_cases.images(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_read_is_the_module_with_its_gradient_and_products(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]().double().eval()
    inputs = IMAGES if name in residual_cases.images() else INPUTS
    problem = FeedForward(model, inputs, TARGETS)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    moving = [p for p in model.parameters() if p.requires_grad]
    assert list(problem.network.names) == names
    assert torch.equal(problem.network.flat, torch.cat([p.detach().flatten() for p in moving]))
    chunk = passes.Pass(problem.network, problem.loss, inputs.flatten(1), TARGETS)
    outputs = model(inputs)
    assert bool(((outputs - chunk.logits).norm(dim=1) <= chunk.logit_errors + 1e-15).all())
    assert float(chunk.logit_errors.max()) < 1e-10
    first = torch.autograd.grad(F.cross_entropy(outputs, TARGETS), moving, create_graph=True)
    flat = torch.cat([g.flatten() for g in first])
    direction = torch.randn(len(flat), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = torch.cat([p.flatten() for p in torch.autograd.grad(flat @ direction, moving)])
    found = problem.products([direction])[0]
    assert float((problem.gradient.value - flat).norm()) <= problem.gradient.error + 1e-14 < 1e-9
    assert float((found.value - product).norm()) <= found.error + 1e-13 < 1e-8
    moved = problem.at(problem.network.flat + direction)
    assert torch.equal(moved.network.flat, problem.network.flat + direction)


def test_float32_models_are_read_as_they_are() -> None:
    torch.manual_seed(3)
    model = last(Block(body(norm(4)), after=nn.Tanh())).eval()
    read = FeedForward(model, INPUTS.float(), TARGETS)
    assert torch.equal(read.network.flat, FeedForward(model.double(), INPUTS.float(), TARGETS).network.flat)


def test_reading_changes_nothing() -> None:
    class Counting(Block):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    model = last(Counting(body())).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FeedForward(model, INPUTS, TARGETS)
    assert model[0].calls == 0
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TwoInputs(Given):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + y


class Changing(Given):
    """Computes one thing the first time, when it is traced, and another later."""

    def __init__(self, first: Callable[..., object], later: Callable[..., object], width: int = 4) -> None:
        super().__init__(first, width)
        self.later = later

    def forward(self, x: torch.Tensor) -> object:
        found = super().forward(x)
        self.called = self.later
        return found


class Twice(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.body(x))


def without_gradient(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = layer(x)
    return x + h


def hooked() -> nn.Module:
    model = last(Block(body()))
    model[0].body[0].register_forward_hook(lambda *_: None)
    return model


def unused() -> nn.Module:
    model = last(Block(body()))
    model[0].idle = nn.Linear(2, 2)
    return model


def uncopied() -> nn.Module:
    model = last(Block(body()))
    model[0].kept = (part for part in range(3))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a product": (lambda: last(Given(lambda f, x: x * f(x))), r"module 0 \(Given\) calls mul"),
    "a mean": (lambda: last(Given(lambda f, x: x + f(x).mean())), "calls mean"),
    "a kinked function": (lambda: last(Given(lambda f, x: x + F.relu(f(x)))), "no bounded second derivative"),
    "a kinked module": (lambda: last(Block(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))), "module 0.body.1"),
    "an unknown function": (lambda: last(Given(lambda f, x: F.layer_norm(f(x), (4,)))), "layer_norm"),
    "options": (lambda: last(Given(lambda f, x: x + torch.sin(f(x), out=None))), "options"),
    "a number": (lambda: last(Given(lambda f, x: f(x) + 1.0)), "other than two of its own tensors"),
    "a multiple": (lambda: last(Given(lambda f, x: torch.add(x, f(x), alpha=2))), "other than two of its own tensors"),
    "a tensor": (lambda: last(Given(lambda f, x: x @ f.weight)), "layer.weight directly"),
    "a branch": (lambda: last(Given(lambda f, x: f(x) if x.sum() > 0 else x)), "calls sum"),
    "two inputs": (lambda: last(TwoInputs(lambda *_: None)), "more than one input"),
    "two outputs": (lambda: last(Given(lambda f, x: (x, f(x)))), "returns tuple"),
    "other widths": (lambda: nn.Sequential(Block(nn.Linear(4, 3))), "adds shapes"),
    "no gradient": (lambda: last(Given(without_gradient)), "without gradients"),
    "chance": (lambda: last(Changing(lambda f, x: x + f(x), lambda f, x: x)), "when it is called again"),
    "another shape": (lambda: Changing(lambda f, x: f(x), lambda f, x: f(x)[:, :2], width=3), "calls getitem"),
    "a cast": (lambda: last(Given(lambda f, x: f(x.float()))), "calls float"),
    "used twice": (lambda: last(Twice(nn.Linear(4, 4))), "used twice"),
    "hooks": (hooked, "hooks"),
    "unused weights": (unused, "0.idle.bias is trainable"),
    "not copied": (uncopied, "cannot be copied"),
    "activation of the data": (lambda: last(Given(lambda f, x: f(torch.tanh(x)))), "apply it to the data"),
    "train norm": (lambda: last(Block(body(nn.BatchNorm1d(4)))), "eval"),
    "dropout": (lambda: last(Block(body(nn.Dropout(0.5)))), "eval"),
    "no layer": (lambda: Given(lambda f, x: x), "no Linear layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_forwards_are_refused_by_name(name: str) -> None:
    build, words = REFUSED[name]
    assert_refused(build(), INPUTS, TARGETS, words)


def test_skips_of_matrices_that_do_not_fit_are_refused() -> None:
    square, wide = torch.eye(3), torch.ones(4, 3)
    for skips, words in [([(2, 1)], "itself or a later"), ([(1, 3)], "of 1 to 2"), ([(1, 2)], r"adds shapes")]:
        with pytest.raises(UnsupportedNetwork, match=words):
            FeedForward.from_matrices([square, wide], None, "tanh", 1.0, skips=skips)
    with pytest.raises(UnsupportedNetwork, match="no matrices"):
        FeedForward.from_matrices([], None, "tanh", 1.0)
