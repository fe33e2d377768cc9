"""Draws of samples: repeats are counted within a batch and from one batch to another."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tvgrad.record.draws import Draws, NotedSampler


@pytest.mark.parametrize(
    ("drawn", "again"),
    [
        ([[0, 1], [2, 3]], 0),
        ([[0, 1], [1, 2]], 1),
        ([[3, 3], [4]], 1),
        ([[5, 5, 5], [5]], 3),
        ([0, 1, 0, 0], 2),
        ([[[0], [1]], [0, 0]], 1),  # what cannot be compared is not counted
    ],
)
def test_repeats_are_counted(drawn: list[Any], again: int) -> None:
    draws = Draws()
    sampler = NotedSampler(drawn, draws)
    assert list(sampler) == drawn
    assert len(sampler) == len(drawn)
    assert draws.again == again


def test_draws_with_replacement_agree_with_a_count_of_them() -> None:
    numbers = torch.randint(50, (40, 5), generator=torch.Generator().manual_seed(0)).tolist()
    draws = Draws()
    assert list(NotedSampler(numbers, draws)) == numbers
    assert draws.again == sum(number - 1 for number in Counter(itertools.chain.from_iterable(numbers)).values())
