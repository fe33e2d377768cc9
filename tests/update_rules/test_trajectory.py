"""Trajectories: in blocks and as a whole, the same bits."""

from __future__ import annotations

import pytest
import torch

from tvgrad.update_rules import Adam, AdamW, Nesterov, UpdateRule, trajectory
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.parameters import Weights

SHAPES = {"a": (5, 7), "b": (3,)}


def drawn(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def followed(rule: UpdateRule, *, transposed: bool = False) -> Trajectory:
    path = Trajectory(rule, drawn(0))
    for step in range(3):
        gradient = drawn(step + 1)
        if transposed:  # the same numbers, in another order in memory
            gradient["a"] = gradient["a"].T.contiguous().T
        path.step(gradient, drawn(10 + step))
    return path


@pytest.mark.parametrize("rule", [Adam(0.1, weight_decay=0.2), AdamW(0.1), Nesterov(0.1, momentum=0.9)])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_give_the_bits_of_the_whole(rule: UpdateRule, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = followed(rule).task_vector
    monkeypatch.setattr(trajectory, "BLOCK", 4)
    parts = followed(rule, transposed=transposed).task_vector
    assert all(torch.equal(whole[name], parts[name]) for name in SHAPES)
