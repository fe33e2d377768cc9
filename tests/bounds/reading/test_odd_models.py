"""Odd models: what a forward does behind the back of a reader is read right or refused, never read wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from tvgrad.bounds import FeedForward, UnsupportedNetwork, activation_of, register_activation
from tvgrad.bounds.rounding import passes
from tvgrad.errors import TvgradError

INPUTS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(9) % 3
Forward = Callable[["Odd", torch.Tensor], torch.Tensor]


class Odd(nn.Module):
    """Three layers, a counter, and a forward that is given."""

    def __init__(self, called: Forward) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.called, self.count = called, 0
        self.register_buffer("kept", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.called(self, x)


def in_place(change: Callable[[torch.Tensor, torch.Tensor], object]) -> Forward:
    def forward(m: Odd, x: torch.Tensor) -> torch.Tensor:
        h = m.b(torch.tanh(m.a(x)))
        change(h, x)
        return m.head(h)

    return forward


def shrinking(m: Odd, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        m.b.weight.mul_(0.9)
    return m.head(torch.tanh(m.b(torch.tanh(m.a(x)))))


def backbone(m: Odd, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = torch.tanh(m.b(torch.tanh(m.a(x))))
    return m.head(h)


def branch(test: Callable[[Odd, torch.Tensor], object]) -> Forward:
    """The other way has two activations."""

    def forward(m: Odd, x: torch.Tensor) -> torch.Tensor:
        h = m.b(torch.tanh(m.a(x)))
        return m.head(torch.tanh(h) if test(m, x) else torch.sigmoid(torch.tanh(h)))

    return forward


def tried(m: Odd, x: torch.Tensor) -> torch.Tensor:
    h = m.b(torch.tanh(m.a(x)))
    try:
        h = h.relu()
    except Exception:  # noqa: BLE001 - a careless model
        h = torch.tanh(h)
    return m.head(h)


def pre_activation(m: Odd, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    return m.head(h + m.b(F.silu(h, inplace=True)))


class Ends(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(_: object, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(_: object, g: torch.Tensor) -> torch.Tensor:
        return 0 * g


class Tricky(Ends):
    """Derivatives are on inside, and what is returned has another one."""

    @staticmethod
    def forward(_: object, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return torch.tanh(x)


def through(change: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    return lambda m, x: m.head(torch.tanh(change(m.b(torch.tanh(m.a(x))))))


def swapping(m: Odd, x: torch.Tensor) -> torch.Tensor:
    m.a, m.b = m.b, m.a
    return m.head(torch.tanh(m.b(torch.sigmoid(m.a(x)))))


def hooked_value(m: Odd, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return m.head(torch.tanh(m.b(torch.tanh(h))))


def by_view(m: Odd, x: torch.Tensor) -> torch.Tensor:
    h = m.b(torch.tanh(m.a(x)))
    flat = h.flatten(1)
    same = torch.flatten(h, 0).view(len(x), 4)
    same += x
    return m.head(torch.tanh(flat))


def squeezed(m: Odd, x: torch.Tensor) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()):
        return m.head(torch.tanh(m.b(torch.tanh(m.a(x)))))


def as_numpy(m: Odd, x: torch.Tensor) -> torch.Tensor:
    return m.head(torch.tanh(m.b(torch.from_numpy(np.tanh(np.asarray(x))))))


SCRIPTED = torch.jit.script(F.hardtanh) if hasattr(torch.jit, "script") else F.hardtanh

FORWARDS: dict[str, Forward] = {
    "clamp": in_place(lambda h, _: h.clamp_(-0.3, 0.3)),
    "hardtanh": in_place(lambda h, _: F.hardtanh(h, -0.3, 0.3, inplace=True)),
    "a skip in place": in_place(lambda h, x: h.add_(x)),
    "an out": in_place(lambda h, x: torch.add(h.detach(), x, out=h.detach())),
    "a number in place": in_place(lambda h, _: h.add_(1.0)),
    "an assigned slice": in_place(lambda h, x: h.__setitem__((slice(None), 0), x[:, 0])),
    "its data": in_place(lambda h, _: h.data.mul_(2)),
    "set": in_place(lambda h, x: h.set_(x)),
    "input in place": lambda m, x: m.head(torch.tanh(m.b(torch.tanh(m.a(x.add_(x)))))),
    "silu in place": pre_activation,
    "by a view": by_view,
    "weights shrink": shrinking,
    "weights swap": swapping,
    "backbone without gradients": backbone,
    "detached": through(lambda h: h.detach()),
    "data of it": through(lambda h: h.data),
    "inference mode": lambda m, x: m.head(torch.inference_mode()(lambda: torch.tanh(m.b(m.a(x))))()),
    "isinstance": branch(lambda _, x: isinstance(x, fx.Proxy)),
    "exact type": branch(lambda _, x: type(x) is torch.Tensor),
    "tracing": branch(lambda _, __: torch.jit.is_tracing()),
    "compiling": branch(lambda _, __: torch.compiler.is_compiling()),
    "exporting": branch(lambda _, __: torch.compiler.is_exporting()),
    "the data": branch(lambda _, x: bool(x.sum() > 0)),
    "any": branch(lambda _, x: x.any()),
    "item": branch(lambda _, x: x[0, 0].item() > 0),
    "tolist": branch(lambda _, x: x.tolist()[0][0] > 0),
    "numpy of it": branch(lambda _, x: x.numpy()[0, 0] > 0),
    "array": branch(lambda _, x: np.asarray(x)[0, 0] > 0),
    "dlpack": branch(lambda _, x: np.from_dlpack(x)[0, 0] > 0),
    "text": branch(lambda _, x: "-" in str(x)),
    "pointer": branch(lambda _, x: x.data_ptr() % 2),
    "contained": branch(lambda _, x: 1.0 in x),
    "a weight": branch(lambda m, _: float(m.a.weight[0, 0]) > 0),
    "a norm": branch(lambda m, _: m.a.weight.norm() > 1),
    "a dtype": branch(lambda _, x: x.dtype == torch.float64),
    "the kind": branch(lambda _, x: x.is_leaf),
    "the device": branch(lambda _, x: x.device.type == "cpu"),
    "the number of samples": branch(lambda _, x: len(x) > 8),
    "more samples": branch(lambda _, x: x.shape[0] > 4),
    "the call": branch(lambda m, _: m.count % 2),
    "a later call": branch(lambda m, _: m.count > 1),
    "chance": branch(lambda _, __: random.random() < 2),
    "numpy's chance": branch(lambda _, __: np.random.rand() < 2),  # noqa: NPY002 - what a careless model does
    "a caught refusal": tried,
    "no gradient by a function": through(Ends.apply),
    "another gradient by a function": through(Tricky.apply),
    "a hook on a value": hooked_value,
    "saved tensors": squeezed,
    "numpy": as_numpy,
    "scripted": through(lambda h: SCRIPTED(h)),
    "an operator": through(torch.ops.aten.hardtanh),
    "a cast": through(lambda h: h.float().double()),
    "half": through(lambda h: h.half().double()),
    "autocast": lambda m, x: torch.autocast("cpu")(lambda: m.head(torch.tanh(m.b(torch.tanh(m.a(x))))))().double(),
    "a mean over samples": through(lambda h: h - h.mean(0)),
    "rolled": through(lambda h: h.roll(1, 0)),
    "transposed": through(lambda h: h.T.T),
    "sorted": through(lambda h: h.sort(1).values),
    "sliced": through(lambda h: torch.cat([h[:, :2], h[:, 2:]], 1)),
    "a buffer": through(lambda h: h + h.new_ones(4)),
    "kept": lambda m, x: m.head(torch.tanh(m.b(torch.tanh(m.a(x))) + m.kept)),
    "shared weights by a function": lambda m, x: m.head(F.linear(torch.tanh(m.a(x)), m.a.weight)),
    "the same layer twice": lambda m, x: m.head(torch.tanh(m.a(torch.tanh(m.a(x))))),
    "vmap": lambda m, x: torch.func.vmap(lambda one: m.head(torch.tanh(m.b(m.a(one)))))(x),
    "checkpoint": through(lambda h: torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=False)),
    "a new parameter": lambda m, x: m.head(F.linear(torch.tanh(m.a(x)), nn.Parameter(torch.ones(4, 4).double()))),
    "a layer of the moment": lambda m, x: m.head(torch.tanh(nn.Linear(4, 4).double()(torch.tanh(m.a(x))))),
    "scaled": through(lambda h: torch.add(h, h, alpha=2)),
    "softplus with options": through(lambda h: F.softplus(h, 2.0, 40)),
    "elu with options": through(lambda h: F.celu(h, 2.0)),
    "dropout": through(lambda h: F.dropout(h, 0.5)),
    "gradient inside": through(lambda h: h + torch.autograd.grad(h.sum(), h)[0]),
}  # fmt: skip


def built(name: str) -> Odd:
    torch.manual_seed(3)
    model = Odd(FORWARDS[name]).double()
    if name == "backbone without gradients":
        nn.init.zeros_(model.head.weight)
    return model.train(name != "dropout")


def assert_right(problem: FeedForward, model: nn.Module, loss: Callable[..., torch.Tensor] = F.cross_entropy) -> None:
    """What was read has the model's outputs and gradients, at its weights and at others."""
    moving = [p for p in model.parameters() if p.requires_grad]
    for step in (0.0, 0.7):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in moving:
                p.add_(step * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        moved = problem.at(torch.cat([p.detach().flatten() for p in moving]))
        inputs = INPUTS.clone()
        assert problem.targets is not None
        outputs = model(inputs)
        chunk = passes.Pass(moved.network, moved.loss, INPUTS, problem.targets)
        torch.testing.assert_close(chunk.logits, outputs.detach(), rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(loss(outputs, TARGETS), moving)
        gap = moved.gradient.value - torch.cat([g.flatten() for g in found])
        assert float(gap.norm()) <= moved.gradient.error + 1e-14


@pytest.mark.parametrize("name", FORWARDS)
def test_odd_forwards_are_read_right_or_refused(name: str) -> None:
    try:
        problem = FeedForward(built(name), INPUTS, TARGETS)
    except UnsupportedNetwork:
        return
    assert name in READ, "it is not known whether this is read right"
    assert_right(problem, built(name))


READ = {
    "a skip in place", "silu in place", "isinstance", "exact type", "tracing", "compiling", "exporting",
    "softplus with options",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(READ))
def test_odd_forwards_that_are_plain_to_pytorch_are_read(name: str) -> None:
    FeedForward(built(name), INPUTS, TARGETS)


def chain() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def tied(tie: Callable[[nn.Linear, nn.Linear], object]) -> nn.Sequential:
    model = chain()
    tie(model[0], model[2])
    return model


def by_numpy(one: nn.Linear, other: nn.Linear) -> None:
    memory = np.ones((4, 4))
    one.weight.data, other.weight.data = torch.from_numpy(memory), torch.from_numpy(memory)


def frozen_view(one: nn.Linear, other: nn.Linear) -> None:
    other.weight = nn.Parameter(one.weight.data.view(4, 4), requires_grad=False)


def plain_weight(one: nn.Linear, _: nn.Linear) -> None:
    weight = one.weight.detach().clone().requires_grad_()
    del one.weight
    one.weight = weight


def made_weight(one: nn.Linear, other: nn.Linear) -> None:
    del other.weight
    other.weight = 2 * one.weight


def hooked_gradient(one: nn.Linear, _: nn.Linear) -> None:
    one.weight.register_hook(lambda g: 0 * g)


def hooked_after(one: nn.Linear, _: nn.Linear) -> None:
    one.weight.register_post_accumulate_grad_hook(lambda p: None)


TIES: dict[str, Callable[[nn.Linear, nn.Linear], object]] = {
    "data": lambda one, other: setattr(other.weight, "data", one.weight.data),
    "transposed": lambda one, other: setattr(other.weight, "data", one.weight.data.T),
    "a bias in a weight": lambda one, other: setattr(other.bias, "data", one.weight.data[1]),
    "halves of one memory": lambda one, other: setattr(other.bias, "data", one.weight.data.flatten()[2:6]),
    "numpy": by_numpy,
    "the parameter": lambda one, other: setattr(other, "weight", one.weight),
    "frozen view": frozen_view,
    "a view as a buffer": lambda one, other: other.register_buffer("seen", one.weight.data.view(-1)),
    "expanded": lambda one, _: setattr(one.weight, "data", torch.ones(1, 4).double().expand(4, 4)),
    "the data": lambda one, _: setattr(one.weight, "data", INPUTS[:4]),
    "a hook on a weight": hooked_gradient,
    "a hook behind a weight": hooked_after,
    "a plain tensor": plain_weight,
    "a tensor made of another": made_weight,
    "sparse": lambda one, _: setattr(one, "weight", nn.Parameter(one.weight.detach().to_sparse())),
}


@pytest.mark.parametrize("name", TIES)
def test_weights_that_move_together_and_hooks_on_them_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedNetwork) as refused:
        FeedForward(tied(TIES[name]), INPUTS, TARGETS)
    assert "\n" not in str(refused.value)


def test_weights_side_by_side_in_one_memory_are_read() -> None:
    model = chain()
    memory = torch.zeros(32).double()
    memory[:16], memory[16:] = model[0].weight.data.flatten(), model[2].weight.data.flatten()
    model[0].weight.data, model[2].weight.data = memory[:16].view(4, 4), memory[16:].view(4, 4)
    assert_right(FeedForward(model, INPUTS, TARGETS), model)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ],
)
def test_hooks_of_all_modules_are_refused(register: Callable[..., torch.utils.hooks.RemovableHandle]) -> None:
    handle = register(lambda *_: None)
    try:
        for loss in ("cross_entropy", nn.CrossEntropyLoss()):
            with pytest.raises(TvgradError, match="hooks"):
                FeedForward(chain(), INPUTS, TARGETS, loss)
    finally:
        handle.remove()
    FeedForward(chain(), INPUTS, TARGETS)


