"""What a program may hold: everything else is refused in a sentence that names the operation and the line."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.bounds.program.programs import Transformer
from tvgrad.bounds import Program, UnsupportedProgram
from tvgrad.errors import TvgradError

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(6) % 3


class Body(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.body = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)  # type: ignore[operator]


def without_gradient(self: Body, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = torch.tanh(self.first(x))
    return self.second(h)


def changes_itself(self: Body, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        self.first.bias.add_(0.1)
    return self.second(torch.tanh(self.first(x)))


def branches(self: Body, x: torch.Tensor) -> torch.Tensor:
    return self.second(torch.tanh(self.first(x)) if x.sum() > 0 else self.first(x))


REFUSED = {
    "dropout": (lambda s, x: s.second(s.drop(s.first(x))), "dropout|bernoulli|rand"),
    "batch norm": (lambda s, x: s.second(s.norm(s.first(x))), "batch_norm|capture|buffers"),
    "no_grad": (without_gradient, "set_grad_enabled"),
    "detached": (lambda s, x: s.second(torch.tanh(s.first(x)).detach()), "detach"),
    "changes itself": (changes_itself, "set_grad_enabled|capture|changes"),
    "branch": (branches, "cannot capture"),
    "mean over samples": (lambda s, x: s.second(s.first(x) - s.first(x).mean(0)), "depend on each other"),
    "half precision": (lambda s, x: s.second(s.first(x).float().double()), "float32"),
    "largest entry": (lambda s, x: s.second(s.first(x) * s.first(x).amax(1, keepdim=True)), "amax"),
    "division": (lambda s, x: s.second(x / (1 + s.first(x) ** 2)), "div"),
    "integers": (lambda s, x: s.second(s.first(x).long().double()), "whole numbers|_to_copy"),
    "comparison": (lambda s, x: s.second(s.first(x) * (x > 0)), r"aten.gt.Scalar makes whole numbers of real ones \("),
    "chosen": (lambda s, x: s.second(torch.where(x > 0, s.first(x), x)), r"aten.gt.Scalar makes whole numbers of real"),
    "overwritten": (
        lambda s, x: s.second(nn.functional.relu(s.first(x)).add_(1)),
        "PyTorch has no gradient .*in-?place",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bounds_is_refused_by_name(name: str) -> None:
    forward, told = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(UnsupportedProgram, match=f"(?s){told}"):
        Program(Body(forward), "cross_entropy", INPUTS, LABELS)


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def test_in_place_operations_and_views_are_read_as_they_are() -> None:
    def forward(self: Body, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h.add_(x)  # a skip whose result nobody takes
        return self.second(h.tanh_())

    model = Body(forward)
    program = Program(model.double(), "cross_entropy", INPUTS, LABELS)
    trained = [one for name, one in model.named_parameters() if not name.startswith("norm")]
    own = torch.autograd.grad(nn.functional.cross_entropy(model(INPUTS), LABELS), trained)
    assert (
        program.gradient.value[: sum(o.numel() for o in own)] - torch.cat([o.flatten() for o in own])
    ).norm() < 1e-13


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"),
        (nn.CrossEntropyLoss(reduction="sum"), "reduction"),
        (nn.L1Loss(), "l1|abs|sub"),
        (lambda out, y: nn.functional.mse_loss(out[:, :1], y.double()), "depend on each other"),
        (lambda out, y: nn.functional.cross_entropy(out, y) * len(y), "depend on each other"),
    ],
)
def test_losses_that_are_no_mean_are_refused(loss: object, told: str) -> None:
    with pytest.raises(UnsupportedProgram, match=f"(?s){told}"):
        Program(linear(), loss, INPUTS, LABELS)  # type: ignore[arg-type]


def test_targets_that_broadcast_within_a_sample_are_a_mean_over_the_samples() -> None:
    model = linear().double()
    program = Program(model, "mse", INPUTS, LABELS[:, None].double())
    loss = nn.functional.mse_loss(model(INPUTS), LABELS[:, None].double().expand(-1, 3))
    own = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    assert (program.gradient.value - own).norm() < 1e-13


def test_ignored_labels_and_bad_data_are_refused() -> None:
    with pytest.raises(UnsupportedProgram, match="negative"):
        Program(linear(), "cross_entropy", INPUTS, torch.tensor([0, 1, 2, -100, 0, 1]))
    with pytest.raises(TvgradError, match="6 inputs and 5 targets"):
        Program(linear(), "cross_entropy", INPUTS, LABELS[:5])
    with pytest.raises(TvgradError, match="NaN"):
        Program(linear(), "cross_entropy", INPUTS / 0, LABELS)
    with pytest.raises(TvgradError, match="empty"):
        Program(linear(), "cross_entropy", INPUTS[:0], LABELS[:0])
    with pytest.raises(TvgradError, match="no loss is called"):
        Program(linear(), "hinge", INPUTS, LABELS)
    with pytest.raises(UnsupportedProgram, match="no parameter"):
        Program(linear().requires_grad_(False), "cross_entropy", INPUTS, LABELS)


def test_parameters_on_one_storage_are_refused_and_hooks_too() -> None:
    shared = linear()
    shared[2].weight.data = shared[0].weight.data[:3]
    with pytest.raises(UnsupportedProgram, match=r"2\.weight and 0\.weight share their memory"):
        Program(shared, "cross_entropy", INPUTS, LABELS)
    view = linear()
    view[0].bias.data = view[0].weight.data[0]
    with pytest.raises(UnsupportedProgram, match="share their memory"):
        Program(view, "cross_entropy", INPUTS, LABELS)
    hooked = linear()
    hooked[0].weight.register_hook(lambda slope: 2 * slope)
    with pytest.raises(UnsupportedProgram, match=r"0\.weight has a hook"):
        Program(hooked, "cross_entropy", INPUTS, LABELS)
    hooked = linear()
    hooked[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedProgram, match="Linear has a hook"):
        Program(hooked, "cross_entropy", INPUTS, LABELS)


def test_a_softplus_that_may_pass_its_threshold_is_refused_and_any_other_taken() -> None:
    soft = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 3)).double()
    Program(soft, "cross_entropy", INPUTS, LABELS)
    far = copy.deepcopy(soft)
    far[0].bias.data += 19.9
    with pytest.raises(UnsupportedProgram, match="replaced by a line beyond 20"):
        Program(far, "cross_entropy", INPUTS, LABELS).hessian_norm(1.0)


def test_weights_and_data_are_copied() -> None:
    model, inputs = Transformer().double(), torch.randn(3, 3, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    program = Program(model, "cross_entropy", inputs, labels)
    before = program.measure()
    for tensor in [*model.parameters(), inputs]:
        tensor.data.mul_(3.0)
    labels.zero_()
    after = program.measure()
    assert torch.equal(before.gradient.hi, after.gradient.hi)
    assert before.hessian_norm == after.hessian_norm


def test_frozen_parameters_are_constants() -> None:
    model = linear().double()
    model[0].requires_grad_(False)
    program = Program(model, "cross_entropy", INPUTS, LABELS)
    assert program.names == ("2.weight", "2.bias")
    assert program.hessian_norm() < Program(linear().double(), "cross_entropy", INPUTS, LABELS).hessian_norm()


def test_capturing_warns_of_nothing_that_torch_does_inside(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    Program(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), "cross_entropy", INPUTS, LABELS)
    assert [str(one.message) for one in recwarn if issubclass(one.category, FutureWarning)] == []


def test_truth_values_and_whole_numbers_take_part_as_real_ones() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first, self.second = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = (x > 0)[..., None]
            h = torch.tanh(self.first(self.words(x))) * seen - x[..., None]
            return self.second(h.mean(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, words = Words().double(), torch.arange(24).reshape(6, 4) % 6
    program = Program(model, "cross_entropy", words, LABELS)
    nn.functional.cross_entropy(model(words), LABELS).backward()
    own = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    assert torch.allclose(program.gradient.value, own, rtol=1e-12, atol=1e-14)
