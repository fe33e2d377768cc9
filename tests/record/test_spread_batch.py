"""A batch of samples from all over the data tells what a first batch of one kind cannot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import tvgrad
from tvgrad.record.spread_batch import spread_batch
from tvgrad.store.measured import error_bar
from tvgrad.theory.verdicts import verdict_rows

NUMBERS = torch.arange(40)


def first_and_spread(loader: Any) -> tuple[list[int], list[int]]:
    batch = next(iter(loader))
    return batch[0].tolist(), spread_batch(loader, batch)[0].tolist()


def test_samples_come_from_all_over_those_that_the_loader_goes_through() -> None:
    assert first_and_spread(DataLoader(TensorDataset(NUMBERS), batch_size=4)) == ([0, 1, 2, 3], [0, 13, 26, 39])
    part = Subset(TensorDataset(NUMBERS), range(10, 20))
    assert first_and_spread(DataLoader(part, batch_size=4)) == ([10, 11, 12, 13], [10, 13, 16, 19])


class Own(BatchSampler):
    """Batches that belong together."""


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter((number,) for number in NUMBERS)


def same_length(samples: list[Any]) -> list[torch.Tensor]:
    if len({int(sample[0]) // 10 for sample in samples}) > 1:
        raise ValueError("of one kind only")
    return [torch.stack([sample[0] for sample in samples])]


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(NUMBERS), batch_sampler=Own(SequentialSampler(NUMBERS), 4, False)),
        DataLoader(Stream(), batch_size=4),
        DataLoader(TensorDataset(NUMBERS), batch_size=4, collate_fn=same_length),
        [[NUMBERS[:4]], [NUMBERS[4:]]],
    ],
    ids=["own_batches", "stream", "refused", "list"],
)
def test_the_first_batch_stays_where_samples_cannot_be_collated_at_will(loader: Any) -> None:
    first, spread = first_and_spread(loader)
    assert first == spread == [0, 1, 2, 3]


def weighted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.2, 3.0], dtype=output.dtype)[target]
    return (weights * nn.functional.cross_entropy(output, target, reduction="none")).sum() / weights.sum()


@pytest.mark.parametrize(
    ("loss", "kind"), [(weighted, "one epoch's estimate"), (nn.CrossEntropyLoss(), "exact full batch")]
)
def test_data_sorted_by_class_do_not_hide_a_mean_by_class_weights(loss: Any, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) // 10
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer, data=loader, loss=loss):
        pass
    assert tvgrad.Run.open(tmp_path / "run").info["measured_gradients"]["0"]["kind"] == kind


class Twice(Sampler[int]):
    """As many draws as there are samples, the same in each pass, and some samples twice."""

    def __iter__(self) -> Any:
        return iter([0, 0, 1, 1, *range(4, 20)])

    def __len__(self) -> int:
        return 20


def test_samples_that_come_twice_make_an_estimate_of_unknown_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=20, sampler=Twice())
    model, loss = nn.Linear(3, 2, dtype=torch.float64), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer, data=loader, loss=loss) as recorder:
        for x, y in loader:
            loss(model(x), y).backward()
            optimizer.step()
        recorder.end_epoch()
    run = tvgrad.Run.open(tmp_path / "run")
    assert "2 of its samples had come before in the same epoch" in run.info["measured_gradients"]["0"]["reason"]
    assert error_bar(run, 0) == math.inf
    row = verdict_rows(run)[0]
    assert row.far.endswith("g_0 being one epoch's estimate of unknown error")
    assert row.gradient_holds == "unknown"  # the task vector is near it, and it may be far from the full batch's
    assert "which is one epoch's estimate of unknown error: its two passes drew the same" in row.cause