class Cube(nn.Identity):
    """Registered as sine, and says so; the second one computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


class Liar(nn.Identity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(1.5 * x)


class Leaky(nn.Tanh):
    """A subclass with the forward of another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x)


def test_a_registered_activation_is_what_it_computes() -> None:
    for kind in (Cube, Liar):
        register_activation(kind, activation_of("sin"))
    for last in (False, True):
        for kind in (Cube, Liar, Leaky):
            model = chain().append(kind()) if last else chain()
            model[1] = kind()
            if kind is Cube:
                assert_right(FeedForward(model, INPUTS, TARGETS), model)
            else:
                with pytest.raises(UnsupportedNetwork):
                    FeedForward(model, INPUTS, TARGETS)


def test_nn_identity_registered_as_something_else_is_not_read_as_nothing() -> None:
    with pytest.raises(TvgradError):
        register_activation(nn.Identity, activation_of("sin"))


def hooked_loss() -> nn.Module:
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda *given: 2 * given[-1])
    return loss


def patched_loss() -> nn.Module:
    loss = nn.CrossEntropyLoss()
    loss.forward = lambda f, y: 2 * F.cross_entropy(f, y)  # type: ignore[method-assign]
    return loss


class Doubled(nn.CrossEntropyLoss):
    def forward(self, f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(f, y)


@pytest.mark.parametrize("build", [hooked_loss, patched_loss, Doubled])
def test_a_loss_that_computes_something_else_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(TvgradError):
        FeedForward(chain(), INPUTS, TARGETS, build())


def test_targets_that_broadcast_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 1)).double()
    for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum")):
        with pytest.raises(TvgradError, match=r"\(samples, 1\)"):
            FeedForward(model, INPUTS, INPUTS[:, 0], loss)
    FeedForward(model, INPUTS, INPUTS[:, :1], nn.MSELoss())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_happens_to_tensors_afterwards_changes_nothing(dtype: torch.dtype) -> None:
    model, inputs = chain().to(dtype), INPUTS.to(dtype, copy=True)
    targets = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = torch.ones(3).to(dtype)
    losses = [nn.MSELoss(), nn.BCEWithLogitsLoss(weight)]
    problems = [FeedForward(model, inputs, targets, loss) for loss in losses]
    before = [FeedForward(model, inputs, targets, loss).certificate(0.01, 3) for loss in losses]
    matrices = [p.detach() for p in model.parameters()][::2], [p.detach() for p in model.parameters()][1::2]
    norms = torch.ones(9).to(dtype)
    bare = FeedForward.from_matrices(*matrices, "tanh", norms)
    known = FeedForward.from_matrices(*matrices, "tanh", norms).hessian_norm(0.1)
    with torch.no_grad():
        for tensor in (*model.parameters(), inputs, targets, weight, norms):
            tensor.mul_(3)
    assert [problem.certificate(0.01, 3) for problem in problems] == before
    assert bare.hessian_norm(0.1) == known


