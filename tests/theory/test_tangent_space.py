"""The tangent model, disentanglement and masks, against Jacobians, loops and tunings of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tvgrad import TvgradError
from tvgrad.theory.disentanglement import disentanglement_error, tangent_interference
from tvgrad.theory.sensitivity_mask import keep_off_mask, least_sensitive, sensitivity_mask
from tvgrad.theory.tangent_space import TangentForward, tangent_outputs
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import Weights

N, CLASSES = 12, 3


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, CLASSES)).double()


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 4, generator=generator).double(), torch.randint(CLASSES, (N,), generator=generator)


def drawn(model: nn.Module, seed: int, scale: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()}


def linear_in_weights(model: nn.Module, x: torch.Tensor, change: Weights) -> torch.Tensor:
    """By the whole Jacobian, one row of outputs and one tensor at a time."""
    start = {n: p.detach() for n, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(start)
    slopes = [torch.tensordot(jacobian[n], change[n], dims=change[n].ndim) for n in start]
    return (model(x) + sum(slopes)).detach()


def test_the_tangent_model_has_the_jacobians_outputs_and_their_gradient() -> None:
    model, (x, y) = made(), data()
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y), forward=TangentForward(model), chunk_size=5)
    plain = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y))
    change = drawn(model, 1)
    at = combination((1.0, plain.initial), (1.0, change))
    truth = linear_in_weights(model, x, change)
    assert float((objective.outputs(at) - truth).abs().max()) < 1e-12
    assert float((tangent_outputs(plain, at) - truth).abs().max()) < 1e-12
    assert objective.value() == pytest.approx(plain.value(), rel=1e-14)
    # The loss along a line, by central differences of the Jacobian's outputs.
    step, direction = 1e-5, drawn(model, 2)
    losses = [
        float(nn.functional.cross_entropy(linear_in_weights(model, x, combination((1.0, change), (s, direction))), y))
        for s in (step, -step)
    ]
    gradient = objective.gradient(at)
    slope = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-7)


def test_the_remainder_of_the_tangent_model_falls_with_the_second_power() -> None:
    model, (x, y) = made(), data()
    objective, direction = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y)), drawn(model, 3)
    sizes = [2.0**-k for k in range(3, 11)]
    rest = []
    for size in sizes:
        at = combination((1.0, objective.initial), (size, direction))
        rest.append(float((objective.outputs(at) - tangent_outputs(objective, at)).norm()))
    slopes = np.diff(np.log2(rest)) / np.diff(np.log2(sizes))
    assert np.abs(slopes[-3:] - 2).max() < 0.02
    assert abs(np.polyfit(np.log(sizes), np.log(rest), 1)[0] - 2) < 0.1


@pytest.mark.parametrize("tangent", [False, True])
def test_disentanglement_error_counts_changed_answers(tangent: bool) -> None:
    model, tasks = made(), [data(1), data(2)]
    objectives = [tvgrad.Objective(model, nn.CrossEntropyLoss(), task) for task in tasks]
    vectors, grid = [drawn(model, seed, 0.4) for seed in (5, 6)], (-1.0, 0.0, 0.7)
    found = disentanglement_error(objectives, vectors, grid, tangent=tangent)

    def answer(x: torch.Tensor, a: float, b: float) -> int:
        change = combination((a, vectors[0]), (b, vectors[1]))
        if tangent:
            return int(linear_in_weights(model, x[None], change).argmax())
        start = {n: p.detach() + change[n] for n, p in model.named_parameters()}
        return int(torch.func.functional_call(model, start, (x[None],)).argmax())

    for i, a in enumerate(grid):
        for j, b in enumerate(grid):
            first = sum(answer(x, a, 0.0) != answer(x, a, b) for x in tasks[0][0]) / N
            second = sum(answer(x, 0.0, b) != answer(x, a, b) for x in tasks[1][0]) / N
            assert found[i, j] == pytest.approx(first + second, abs=1e-12)
    assert found.max() > 0
    assert found[1, 1] == 0


def test_tangent_interference_is_the_mean_length_of_the_change() -> None:
    model, (x, y) = made(), data()
    vector = drawn(model, 4)
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y))
    change = linear_in_weights(model, x, vector) - model(x).detach()
    assert tangent_interference(objective, vector) == pytest.approx(float(change.norm(dim=1).mean()), rel=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_a_mask_keeps_exactly_the_share_and_the_least_sensitive(share: float) -> None:
    model, (x, y) = made(), data()
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y))
    mask = sensitivity_mask(objective, share)
    sensitivity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row in x:
        log_p = model(row).log_softmax(0)
        for c in range(CLASSES):
            parts = torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            for name, part in zip(sensitivity, parts, strict=True):
                sensitivity[name] += log_p[c].exp().detach() * part.square() / N
    flat = torch.cat([part.flatten() for part in sensitivity.values()])
    chosen = torch.cat([mask[name].flatten() for name in sensitivity])
    assert int(chosen.sum()) == int(share * flat.numel())
    if share < 1:
        assert float(flat[chosen].max()) <= float(flat[~chosen].min()) * (1 + 1e-9)
    equal = least_sensitive({"a": torch.ones(3), "b": torch.ones(7)}, 0.55)
    assert [int(one.sum()) for one in equal.values()] == [3, 2]


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_off_the_mask_keep_their_bits(optimizer: str) -> None:
    model, (x, y) = made(), data()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    mask = sensitivity_mask(tvgrad.Objective(model, nn.CrossEntropyLoss(), (x, y)), 0.3)
    steps = OPTIMIZERS[optimizer](list(model.parameters()))
    keep_off_mask(steps, dict(model.named_parameters()), mask)
    for _ in range(5):
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
    moved = 0
    for name, parameter in model.named_parameters():
        vector = parameter.detach() - start[name]
        assert not vector[~mask[name]].any()
        assert torch.equal(parameter.detach()[~mask[name]], start[name][~mask[name]])
        moved += int((vector != 0).sum())
    assert moved == sum(int(one.sum()) for one in mask.values())


def test_refusals_are_one_sentence() -> None:
    model, task = made(), data()
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), task)
    regression = tvgrad.Objective(nn.Linear(4, 1).double(), nn.MSELoss(), (task[0], task[0][:, :1]))
    vector = drawn(model, 0)
    one = {"weight": torch.ones(1, 4), "bias": torch.ones(1)}
    weight = torch.ones(2, requires_grad=True)
    cases = [
        (lambda: disentanglement_error([objective], [vector]), "disentanglement is of 2 tasks, and 1 objectives"),
        (lambda: disentanglement_error([objective] * 2, [vector] * 2, ()), "no coefficient to try"),
        (lambda: disentanglement_error([regression] * 2, [one] * 2), r"(12, 1) are no classes"),
        (lambda: least_sensitive({"a": torch.ones(3)}, 0.1), "a share of 0.1 of 3 weights is none"),
        (lambda: least_sensitive({"a": torch.tensor([float("nan"), 1.0])}, 0.5), "holds a NaN"),
        (lambda: least_sensitive({"a": torch.ones(3)}, 0), "share must be a positive number, not 0"),
        (lambda: least_sensitive({"a": torch.ones(3)}, 1.5), "share must be at most 1, not 1.5"),
        (lambda: keep_off_mask(torch.optim.SGD([weight]), {"w": weight}, {}), "'w' has no boolean mask of its shape"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError) as raised:
            run()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
