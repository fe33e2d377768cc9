"""Sketches of gradients: linear, with the norm of what they show, and blind to no coordinate."""

from __future__ import annotations

import pytest
import torch

from tvgrad.problem.sketch import sketch

SHAPES = ((5, 7), (), (0, 3), (11,), (64,))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvgrad.problem.sketch.HELD", 20)
    monkeypatch.setattr("tvgrad.problem.sketch.WIDTH", 8)


def drawn(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def test_a_sketch_of_a_sum_is_the_sum_of_sketches() -> None:
    left, right = drawn(1), drawn(2)
    both = sketch([2 * a - b for a, b in zip(left, right, strict=True)])
    assert both.shape == (8,)
    torch.testing.assert_close(both, 2 * sketch(left) - sketch(right), rtol=0, atol=1e-13)


def test_every_coordinate_shows_by_its_size() -> None:
    for place, shape in enumerate(SHAPES):
        for index in range(torch.Size(shape).numel()):
            parts = [torch.zeros(one, dtype=torch.float64) for one in SHAPES]
            parts[place].view(-1)[index] = 3.0
            assert 0.75 * 3 <= float(sketch(parts).norm()) <= 1.25 * 3


def test_norms_are_those_of_gradients_within_the_spread_of_a_sketch() -> None:
    """Mean of the ratio over many gradients: 1 within the factors, whose squares have the mean 49/48."""
    ratios = [
        float(sketch(one).norm()) / sum(float(p.square().sum()) for p in one) ** 0.5 for one in map(drawn, range(400))
    ]
    assert 0.75 < sum(ratios) / len(ratios) < 1.25
    assert min(ratios) > 0.1


def test_what_is_the_same_in_every_block_does_not_cancel() -> None:
    assert float(sketch([torch.ones(1600)]).norm()) > 1


def test_a_small_gradient_is_itself() -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.tensor(7.0), torch.eye(3).to_sparse()]
    assert sketch(parts).tolist() == [0, 1, 2, 3, 4, 5, 7, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert sketch(parts).dtype == torch.float64


def test_alike_blocks_add_up_as_if_they_were_drawn() -> None:
    """Signs are random: 200 equal blocks have about the norm of the gradient, and not 14 times as much."""
    assert 0.05 < float(sketch([torch.ones(1600)]).norm()) / 40 < 3


def test_no_block_cancels_another() -> None:
    block = torch.arange(1.0, 9.0, dtype=torch.float64)
    for one in range(12):
        for other in range(one):
            for sign in (1, -1):
                whole = torch.zeros(12, 8, dtype=torch.float64)
                whole[one], whole[other] = block, sign * block
                assert float(sketch([whole]).norm()) > 1e-3 * float(block.norm())