def test_tensors_that_require_gradients_are_taken_as_numbers() -> None:
    weight = torch.ones(3).double().requires_grad_()
    inputs, targets = INPUTS.clone().requires_grad_(), torch.rand(9, 3).double().requires_grad_()
    problem = FeedForward(chain(), 1 * inputs, 1 * targets, nn.BCEWithLogitsLoss(weight, pos_weight=2 * weight))
    assert problem.certificate(0.01, 3).error_bound > 0
    matrices = [torch.eye(3).double().requires_grad_(), 2 * torch.eye(3).double().requires_grad_()]
    bare = FeedForward.from_matrices(matrices, None, "tanh", 1 * inputs.norm(dim=1))
    assert bare.certificate(1e-3, 3).error_bound > 0


@pytest.mark.parametrize("shape", [(0, 4), (0,), (3, 0), (0, 2, 5, 5)])
def test_empty_data_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TvgradError, match=r"empty|shape"):
        FeedForward(chain(), torch.zeros(shape), TARGETS[:0])
    with pytest.raises(TvgradError, match="empty"):
        FeedForward.from_matrices([torch.eye(3)], None, "tanh", torch.zeros(0))


def test_a_class_weight_of_zero_is_no_obstacle_where_targets_are_given() -> None:
    loss = nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0]).double())
    certificate = FeedForward(chain(), INPUTS, TARGETS, loss).certificate(0.01, 3)
    assert certificate.lower_bound > 0
    with pytest.raises(TvgradError, match="all targets are zero"):
        FeedForward(chain(), INPUTS, 0 * TARGETS, loss).certificate(0.01, 3)
