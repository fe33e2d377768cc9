"""Gradients of programs: against autograd, and a transformer's against 60 digits."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from torch import nn

from tests.bounds.program.programs import LanguageModel, Transformer, random_program
from tvgrad.bounds import Program


def own_gradient(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 8, 14])
def test_gradients_are_those_of_autograd(seed: int) -> None:
    model, inputs, targets = random_program(seed)
    program = Program(model, "cross_entropy", inputs, targets, chunk_size=2)
    found, own = program.gradient, own_gradient(model, inputs, targets)
    assert program.names == tuple(name for name, _ in model.named_parameters())
    assert torch.equal(program.flat, torch.cat([one.detach().flatten() for one in model.parameters()]))
    assert (found.value - own).norm() <= 1e-13 * (1 + own.norm())
    assert found.error <= 1e-15 * (1 + own.norm())


class Exact:
    """The transformer of one block and one head, in numbers of mpmath, written on its own."""

    def __init__(self, model: Transformer) -> None:
        self.weights = {
            name: mp.matrix(one.detach().reshape(len(one), -1).tolist()) for name, one in model.named_parameters()
        }

    def linear(self, x: mp.matrix, name: str) -> mp.matrix:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return mp.matrix([
            [(sum(x[t, j] * weight[i, j] for j in range(weight.cols)) + bias[i]) for i in range(weight.rows)]
            for t in range(x.rows)
        ])

    def norm(self, x: mp.matrix, name: str) -> mp.matrix:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        rows = []
        for t in range(x.rows):
            mean = sum(x[t, j] for j in range(x.cols)) / x.cols
            variance = sum((x[t, j] - mean) ** 2 for j in range(x.cols)) / x.cols
            rows.append([
                (x[t, j] - mean) / mp.sqrt(variance + mp.mpf(1e-5)) * weight[j] + bias[j] for j in range(x.cols)
            ])
        return mp.matrix(rows)

    def loss(self, sample: torch.Tensor, label: int) -> mp.mpf:
        x = mp.matrix(sample.tolist())
        width = x.cols
        qkv = self.linear(self.norm(x, "blocks.0.norm1"), "blocks.0.qkv")
        mixed = mp.matrix(x.rows, width)
        for t in range(x.rows):
            scores = [
                sum(qkv[t, j] * qkv[s, width + j] for j in range(width)) * mp.mpf(width**-0.5) for s in range(x.rows)
            ]
            raised = [mp.exp(one) for one in scores]
            for j in range(width):
                mixed[t, j] = sum(raised[s] * qkv[s, 2 * width + j] for s in range(x.rows)) / sum(raised)
        x = x + self.linear(mixed, "blocks.0.out")
        up = self.linear(self.norm(x, "blocks.0.norm2"), "blocks.0.up")
        bent = mp.matrix([[up[t, j] * mp.ncdf(up[t, j]) for j in range(up.cols)] for t in range(up.rows)])
        x = self.norm(x + self.linear(bent, "blocks.0.down"), "norm")
        pooled = mp.matrix([[sum(x[t, j] for t in range(x.rows)) / x.rows for j in range(width)]])
        logits = self.linear(pooled, "head")
        return mp.log(sum(mp.exp(logits[0, c]) for c in range(logits.cols))) - logits[0, label]


def test_a_transformers_gradient_lies_within_its_error_of_the_exact_one() -> None:
    """Central differences with 90 digits: 1e-30 apart, they are exact to 55 digits."""
    torch.manual_seed(3)
    model = Transformer(4, 1, 1).double()
    inputs, targets = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([0, 2])
    program = Program(model, "cross_entropy", inputs, targets)
    found = program.measure()
    with mp.workdps(90):
        exact, step, entry, distance = Exact(model), mp.mpf(10) ** -30, 0, mp.mpf(0)
        for name, parameter in model.named_parameters():
            weight = exact.weights[name]
            for place in range(parameter.numel()):
                if place % 5 == 0:  # each fifth entry of every parameter
                    at, losses = divmod(place, weight.cols), []
                    before = weight[at]
                    for moved in (before + step, before - step):
                        weight[at] = moved
                        losses.append(sum(exact.loss(x, int(y)) for x, y in zip(inputs, targets, strict=True)) / 2)
                    weight[at] = before
                    mine = mp.mpf(float(found.gradient.hi[entry])) + mp.mpf(float(found.gradient.lo[entry]))
                    distance += (mine - (losses[0] - losses[1]) / (2 * step)) ** 2
                entry += 1
        assert mp.sqrt(distance) <= found.error
        assert found.error <= 1e-24


def test_tied_parameters_and_sequences_count_once() -> None:
    torch.manual_seed(0)
    model = LanguageModel(7, 4, 5, tied=True).double()
    tokens = torch.randint(7, (3, 6))
    program = Program(model, nn.CrossEntropyLoss(), tokens[:, :-1], tokens[:, 1:])
    assert len(program.flat) == sum(one.numel() for one in model.parameters())
    own = own_gradient(model, tokens[:, :-1], tokens[:, 1:])
    assert (program.gradient.value - own).norm() <= 1e-13 * own.norm()


def test_float32_models_are_taken_as_stored() -> None:
    torch.manual_seed(0)
    model = Transformer().float()
    inputs, targets = torch.randn(3, 3, 4), torch.tensor([0, 1, 2])
    program = Program(model, "cross_entropy", inputs, targets)
    own = own_gradient(model.double(), inputs.double(), targets)
    assert (program.gradient.value - own).norm() <= 1e-13 * own.norm()
