"""Reading networks: what is read is what PyTorch computes, and everything else is refused by name."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from tvgrad.bounds import FeedForward, NoCertificate, UnsupportedNetwork
from tvgrad.bounds.derivatives import sample_norms
from tvgrad.bounds.rounding import passes
from tvgrad.errors import TvgradError

INPUTS = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(9) % 3


def forward(problem: FeedForward, inputs: torch.Tensor) -> torch.Tensor:
    h = inputs.flatten(1)
    for layer in problem.network.layers:
        h = layer.activation.value(h @ layer.matrix.T + layer.offset)
    return h


def plain(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), *middle, nn.Linear(4, 3)).double()


def normalised(order: str) -> nn.Sequential:
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.1, -0.4, 0.2, 1.0]))
        norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 0.1]))
        norm.weight.copy_(torch.tensor([1.5, -0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.3, 0.1, 0.0, -1.0]))
    norm.requires_grad_(False)
    return plain(norm, nn.Tanh()).eval() if order == "before" else plain(nn.Tanh(), norm).eval()


MODELS = {
    "plain": plain(nn.Tanh()),
    "nested": nn.Sequential(nn.Flatten(), nn.Sequential(plain(nn.GELU()), nn.Identity()), nn.Dropout(0.3)).eval(),
    "one layer": nn.Linear(5, 3).double(),
    "no bias": nn.Sequential(nn.Linear(5, 4, bias=False), nn.SiLU(), nn.Linear(4, 3, bias=False)).double(),
    "last activation": plain(nn.Tanh()).append(nn.Sigmoid()),
    "norm before": normalised("before"),
    "norm after": normalised("after"),
    "float32": plain(nn.Sigmoid()).float(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_read_is_the_module(name: str) -> None:
    model = MODELS[name]
    problem = FeedForward(model, INPUTS, TARGETS)
    torch.testing.assert_close(forward(problem, INPUTS), model.double()(INPUTS), rtol=1e-12, atol=1e-13)
    expected = [n for n, p in model.named_parameters() if p.requires_grad]
    assert list(problem.network.names) == expected


@pytest.mark.parametrize("name", MODELS)
def test_gradient_and_products_lie_within_their_error(name: str) -> None:
    model = MODELS[name].double()
    problem = FeedForward(model, INPUTS, TARGETS)
    moving = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(nn.functional.cross_entropy(model(INPUTS), TARGETS), moving, create_graph=True)
    flat = torch.cat([g.flatten() for g in first])
    direction = torch.randn(len(flat), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = torch.cat([p.flatten() for p in torch.autograd.grad(flat @ direction, moving)])
    found = problem.products([direction])[0]
    assert (problem.gradient.value - flat).norm() <= problem.gradient.error + 1e-14
    assert (found.value - product).norm() <= found.error + 1e-13
    assert problem.gradient.error < 1e-10
    assert found.error < 1e-10
    assert problem.gradient_norm() == pytest.approx(float(flat.detach().norm()), rel=1e-6)


def test_chunks_change_nothing() -> None:
    whole, parts = (FeedForward(MODELS["plain"], INPUTS, TARGETS, chunk_size=size) for size in (None, 2))
    assert parts.hessian_norm(0.1) == pytest.approx(whole.hessian_norm(0.1), rel=1e-12)
    assert parts.hessian_lipschitz() == pytest.approx(whole.hessian_lipschitz(), rel=1e-12)
    torch.testing.assert_close(parts.gradient.value, whole.gradient.value, rtol=1e-12, atol=1e-15)


def test_no_more_than_a_chunk_is_held_at_once(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Whatever the number of samples, matrices and passes live for one chunk; a few numbers a sample stay."""
    alive: weakref.WeakSet[passes.Pass] = weakref.WeakSet()
    most, sizes = [0], []
    begin, chunk = passes.Pass.__init__, sample_norms._measure_chunk

    def counted(self: passes.Pass, *arguments: object) -> None:
        begin(self, *arguments)
        alive.add(self)
        gc.collect()
        most[0] = max(most[0], len(alive))
        sizes.append(self.samples)

    def recorded(*arguments: object) -> sample_norms.SampleNorms:
        sizes.append(len(arguments[2]))
        return chunk(*arguments)

    monkeypatch.setattr(passes.Pass, "__init__", counted)
    monkeypatch.setattr(sample_norms, "_measure_chunk", recorded)
    inputs, targets = INPUTS.repeat(8, 1), TARGETS.repeat(8)
    gc.freeze()  # else each collection looks at all that was ever imported
    request.addfinalizer(gc.unfreeze)
    problem = FeedForward(MODELS["plain"], inputs, targets, chunk_size=16)
    assert problem.certificate(1e-3, 3).lower_bound > 0
    assert max(sizes) == 16
    assert sum(sizes) >= 3 * len(inputs)
    assert most[0] <= 3  # the first, the one in use, and the one that is being made


def test_frozen_layers_do_not_move() -> None:
    model = plain(nn.Tanh())
    free = FeedForward(model, INPUTS, TARGETS)
    model[2].requires_grad_(False)
    held = FeedForward(model, INPUTS, TARGETS)
    assert held.network.parameters == 24
    assert held.hessian_norm(0.5) < free.hessian_norm(0.5)
    assert held.worst_case(0.5).hessian[1].sum() == 0


def test_bounds_grow_with_the_radius_and_are_ordered() -> None:
    problem = FeedForward(MODELS["plain"], INPUTS, TARGETS)
    for quantity in (problem.gradient_norm, problem.hessian_norm, problem.hessian_lipschitz):
        values = [quantity(radius) for radius in (0.0, 0.01, 0.1, 1.0)]
        assert values == sorted(values)
    uniform = problem.closed_form(0.1)
    assert problem.hessian_norm(0.1) <= problem.worst_case(0.1).hessian_norm <= uniform.hessian_norm
    assert problem.gradient_norm(0.1) <= uniform.gradient_norm


