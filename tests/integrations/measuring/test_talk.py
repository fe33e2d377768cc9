"""What the processes of a script tell one another: whether it has the shape of their batches."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from tvgrad.integrations.measuring import talk as module
from tvgrad.integrations.measuring.talk import Talk


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that `all_reduce` was called with, which nobody else hears."""
    heard: list[tuple[int, ...]] = []
    monkeypatch.setattr(module, "NAMES", ("all_reduce", "no_such_function"))
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: heard.append(tuple(tensor.shape)))
    return heard


@pytest.mark.parametrize(
    ("shapes", "fixed"),
    [
        ([[], [], []], False),
        ([[()], [()], [()]], True),
        ([[(3,), (2, 2)], [(3,), (2, 2)]], True),
        ([[], [()], [], [()]], True),
        ([[(4, 2)], [(1, 2)]], False),
    ],
    ids=["silence", "a number", "gradients", "every second batch", "the batch's shape"],
)
def test_what_has_the_batch_s_shape(
    said: list[tuple[int, ...]], shapes: list[list[tuple[int, ...]]], fixed: bool
) -> None:
    talk = Talk()
    talk.install()
    for batch in shapes:
        talk.next_batch()
        for shape in batch:
            distributed.all_reduce(torch.zeros(shape))
    assert said == [shape for batch in shapes for shape in batch]
    assert talk.of_fixed_shape is fixed
