"""An activation that is another function from a number on has bounds where no pre-activation gets there, and no others.

`nn.Softplus` with its default threshold is the identity beyond 20, with a jump of 2e-9: there neither gradient nor
Hessian obeys any bound of the smooth function. What PyTorch's own softplus does, threshold included, is the oracle.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import mpmath
import pytest
import torch
from torch import nn

from tvgrad.bounds import FeedForward, NoCertificate, activation_of, multitask_gap_bound, register_activation
from tvgrad.bounds.activations.smooth import OutsideValidity, UnboundedActivation
from tvgrad.bounds.certificates.tubes import certify_steps
from tvgrad.bounds.network.network import Network
from tvgrad.errors import TvgradError

ORDERS = ("gradient_norm", "hessian_norm", "hessian_lipschitz")


def scalar(weight: float, threshold: float = 20.0, beta: float = 1.0) -> nn.Sequential:
    """One unit on the input 1, whose pre-activation is its weight."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Softplus(beta, threshold), nn.Linear(1, 1)).double()
    model[0].weight.data.fill_(weight)
    model[2].weight.data.fill_(1.0)
    model[2].requires_grad_(False)
    return model


ONE, TARGET = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 18.0, dtype=torch.float64)


def problem(weight: float, threshold: float = 20.0, beta: float = 1.0) -> FeedForward:
    return FeedForward(scalar(weight, threshold, beta), ONE, TARGET, "mse_half")


def wide(model: nn.Module) -> nn.Module:
    """The same model with the smooth function everywhere."""
    found = copy.deepcopy(model)
    for part in found.modules():
        if isinstance(part, nn.Softplus):
            part.threshold = 60.0
    return found


@pytest.mark.parametrize(("beta", "edge"), [(1.0, 20.0), (4.0, 5.0), (0.3, 20 / 0.3)])
def test_a_ball_is_taken_up_to_the_threshold_and_refused_from_there(beta: float, edge: float) -> None:
    """The pre-activation is the weight itself: the largest ball is known."""
    far = problem(edge - 1, beta=beta)
    for order in ORDERS:
        assert math.isfinite(getattr(far, order)(1 - 1e-6))
        with pytest.raises(OutsideValidity, match=rf"0\.weight may reach {edge:.6g} within 1 of .*threshold=40"):
            getattr(far, order)(1.0)
    for bounds in (far.local, far.worst_case, far.third_changes):
        assert math.isfinite(bounds(0.999).hessian_lipschitz)
        with pytest.raises(OutsideValidity):
            bounds(1.0)


def test_at_the_weights_themselves_the_edge_is_a_rounding_away() -> None:
    inside = problem(20 - 1e-12)
    with mpmath.workdps(50):
        at = mpmath.mpf(float(inside.network.flat))
        exact = (mpmath.log1p(mpmath.exp(at)) - mpmath.mpf(float(TARGET)) + mpmath.mpf(float(offset(inside)))) / (
            1 + mpmath.exp(-at)
        )
        assert abs(mpmath.mpf(float(inside.gradient.value)) - exact) <= inside.gradient.error
    for weight in (20.0, math.nextafter(20.0, 21.0), 25.0):
        with pytest.raises(OutsideValidity, match=r"0\.weight may reach 2\d\S* at the weights"):
            problem(weight)
    assert problem(25.0, threshold=40).gradient_norm() > 0


def offset(of: FeedForward) -> torch.Tensor:
    return of.network.layers[-1].offset


def test_beyond_the_threshold_no_bound_of_the_smooth_function_holds() -> None:
    """Why it has to be refused: the module's gradient jumps by far more than the Hessian's bound allows."""

    def slope(weight: float) -> float:
        model = scalar(weight)
        model[2].load_state_dict(edge[2].state_dict())
        (0.5 * (model(ONE) - TARGET).square().sum()).backward()
        return float(model[0].weight.grad)

    edge = scalar(20 - 1e-12)
    inside, apart = problem(20 - 1e-12), 2e-12
    smooth = FeedForward(wide(edge), ONE, TARGET, "mse_half")
    assert abs(slope(20 + 1e-12) - slope(20 - 1e-12)) > 100 * apart * smooth.hessian_norm(2 * apart)
    with pytest.raises(OutsideValidity):
        inside.hessian_norm(2 * apart)


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, torch.Generator]:
    """A network whose pre-activations come near the threshold in one of its layers."""
    generator = torch.Generator().manual_seed(seed)
    widths = [3, *(int(torch.randint(2, 6, (), generator=generator)) for _ in range(1 + seed % 3))]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Softplus()]
        if seed % 5 == 0:
            layers.append(nn.BatchNorm1d(after))
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 3)).double().eval()
    for part in model:
        if isinstance(part, nn.BatchNorm1d):
            part.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (4,), generator=generator)
    linear = [part for part in model if isinstance(part, nn.Linear)][seed % (len(widths) - 1)]
    found = inputs
    for part in model:
        made = part(found)
        if part is linear:  # a hair's breadth, or more, below the threshold
            gap = 10 ** float(-6 * torch.rand((), generator=generator, dtype=torch.float64))
            part.bias.data += 20 - gap - made.detach().max()
            break
        found = made
    return model, inputs, targets, generator


def highest(model: nn.Sequential, inputs: torch.Tensor) -> float:
    """The largest argument of a softplus."""
    found, most = inputs, -math.inf
    for part in model:
        if isinstance(part, nn.Softplus):
            most = max(most, float(found.detach().max()))
        found = part(found)
    return most


