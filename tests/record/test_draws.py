"""Draws of samples: repeats are counted within a batch and from one batch to another."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from typing import Any

import numpy as np
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
        ([["a", "b"], ["a"], [("a", 1)], [("a", 1), 7]], 2),
        ([[-1, 1 << 70], [1 << 70, -1], [1]], 2),
        ([np.array([4, 5])[0], 4, True, 1], 2),
        ([[1000], [3], [1000, 3], [100_000], [8, 16, 100_000]], 3),
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


def test_a_million_samples_take_little_memory() -> None:
    draws = Draws()
    for start in range(0, 1_000_000, 1000):
        draws.add(list(range(start, start + 1000)))
    assert draws.again == 0
    assert sys.getsizeof(draws._bits) < 300_000
    assert not draws._others
    draws.add(999_999)
    assert draws.again == 1
