"""The nodes of an AdamW run with clipping, a schedule and unequal batches in float32, written out on their own.

Weights and gradients of every step are kept by the loop itself; Adam, its preconditioner, gradients and Hessian-vector
products at theta_0 are computed here by plain torch in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import clipped_run, recipe
from tvgrad.recipes.of_run import objective_of

LR, DECAY, BETAS, EPS = 3e-3, 0.1, (0.9, 0.99), 1e-8
SIZE, MOST = 10, 0.6
Vector = dict[str, torch.Tensor]


def _sum(terms: Sequence[tuple[float, Vector]]) -> Vector:
    return {name: sum(scale * vector[name].double() for scale, vector in terms) for name in terms[0][1]}


def _dot(left: Vector, right: Vector) -> float:
    return math.fsum(float((left[name] * right[name]).sum()) for name in left)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_nodes_against_their_definitions(amsgrad: bool, tmp_path: Path) -> None:
    made = recipe()
    run, seen = clipped_run(
        made, tmp_path, MOST, SIZE,
        lambda parameters: torch.optim.AdamW(parameters, LR, BETAS, EPS, DECAY, amsgrad=amsgrad),
        decay_of_rate=0.9,
    )  # fmt: skip
    budget = tvgrad.error_budget(run, objective_of(run, made, torch.float64), remainder=True)

    model, (inputs, targets) = made.model.double(), made.train.batch(0, len(made.train))
    start = _sum([(1.0, seen[0].theta)])
    steps, half = len(seen), len(seen) // 2
    rates = [LR * 0.9**step for step in range(steps)]
    assert [one.rate for one in seen] == pytest.approx(rates)
    assert 2 < sum(not torch.equal(one.consumed["0.weight"], one.unclipped["0.weight"]) for one in seen) < steps

    def adam(decay: float) -> Vector:
        moved = _sum([(0.0, start)])
        first, second, largest = (_sum([(0.0, start)]) for _ in range(3))
        for step, one in enumerate(seen):
            for name, gradient in _sum([(1.0, one.consumed)]).items():
                first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
                second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
                largest[name] = torch.maximum(largest[name], second[name])
                root = ((largest if amsgrad else second)[name] / (1 - BETAS[1] ** (step + 1))).sqrt() + EPS
                moved[name] = moved[name] - rates[step] * first[name] / (1 - BETAS[0] ** (step + 1)) / root
                moved[name] = moved[name] - rates[step] * decay * one.theta[name].double()
        return moved

    def at_start(samples: torch.Tensor, times: Vector | None = None) -> Vector:
        at = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        loss = nn.functional.cross_entropy(
            torch.func.functional_call(model, at, (inputs[samples].double(),)), targets[samples]
        )
        slope = torch.autograd.grad(loss, list(at.values()), create_graph=True)
        if times is None:
            return {name: part.detach() for name, part in zip(at, slope, strict=True)}
        along = sum((part * times[name]).sum() for name, part in zip(at, slope, strict=True))
        return dict(zip(at, torch.autograd.grad(along, list(at.values())), strict=True))

    b1 = BETAS[0]
    c = [sum(rates[e] * (1 - b1) * b1 ** (e - s) / (1 - b1 ** (e + 1)) for e in range(s, steps)) for s in range(steps)]
    of_epoch = [sum(c[:half])] * half + [sum(c[half:])] * half
    everything = torch.arange(len(made.train))
    slopes = [at_start(one.batch) for one in seen]
    moved = [_sum([(1.0, one.theta), (-1.0, start)]) for one in seen]
    bends = [at_start(one.batch, away) for one, away in zip(seen, moved, strict=True)]
    bend = at_start(everything, _sum(list(zip(c, moved, strict=True))))
    plain = adam(0.0)
    direction = _sum([(-weight, one.consumed) for weight, one in zip(c, seen, strict=True)])
    kappa = _dot(plain, direction) / _dot(direction, direction)

    def minus(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
        return _sum([(-kappa * weight, vector) for weight, vector in zip(weights, vectors, strict=True)])

    sixth = minus(c, slopes)
    nodes = [
        run.task_vector(2),
        adam(DECAY),
        plain,
        minus(c, [one.consumed for one in seen]),
        minus(c, [one.unclipped for one in seen]),
        _sum([(1.0, sixth), (1.0, minus(c, bends))]),
        _sum([(1.0, sixth), (-kappa, bend)]),
        sixth,
        minus([weight / half for weight in of_epoch], slopes),
        minus([weight * len(one.batch) / len(made.train) for weight, one in zip(of_epoch, seen, strict=True)], slopes),
        minus([sum(c)], [at_start(everything)]),
    ]
    residual = _sum([(1.0, nodes[0]), (-1.0, nodes[-1])])
    assert len(budget.rows) == len(nodes) - 1
    for row, before, after in zip(budget.rows, nodes, nodes[1:], strict=False):
        vector = _sum([(1.0, before), (-1.0, after)])
        # The replay reproduces the recorded weights: only float64 sums differ, of vectors as long as the residual.
        size = math.sqrt(_dot(residual, residual))
        assert row.norm == pytest.approx(math.sqrt(_dot(vector, vector)), rel=1e-9, abs=1e-13 * size), row.term
        assert row.share == pytest.approx(_dot(vector, residual) / size**2, rel=1e-9, abs=1e-13), row.term
    assert budget.closure <= 1e-12
    terms = {row.term: row for row in budget.rows}
    assert terms["clipping"].norm > 1e-3 * size
    assert terms["weight decay"].norm > 1e-3 * size
