"""AdaMerging and exact gradient matching against autograd and dense Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad import TvgradError
from tvgrad.merging import ada_merging, exact_gradient_matching, task_arithmetic
from tvgrad.merging.ada_merging import mean_entropy
from tvgrad.merging.conjugate_gradients import conjugate_gradients
from tvgrad.vectors.parameters import Weights


def model(seed: int = 0, hidden: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)] if hidden else [nn.Linear(4, 3)]
    return nn.Sequential(*layers).double()


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(25, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (25,), generator=generator)


def vectors_of(shared: nn.Module, count: int = 3, scale: float = 0.5) -> list[Weights]:
    generator = torch.Generator().manual_seed(9)
    return [
        {n: scale * torch.randn(p.shape, generator=generator).double() for n, p in shared.named_parameters()}
        for _ in range(count)
    ]


def test_ada_merging_is_adam_on_the_coefficients() -> None:
    shared = model(hidden=5)
    inputs = [data(seed)[0] for seed in range(3)]
    objectives = [tvgrad.Objective(shared, mean_entropy, (x, torch.zeros(len(x)))) for x in inputs]
    vectors = vectors_of(shared)
    found = ada_merging(vectors, objectives, rate=0.05, steps=8)
    base = {name: p.detach() for name, p in shared.named_parameters()}
    coefficients = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=0.05)
    entropies = []
    for _ in range(8):
        optimizer.zero_grad()
        weights = {n: base[n] + sum(a * v[n] for a, v in zip(coefficients, vectors, strict=True)) for n in base}
        p = [torch.func.functional_call(shared, weights, (x,)).softmax(1) for x in inputs]
        value = sum(-(one * one.log()).sum() / len(one) for one in p)
        value.backward()
        entropies.append(float(value.detach()))
        optimizer.step()
    for name, part in found.items():
        truth = sum(a * v[name] for a, v in zip(coefficients.detach(), vectors, strict=True))
        assert float((part - truth).abs().max()) < 1e-10
    assert entropies[-1] < entropies[0]


@pytest.mark.parametrize("prior", [0.1, 1.0])
def test_exact_gradient_matching_solves_the_dense_system(prior: float) -> None:
    shared = model()
    tasks = [data(seed) for seed in range(3)]
    objectives = [tvgrad.Objective(shared, nn.CrossEntropyLoss(), task) for task in tasks]
    vectors = vectors_of(shared)
    found = exact_gradient_matching(vectors, objectives, prior=prior)
    names = list(found)
    sizes = [found[name].numel() for name in names]
    start = torch.cat([p.detach().flatten() for p in shared.parameters()])
    flat = [torch.cat([v[name].flatten() for name in names]) for v in vectors]

    def loss(theta: torch.Tensor, task: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        weight, bias = theta.split(sizes)
        return nn.functional.cross_entropy(task[0] @ weight.view(3, 4).T + bias, task[1])

    hessians = [
        torch.func.hessian(lambda theta, task=task: loss(theta, task))(start + tau)
        for task, tau in zip(tasks, flat, strict=True)
    ]
    h0 = prior * sum(float(t @ h @ t / (t @ t)) for t, h in zip(flat, hessians, strict=True)) / 3
    eye = h0 * torch.eye(len(start), dtype=torch.float64)
    right = sum((eye + h) @ t for h, t in zip(hessians, flat, strict=True))
    truth = torch.linalg.solve(eye + sum(hessians), right)
    assert float((torch.cat([found[name].flatten() for name in names]) - truth).norm()) < 1e-7 * float(truth.norm())
    assert found[names[0]].shape == (3, 4)


def test_a_large_prior_is_task_arithmetic() -> None:
    shared = model()
    objectives = [tvgrad.Objective(shared, nn.CrossEntropyLoss(), data(seed)) for seed in range(2)]
    vectors = vectors_of(shared, 2)
    found, truth = exact_gradient_matching(vectors, objectives, prior=1e9), task_arithmetic(vectors)
    assert all(torch.allclose(found[name], truth[name], rtol=1e-7) for name in truth)


def test_refusals_are_one_sentence() -> None:
    shared, deep = model(), model(hidden=5)
    objective = tvgrad.Objective(shared, nn.CrossEntropyLoss(), data(0))
    curved = tvgrad.Objective(deep, lambda out, y: -nn.functional.cross_entropy(out, y), data(0))
    cases = [
        (lambda: exact_gradient_matching(vectors_of(shared, 2), [objective]), "1 objectives were given for 2 task"),
        (lambda: ada_merging(vectors_of(deep, 1), [objective]), "other trainable tensors than the task vectors"),
        (lambda: exact_gradient_matching(vectors_of(deep, 1), [curved], prior=0.1), "curved downwards along the task"),
        (lambda: exact_gradient_matching(vectors_of(shared, 1), [objective], prior=-1.0), "prior must be"),
        (lambda: ada_merging(vectors_of(shared, 1), [objective], steps=0), "steps must be a whole number"),
    ]
    for run, said in cases:
        with pytest.raises(TvgradError) as raised:
            run()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    one = {"w": torch.ones(2).double()}
    with pytest.raises(TvgradError, match="not positive in all directions"):
        conjugate_gradients(lambda x: {"w": x["w"] * torch.tensor([1.0, -1.0]).double()}, one, {"w": torch.zeros(2)})
    turning = torch.tensor([[1.0, 0.5], [-0.5, 1.0]]).double()  # not symmetric, which CG cannot solve
    with pytest.raises(TvgradError, match="steps of conjugate gradients left a residual"):
        conjugate_gradients(lambda x: {"w": turning @ x["w"]}, one, {"w": torch.zeros(2)})
