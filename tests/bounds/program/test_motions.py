"""Motions of cuts: against exact Jacobians of small programs, parameters that enter twice included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.bounds.program.programs import LanguageModel, Transformer
from tvgrad.bounds import Program
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.motions import gram, reduced
from tvgrad.bounds.program.passes import ChunkPass


class Late(nn.Module):
    """A second layer of the inputs joins after a cut, one is used twice, and a parameter scales each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late, self.twice, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h + torch.tanh(self.twice(torch.tanh(h)))
        h = self.scale * h + self.late(x)
        return self.head(h + torch.tanh(self.twice(torch.tanh(h))))


def programs() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    tokens = torch.randint(5, (2, 4))
    return {
        "vision": (Transformer(4, 2, 2), torch.randn(2, 3, 4).double(), torch.tensor([0, 2])),
        "language": (LanguageModel(5, 4, 3, 1), tokens[:, :-1], tokens[:, 1:]),
        "tied": (LanguageModel(5, 4, 3, 1, tied=True), tokens[:, :-1], tokens[:, 1:]),
        "late": (Late(), torch.randn(2, 4).double(), torch.tensor([0, 2])),
    }


@pytest.mark.parametrize("name", ["vision", "language", "tied", "late"])
def test_no_change_of_a_cut_is_larger_than_its_motion_says(name: str) -> None:
    """The exact change of the logits, the last cut, under a unit step of all parameters, at the centre and near it."""
    model, inputs, targets = programs()[name]
    model = model.double()
    program = Program(model, "cross_entropy", inputs, targets)
    assert len(program._cuts) > 1
    logits = model(inputs)
    parameters = {key: one.detach() for key, one in model.named_parameters()}
    radius = 1e-5
    tensors = [Ball.exact(one[None], precise=True) for one in program._tensors]
    passed = ChunkPass(program._graph, tensors, program.inputs, program.targets, radius, program._cuts)
    assert passed.sizes()[program._cuts[-1]] == logits[0].numel()
    changes, norms = passed._cuts.changes[-1], passed._cuts.norms
    for sample in range(len(inputs)):
        for moved in (0.0, radius):
            direction = {key: torch.randn_like(one) for key, one in parameters.items()}
            length = torch.stack([one.square().sum() for one in direction.values()]).sum().sqrt()
            near = {key: one + moved * direction[key] / length for key, one in parameters.items()}

            def output(theta: dict[str, torch.Tensor], sample: int = sample) -> torch.Tensor:
                with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
                    return torch.func.functional_call(model, theta, (inputs[sample : sample + 1],)).flatten()

            jacobian = torch.cat([one.flatten(1) for one in torch.func.jacrev(output)(near).values()], 1)
            true = float(torch.linalg.matrix_norm(jacobian, 2))
            assert true <= float(changes[sample])
            assert moved or float(changes[sample]) <= 8 * true
    last = len(program._cuts) - 1
    assert all(bool((norms[before, last] <= changes * (1 + 1e-9)).all()) for before in range(last - 1))


def test_grams_are_those_of_whole_jacobians() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, size, out = 3, 4, 2

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, blocks = drawn(5, tokens, out), drawn(tokens, 2, out)
    dense = torch.zeros(tokens, 2, tokens, out, dtype=torch.float64)
    for token in range(tokens):
        dense[token, :, token] = blocks[token]
    for drift in (drawn(tokens, size, 1), drawn(tokens, 1, out)):
        wide = drift.expand(tokens, drift.shape[1], out)
        whole = torch.einsum("rti,tai->rai", rows, wide).flatten(1)
        assert torch.allclose(gram(rows, drift, by_token=False), whole @ whole.T, rtol=1e-12)
        whole = torch.einsum("srti,tai->srai", dense, wide).reshape(tokens * 2, -1)
        assert torch.allclose(gram(blocks, drift, by_token=True), whole @ whole.T, rtol=1e-12)
    drift = drawn(tokens, size, 1)
    small, apart = reduced(drift)
    assert small.shape == (tokens, tokens, 1)
    assert (
        torch.linalg.matrix_norm(small[..., 0] @ small[..., 0].T - drift[..., 0] @ drift[..., 0].T, 2) <= apart < 1e-9
    )
    many = drawn(150, 3, out)
    assert torch.allclose(
        gram(many, drift, by_token=False), (drift[..., 0].T @ many).flatten(1) @ (drift[..., 0].T @ many).flatten(1).T
    )


class Thin(nn.Module):
    """One number wide, so that no norm is above what it bounds; the layer `first` is used several times alike."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.uses = uses
        self.first, self.second, self.head = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1, bias=False)

    def begun(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for _ in range(self.uses - 1):
            h = h + self.first(x)
        return h

    def ended(self, h: torch.Tensor) -> torch.Tensor:
        return h + torch.tanh(0.7 * self.second(torch.tanh(0.9 * h)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.ended(self.begun(x)))


@pytest.mark.parametrize("uses", [1, 3])
def test_a_motion_one_per_cent_smaller_is_caught(uses: int) -> None:
    """Both cuts, the counts of uses and the identity: with 0.99 of any of them K falls below what it bounds."""
    torch.manual_seed(uses)
    model = Thin(uses).double()
    inputs = torch.randn(3, 1, dtype=torch.float64)
    program = Program(model, "mse", inputs, torch.zeros(3, 1, dtype=torch.float64))
    tensors = [Ball.exact(one[None], precise=True) for one in program._tensors]
    passed = ChunkPass(program._graph, tensors, program.inputs, program.targets, 0.0, program._cuts)
    early, late = passed._cuts.changes[:2]
    for sample in range(3):
        h = model.begun(inputs[sample])
        slopes = torch.autograd.grad(h.sum(), list(model.first.parameters()), retain_graph=True)
        true = float(torch.cat([one.flatten() for one in slopes]).norm())
        assert 0.99 * float(early[sample]) < true <= float(early[sample])
        # the numbers of the cut before count like parameters
        trained = [h, *model.first.parameters(), *model.second.parameters()]
        parts = torch.autograd.grad(model.ended(h).sum(), trained)
        true = float(torch.stack([one.flatten()[0] for one in parts]).norm())
        assert 0.99 * float(late[sample]) < true <= float(late[sample])


@pytest.mark.parametrize("name", ["vision", "language"])
def test_no_climb_in_a_ball_leaves_the_change_of_a_cut(name: str) -> None:
    """The weights climb the norm of the exact Jacobian of one sample's logits."""
    model, inputs, targets = programs()[name]
    model = model.double()
    program, radius = Program(model, "cross_entropy", inputs, targets), 3e-5
    tensors = [Ball.exact(one[None], precise=True) for one in program._tensors]
    passed = ChunkPass(program._graph, tensors, program.inputs, program.targets, radius, program._cuts)
    shapes = [one.shape for one in model.parameters()]
    names = [key for key, _ in model.named_parameters()]
    centre = torch.cat([one.detach().flatten() for one in model.parameters()])

    def output(theta: torch.Tensor) -> torch.Tensor:
        pieces = theta.split([shape.numel() for shape in shapes])
        state = {key: one.reshape(shape) for key, one, shape in zip(names, pieces, shapes, strict=True)}
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return torch.func.functional_call(model, state, (inputs[:1],)).flatten()

    def size(theta: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_norm(torch.func.jacrev(output)(theta), 2)

    at, climbed = centre, list[float]()
    for _ in range(4):
        slope, value = torch.func.grad_and_value(size)(at)
        climbed.append(float(value))
        at = centre + radius * slope / slope.norm()
    assert climbed[0] < climbed[-1] <= float(passed._cuts.changes[-1][0])
