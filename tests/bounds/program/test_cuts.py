"""Jacobians from cut to cut: against autograd, and what they gain."""

from __future__ import annotations

import torch

from tests.bounds.program.programs import Block, LanguageModel, Transformer
from tvgrad.bounds import Program
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.passes import ChunkPass


def test_norms_between_cuts_are_those_of_the_exact_jacobians() -> None:
    torch.manual_seed(0)
    model = Transformer(4, 2, 2).double()
    inputs, targets = torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    program = Program(model, "cross_entropy", inputs, targets)
    steps = [program._graph.steps[place].name for place in program._cuts]
    begin, middle, end = (steps.index(name) for name in ("add", "add_1", "add_2"))
    tensors = [Ball.exact(one[None], precise=True) for one in program._tensors]
    norms = ChunkPass(program._graph, tensors, inputs, targets, 0.0, program._cuts)._cuts.norms
    first, second = model.blocks

    def mixed(block: Block, x: torch.Tensor) -> torch.Tensor:
        query, key, value = block.qkv(block.norm1(x)).reshape(3, 3, 2, 2).permute(1, 2, 0, 3)
        weights = torch.softmax(query @ key.mT / 2**0.5, -1)
        return x + block.out((weights @ value).transpose(0, 1).reshape(3, 4))

    def between(x: torch.Tensor) -> torch.Tensor:
        return mixed(second, x + first.down(first.act(first.up(first.norm2(x)))))

    for sample in range(3):
        jacobian = torch.func.jacrev(between)(mixed(first, inputs[sample]).detach())
        true = float(torch.linalg.matrix_norm(jacobian.reshape(12, 12), 2))
        assert true <= float(norms[begin, end][sample]) <= 1.05 * true
        assert float(norms[begin, end][sample]) <= float(norms[begin, middle][sample] * norms[middle, end][sample]) * (
            1 + 1e-8
        )


def test_cuts_make_bounds_smaller_and_no_gradient_another() -> None:
    torch.manual_seed(0)
    model = LanguageModel(6, 4, 4, 2).double()
    tokens = torch.randint(6, (3, 5))
    program = Program(model, "cross_entropy", tokens[:, :-1], tokens[:, 1:])
    assert program._cuts
    with_cuts = program.measure(radius=1e-6)
    program._cuts = ()
    without = program.measure(radius=1e-6)
    assert torch.equal(with_cuts.gradient.hi, without.gradient.hi)
    assert with_cuts.error < without.error / 2
    assert with_cuts.hessian_norm < without.hessian_norm / 2
