"""Loops whose batches hold the same number of targets, but for a few that no batch of spread samples comes upon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import tvgrad
from tvgrad.record.batch_items import COUNTERS
from tvgrad.record.batch_weights import Evidence, weights_of
from tvgrad.record.decision import decided
from tvgrad.record.loop_gradients import LoopGradients
from tvgrad.record.telling import Telling
from tvgrad.record.weighing import BatchWeights, Weighing
from tvgrad.store.measured import ESTIMATE, EXACT

IDS = torch.randint(1, 11, (640, 5), generator=torch.Generator().manual_seed(0))
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ignoring(value: int, *rows: int, start: int = 1) -> torch.Tensor:
    """Targets of tokens, a value of which stands in a few rows only."""
    labels = IDS.roll(-1, 1)
    labels = torch.where(labels == value, labels + 1, labels)
    labels[list(rows), start:] = value
    return labels


def each(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def by_tokens(ignored: int = -100) -> Loss:
    return lambda logits, labels: (each(logits, labels) * (labels != ignored)).sum() / (labels != ignored).sum()


def by_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    used = labels != -100
    return ((each(logits, labels) * used).sum(1) / used.sum(1)).mean()


def summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (each(logits, labels) * (labels != -100)).sum() / 8


class Tokens(nn.CrossEntropyLoss):
    """Torch's loss, of which the model returns classes last."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(logits.transpose(1, 2), labels)


def untrained() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11)).double()


class Stream(IterableDataset[Any]):
    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels

    def __iter__(self) -> Any:
        return zip(IDS, self.labels, strict=True)


def measured(folder: Path, data: Any, labels: torch.Tensor, loss: Any) -> tuple[dict[str, Any], float]:
    """What a recorder measures at the start, and how far it is from autograd on all samples at once."""
    torch.manual_seed(1)
    model = untrained()
    with tvgrad.Recorder(folder, model, data=data, loss=loss):
        pass
    run = tvgrad.Run.open(folder)
    model.load_state_dict(run.complete(0))
    names, parameters = zip(*model.named_parameters(), strict=True)
    truth = dict(zip(names, torch.autograd.grad(loss(model(IDS), labels), parameters), strict=True))
    gradient = run.gradient(0)
    made: dict[str, Any] = run.info["measured_gradients"]["0"]
    size = sum(float(one.norm()) for one in truth.values())
    return made, max(float((gradient[name] - truth[name]).norm()) for name in truth) / size


@pytest.mark.parametrize(
    ("labels", "loss", "counter"),
    [
        (ignoring(-100, 16, 17, 18), by_tokens(), "tokens"),
        (ignoring(-100, 16, 17, 18, start=0), by_tokens(), "tokens"),
        (ignoring(-100, *range(16, 24)), by_tokens(), "tokens"),
        (ignoring(-100, 637, 638, 639), by_tokens(), "tokens"),
        (ignoring(-100, *range(640)), by_tokens(), "samples"),
        (ignoring(-100, 16, 17, 18), by_rows, "samples"),
        (ignoring(-100, 16, 17, 18), summed, None),
        (ignoring(0, 16, 17, 18), by_tokens(0), "tokens that are not 0"),
        (ignoring(-100, 16, 17, 18), Tokens(), "tokens"),
    ],
)
def test_a_batch_that_tells_is_found(tmp_path: Path, labels: torch.Tensor, loss: Loss, counter: str | None) -> None:
    made, off = measured(tmp_path / "run", DataLoader(TensorDataset(IDS, labels), batch_size=8), labels, loss)
    if counter is None:
        assert made["weighing"] == Weighing.SUM.value
    else:
        assert COUNTERS[made["counter"]] == counter
    assert made["kind"] == EXACT
    assert off < 1e-13


@pytest.mark.parametrize("rows", [(16, 17, 18), (18,), range(16, 24)], ids=["three", "one", "all_of_a_batch"])
def test_streams_are_gone_through_until_a_batch_tells(tmp_path: Path, rows: Sequence[int]) -> None:
    labels = ignoring(-100, *rows)
    made, off = measured(tmp_path / "run", DataLoader(Stream(labels), batch_size=8), labels, by_tokens())
    assert (made["kind"], COUNTERS[made["counter"]]) == (EXACT, "tokens")
    assert off < 1e-13


def test_where_no_batch_tells_it_is_an_estimate(tmp_path: Path) -> None:
    labels = ignoring(-100)  # rows of one length in a batch, so that samples of different batches are never together
    batches = [(IDS[:320], labels[:320]), (IDS[320:, :3], labels[320:, :3])]
    for loss in (by_tokens(), by_rows):
        with tvgrad.Recorder(tmp_path / loss.__name__, untrained(), data=batches, loss=loss):
            pass
        made = tvgrad.Run.open(tmp_path / loss.__name__).info["measured_gradients"]["0"]
        assert made["kind"] == ESTIMATE
        assert "tokens and samples weigh its batches differently" in made["reason"]