def climbed(model: nn.Sequential, inputs: torch.Tensor, radius: float, steps: int = 8) -> float:
    """How far projected ascent gets the largest argument of a softplus in a ball."""
    moved, most = copy.deepcopy(model), highest(model, inputs)
    trained = [parameter for parameter in moved.parameters() if parameter.requires_grad]
    start = torch.cat([parameter.detach().flatten() for parameter in trained])
    for _ in range(steps):
        found, arguments = inputs, []
        for part in moved:
            if isinstance(part, nn.Softplus):
                arguments.append(found.max())
            found = part(found)
        slopes = torch.autograd.grad(max(arguments), trained, materialize_grads=True)
        ascent = torch.cat([slope.flatten() for slope in slopes])
        here = torch.cat([parameter.detach().flatten() for parameter in trained]) - start
        here = here + radius * ascent / ascent.norm()
        here = start + radius * here / here.norm()
        nn.utils.vector_to_parameters(here, trained)
        most = max(most, highest(moved, inputs))
    return most


@pytest.mark.parametrize("part", [*range(3), *(pytest.param(part, marks=pytest.mark.slow) for part in range(3, 40))])
def test_no_argument_passes_the_threshold_in_a_ball_that_is_taken(part: int) -> None:
    """And what is taken has the bounds of the smooth function, to the last bit."""
    taken = refused = passed = 0
    for seed in range(8 * part, 8 * part + 8):
        model, inputs, targets, _ = drawn(seed)
        if highest(model, inputs) >= 20:  # a later layer
            with pytest.raises(OutsideValidity):
                FeedForward(model, inputs, targets)
            continue
        found, smooth = FeedForward(model, inputs, targets), FeedForward(wide(model), inputs, targets)
        for radius in (0.0, 1e-6, 1e-4, 1e-2, 0.1, 1.0):
            reached = climbed(model, inputs, radius)
            try:
                values = [getattr(found, order)(radius) for order in ORDERS]
            except OutsideValidity:
                refused += 1
                passed += reached >= 20
                continue
            taken += 1
            assert reached < 20
            local = smooth.local(radius)
            assert found.local(radius).hessian_norm == local.hessian_norm
            assert values[1:] <= [local.hessian_norm, local.hessian_lipschitz]
    assert min(taken, refused) > 5
    assert passed > 0.5 * refused, "half of what is refused does pass"


def test_a_check_that_forgets_the_ball_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the change over the ball, balls are taken in which the threshold is passed."""
    check = Network.check_validity

    def forgetful(self: Network, index: int, most: torch.Tensor, change: torch.Tensor, radius: float) -> None:
        check(self, index, most, torch.zeros_like(change), radius)

    monkeypatch.setattr(Network, "check_validity", forgetful)
    found = problem(19.0)
    assert math.isfinite(found.local(1.5).hessian_norm)
    assert climbed(scalar(19.0), ONE, 1.5) > 20


def test_certificates_say_which_layer_got_out_and_how_far() -> None:
    model, inputs, targets, _ = drawn(1)
    model[0].bias.data -= 1.0
    found = FeedForward(model, inputs, targets)
    certificate = found.certificate(1e-4, 3)
    smooth = FeedForward(wide(model), inputs, targets).certificate(1e-4, 3)
    assert certificate.method == smooth.method
    assert certificate.error_bound == smooth.error_bound
    assert certificate.from_start < math.inf
    reason = r"the pre-activations of \d\.weight may reach \S+ within \S+ of the weights"
    with pytest.raises(NoCertificate, match=rf"{reason}.*tube \(at step \d the pre-activations"):
        found.certificate(1e3, 3)
    reasons = [form.reason for form in certificate.forms if not form.exists]
    assert all("the pre-activations of" in reason for reason in reasons), reasons


def test_recorded_weights_beyond_the_threshold_have_no_steps_from_there() -> None:
    found = problem(19.0)
    path = [found.network.flat, found.network.flat + 0.5, found.network.flat + 2, found.network.flat + 3]
    steps, reason = certify_steps(found, 0.1, path)
    assert len(steps) <= 1
    assert "at step" in reason
    assert "pre-activations of 0.weight" in reason


def test_gaps_between_tasks_are_refused_beyond_the_threshold() -> None:
    near, far = problem(19.9), FeedForward(scalar(19.9), 0.5 * ONE, TARGET, "mse_half")
    far = far.at(near.network.flat)
    assert multitask_gap_bound([near, far], 1e-6, 2, alpha=0.5).upper_bound > 0
    with pytest.raises(TvgradError, match="pre-activations of"):
        multitask_gap_bound([near, far], 10.0, 2, alpha=0.5)


def test_matrices_and_registered_functions_have_ends_of_validity_too() -> None:
    matrices = [torch.eye(2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)]
    near = FeedForward.from_matrices(matrices, None, nn.Softplus(), input_norms=19.0)
    assert near.hessian_norm() > 0
    with pytest.raises(OutsideValidity, match=r"weights\.0 may reach"):
        near.hessian_norm(0.1)

    class Cut(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x < 3, torch.tanh(x), x)

    register_activation(Cut, dataclasses.replace(activation_of("tanh"), name="cut", below=3.0))
    with pytest.raises(UnboundedActivation, match="another function from x = 3 on"):
        activation_of(Cut())
    model = nn.Sequential(nn.Linear(1, 1, bias=False), Cut(), nn.Linear(1, 1)).double()
    model[0].weight.data.fill_(2.0)
    found = FeedForward(model, ONE, TARGET, "mse_half")
    assert found.hessian_norm(0.9) > 0
    with pytest.raises(OutsideValidity, match="below 3 alone"):
        found.hessian_norm(1.1)
    with pytest.raises(UnboundedActivation, match="below is NaN"):
        dataclasses.replace(activation_of("tanh"), below=math.nan)