def test_matrices_without_data_give_the_worst_case() -> None:
    model = MODELS["plain"].double()
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    known = FeedForward(model, INPUTS, TARGETS)
    bare = FeedForward.from_matrices(weights, biases, "tanh", INPUTS.norm(dim=1))
    assert bare.hessian_norm(0.1) == pytest.approx(known.closed_form(0.1).hessian_norm, rel=1e-9)
    certificate = bare.certificate(1e-6, 5)
    assert certificate.method.startswith("closed")
    assert certificate.lower_bound == 0
    with pytest.raises(TvgradError, match="samples and their targets"):
        bare.products([torch.zeros(3)])


def test_a_summed_loss_is_as_many_times_larger_as_there_are_samples() -> None:
    model = MODELS["plain"].double()
    given = ([model[0].weight, model[2].weight], [model[0].bias, model[2].bias], "tanh")
    known = FeedForward(model, INPUTS, TARGETS, nn.CrossEntropyLoss(reduction="sum"))
    mean = FeedForward(model, INPUTS, TARGETS)
    assert known.closed_form(0.1).hessian_norm == pytest.approx(9 * mean.closed_form(0.1).hessian_norm, rel=1e-12)
    assert known.hessian_norm(0.1) == pytest.approx(9 * mean.hessian_norm(0.1), rel=1e-12)
    bare = FeedForward.from_matrices(*given, INPUTS.norm(dim=1), nn.CrossEntropyLoss(reduction="sum"))
    assert bare.gradient_norm() == pytest.approx(known.closed_form().gradient_norm, rel=1e-12)
    with pytest.raises(TvgradError, match="grows with the number of samples"):
        FeedForward.from_matrices(*given, 3.0, nn.CrossEntropyLoss(reduction="sum"))


class Custom(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm()


def hooked() -> nn.Module:
    model = plain(nn.Tanh())
    model[0].register_forward_hook(lambda *_: None)
    return model


def tied() -> nn.Module:
    layer = nn.Linear(5, 5).double()
    return nn.Sequential(layer, nn.Tanh(), layer)


def poisoned(value: float) -> nn.Module:
    model = plain(nn.Tanh())
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


REFUSED = {
    "relu": (lambda: plain(nn.ReLU()), "ReLU"),
    "max pooling": (lambda: plain(nn.MaxPool1d(2)), "MaxPool1d"),
    "attention": (lambda: plain(nn.MultiheadAttention(4, 1)), "MultiheadAttention"),
    "custom": (lambda: plain(Custom()), "Custom"),
    "train norm": (lambda: plain(nn.BatchNorm1d(4)), "eval"),
    "trainable norm": (lambda: plain(nn.BatchNorm1d(4)).eval(), "requires_grad"),
    "dropout": (lambda: plain(nn.Dropout(0.5)), "eval"),
    "hooks": (hooked, "hooks"),
    "tied": (tied, "twice"),
    "parametrized": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), "Parametrized"),
    "nan": (lambda: poisoned(math.nan), "NaN"),
    "infinite": (lambda: poisoned(math.inf), "infinite"),
    "nothing": (lambda: nn.Sequential(nn.Flatten()), "no Linear"),
    "frozen": (lambda: plain(nn.Tanh()).requires_grad_(False), "requires_grad"),
    "activation first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(5, 3)), "does not follow"),
    "misfit": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(3, 3)), "follow one another"),
}


def assert_refused(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=words) as caught:
        FeedForward(model, inputs, targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_by_name(name: str) -> None:
    build, words = REFUSED[name]
    assert_refused(build(), INPUTS, TARGETS, words)


@pytest.mark.parametrize(
    ("inputs", "targets", "loss", "words"),
    [
        (INPUTS[:, :4], TARGETS, "cross_entropy", "4 features"),
        (INPUTS[:0], TARGETS[:0], "cross_entropy", "empty"),
        (INPUTS * math.nan, TARGETS, "cross_entropy", "NaN"),
        (INPUTS, TARGETS[:3], "cross_entropy", "targets"),
        (INPUTS, TARGETS, "hinge", "hinge"),
        (INPUTS[0], TARGETS, "cross_entropy", "shape"),
        (INPUTS[:, None], TARGETS, "cross_entropy", "Flatten"),
    ],
)
def test_unfit_data_and_losses_are_refused(inputs: torch.Tensor, targets: torch.Tensor, loss: str, words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        FeedForward(plain(nn.Tanh()), inputs, targets, loss)


def test_matrices_that_do_not_fit_are_refused() -> None:
    good = torch.ones(3, 4)
    for weights, biases, words in [
        ([good, good], None, "follow one another"),
        ([good], [torch.ones(2)], "one number for each"),
        ([good], [None, None], "one of each"),
        ([torch.ones(3)], None, "matrix"),
    ]:
        with pytest.raises(UnsupportedNetwork, match=words):
            FeedForward.from_matrices(weights, biases, "tanh", 1.0)
    with pytest.raises(TvgradError, match="radius"):
        FeedForward.from_matrices([good], None, "tanh", 1.0).hessian_norm(-1.0)


@pytest.mark.parametrize("epochs", [5, 20])
def test_a_rate_that_is_too_large_has_no_ball(epochs: int) -> None:
    with pytest.raises(NoCertificate, match="radius ran to"):
        FeedForward(MODELS["plain"], INPUTS, TARGETS).certificate(1e3, epochs, simulate=False)