LABELS = torch.arange(40) % 3
LABELS[[21, 35]] = 7
LOADER = DataLoader(TensorDataset(torch.randn(40, 2), LABELS), batch_size=4)


def test_classes_of_another_weight_are_looked_for() -> None:
    batches = iter(LOADER)
    (_, labels), pieces, told = Telling((0, 4), (7,)).parts(LOADER, next(batches), lambda: next(batches))
    assert pieces is not None
    assert (told, labels.tolist().count(7), pieces[0][1].tolist().count(7)) == (1, 1, 0)
    batches = iter(LOADER)
    _, _, told = Telling((0, 4), (8,)).parts(LOADER, next(batches), lambda: next(batches))
    assert told == 0


@pytest.mark.parametrize(
    ("found", "unlike_again", "counter", "confirmed"),
    [
        (BatchWeights(counter=0, others=(2,), confirmed=True), [], 0, True),
        (BatchWeights(counter=1, confirmed=True), [], 1, True),
        (BatchWeights(counter=1, others=(3,), confirmed=True), [], 1, True),
        (BatchWeights(counter=1, others=(3,), confirmed=True), [3], 0, False),
        (BatchWeights(counter=0, others=(1,), confirmed=True), [], 0, False),
        (BatchWeights(counter=1, confirmed=False), [], 0, False),
        (BatchWeights(Weighing.STEP, 1, confirmed=True), [], 0, False),
        (BatchWeights(counter=5, confirmed=True), [], 0, False),
    ],
)
def test_what_is_decided(found: BatchWeights, unlike_again: list[int], counter: int, confirmed: bool) -> None:
    passes: list[int] = []

    def passed(weights: BatchWeights) -> list[int]:
        passes.append(weights.used)
        return unlike_again

    asked: list[tuple[int, ...]] = []
    before = BatchWeights(others=(1, 2, 3), confirmed=True)
    weights, _ = decided(before, [1, 3, 5], lambda one: one, lambda tell: asked.append(tell) or found, passed)
    assert asked == [(0, 1, 3)]
    assert (weights.counter, weights.confirmed) == (counter, confirmed)
    assert ("no batch told" in weights.reason) is not confirmed
    assert passes == ([1] if found.counter == 1 and found.confirmed and found.weighing is Weighing.MEAN else [])
    assert decided(before, [5], lambda one: one, lambda _: pytest.fail("asked"), passed)[0] is before


def test_a_loss_of_torch_needs_no_batch_that_tells(tmp_path: Path) -> None:
    inputs, targets = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2
    targets[6:8] = -100  # all of a batch, so that no part tells of another
    batches = [(inputs[start : start + 2], targets[start : start + 2]) for start in range(0, 12, 2)]
    model = nn.Linear(3, 2).double()
    with tvgrad.Recorder(tmp_path / "run", model, data=batches, loss=nn.CrossEntropyLoss()):
        pass
    run = tvgrad.Run.open(tmp_path / "run")
    assert run.info["measured_gradients"]["0"]["kind"] == EXACT
    (truth,) = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), [model.weight])
    assert float((run.gradient(0)["weight"] - truth).norm()) < 1e-13


@pytest.mark.parametrize(("loss", "passes"), [(by_tokens(), 2), (by_rows, 3), (Tokens(), 2)])
def test_a_pass_is_made_again_only_by_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Loss, passes: int
) -> None:
    made: list[int] = []
    original = LoopGradients._passed

    def passed(self: LoopGradients, weights: BatchWeights, *options: Any) -> Any:
        made.append(weights.used)
        return original(self, weights, *options)

    monkeypatch.setattr(LoopGradients, "_passed", passed)
    labels = ignoring(-100, 16, 17, 18)
    kept, _ = measured(tmp_path / "run", DataLoader(TensorDataset(IDS, labels), batch_size=8), labels, loss)
    assert (kept["kind"], len(made)) == (EXACT, passes)
    assert made[-1] in (kept["counter"], 4)


@pytest.mark.parametrize(("weight", "used"), [(5.0, 4), (4.0, 4), (1.0, 1)])
def test_what_a_loss_of_torch_divides_by_is_likelier_than_tokens(weight: float, used: int) -> None:
    found = [
        Evidence(place, place, (size, 5 * size, 4 * size, 5 * size, weight * size, 4 * size), torch.ones(3).double())
        for place, size in enumerate((6.0, 2.0, 4.0))
    ]
    weights = weights_of(found, torch.float64)
    assert (weights.counter, weights.used, weights.confirmed) == (0, used, True)
    assert weights.by([0, 2]).used == 0
