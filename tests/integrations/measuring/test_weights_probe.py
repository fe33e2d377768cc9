"""How batches are weighted follows from one of them and its two parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tvgrad.integrations.measuring.weights_probe import Parts, WeightsProbe
from tvgrad.record.batch_items import items_of
from tvgrad.record.batch_weights import split
from tvgrad.record.spread_batch import spread_batch
from tvgrad.record.weighing import BatchWeights, Weighing

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(1, 9, (6, 7), generator=GENERATOR)
LABELS = torch.where(torch.arange(7) < torch.tensor([[7], [3], [5], [2], [6], [4]]), IDS, -100)
BATCH = {"input_ids": IDS, "labels": LABELS, "names": list("abcdef")}

Loss = Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]


def token_mean(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def shifted(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def token_sum(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def padded(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=0)


def shifted_and_padded(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=0)


def sample_mean(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, 0], batch["labels"][:, 0])


def over_pairs(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    first = logits[:, 0]
    return (first[:, None] - first[None]).square().mean()


def probed(
    loss: Loss, *, group: int = 1, by_step: Callable[[Any], torch.Tensor] | None = None, whole: Any = BATCH
) -> BatchWeights:
    """The weights that a probe finds of a script that accumulates `group` batches."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    probe, parts = WeightsProbe(dict(model.named_parameters())), Parts(None)
    number = 0
    while not probe.ready:
        batches = [parts(lambda: whole) for _ in range(group)]
        divisor = torch.tensor(float(group)) if by_step is None else sum(by_step(one) for one in batches)
        model.zero_grad()
        for batch in batches:
            number += 1
            probe.before_backward()
            (loss(model(batch["input_ids"]), batch) / divisor).backward()
            probe.after_backward(number, items_of(batch), 1.0)
        probe.end_step()
        assert not probe.compared or number < 40
    return probe.weights(torch.float64)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    ("loss", "by_step", "weighing", "counter"),
    [
        (sample_mean, None, Weighing.MEAN, 0),
        (token_mean, None, Weighing.MEAN, 1),
        (shifted, None, Weighing.MEAN, 2),
        (padded, None, Weighing.MEAN, 3),
        (shifted_and_padded, None, Weighing.MEAN, 5),
        (token_sum, None, Weighing.SUM, 0),
        (token_sum, lambda batch: (batch["labels"] != -100).sum(), Weighing.STEP, 1),
    ],
    ids=["samples", "tokens", "shifted", "padded", "shifted_and_padded", "sum", "step"],
)
def test_the_weights_are_found(loss: Loss, by_step: Any, weighing: Weighing, counter: int, group: int) -> None:
    whole = {**BATCH, "labels": LABELS.clamp(min=0)} if loss in (padded, shifted_and_padded) else BATCH
    found = probed(loss, group=group, by_step=by_step, whole=whole)
    if weighing is Weighing.STEP and group == 1:
        weighing = Weighing.MEAN  # the same, where a step is a batch
    if weighing is Weighing.SUM:
        counter = 0
    assert (found.weighing, found.counter, found.confirmed, found.noise) == (weighing, counter, True, False)


def test_what_is_no_mean_is_not_confirmed() -> None:
    found = probed(over_pairs)
    assert not found.confirmed
    assert "no weighted mean" in found.reason


@pytest.mark.parametrize(("loss", "weighing"), [(sample_mean, Weighing.MEAN), (token_sum, Weighing.SUM)])
@pytest.mark.parametrize("size", [2, 3])
def test_batches_of_two_have_parts_of_one_size(loss: Loss, weighing: Weighing, size: int) -> None:
    found = probed(loss, whole={"input_ids": IDS[:size], "labels": IDS[:size]})
    assert (found.confirmed, found.weighing, found.noise) == (True, weighing, False)


def test_noise_is_noticed() -> None:
    generator = torch.Generator().manual_seed(3)
    calls = iter(range(100))

    def noisy(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        late = next(calls) >= 4  # the probe has the dropout switched off before
        return sample_mean(logits, batch) * (1 + late * torch.rand((), generator=generator))

    found = probed(noisy)
    assert found.confirmed
    assert found.noise


def test_a_batch_is_cut_with_everything_that_belongs_to_its_samples() -> None:
    first, second = split(BATCH) or ({}, {})
    assert [len(part["input_ids"]) for part in (first, second)] == [2, 4]
    assert sorted(first["names"] + second["names"]) == list("abcdef")
    for part in (first, second):
        rows = ["abcdef".index(name) for name in part["names"]]
        assert torch.equal(part["labels"], LABELS[rows])
    assert split([torch.zeros(1, 3), torch.zeros(1)]) is None


def spread_of(content: tuple[torch.Tensor, ...], size: int) -> Any:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*content), batch_size=size)
    return spread_batch(loader, next(iter(loader)))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("other", [1, 17, 39])
def test_one_sample_of_another_kind_is_in_the_batch(size: int, other: int) -> None:
    inputs, classes = torch.randn(40, 3), torch.ones(40, dtype=torch.long)
    classes[other] = 0
    assert set(spread_of((inputs, classes), size)[1].tolist()) == {0, 1}
    ids = torch.randint(1, 9, (40, 7))
    for ignored in (-100, -1, 0):  # whichever value a loss leaves out
        targets = ids.clone()
        targets[:, -2:] = ignored
        targets[other, 1:] = ignored
        left = (spread_of((ids, targets), size)[1] == ignored).sum(1).tolist()
        assert {left[0], left[-1]} == {2, 6}, "one in each part"
    assert len(spread_of((inputs, inputs), size)[0]) == size, "where nothing differs, samples from all over the data"


def test_a_class_weight_by_hand_is_seen_with_batches_of_two() -> None:
    torch.manual_seed(0)
    inputs, classes, weight = torch.randn(30, 4), torch.zeros(30, dtype=torch.long), torch.tensor([1.0, 5.0])
    classes[11] = 1
    model = nn.Linear(4, 2)
    whole = spread_of((inputs, classes), 2)
    probe = WeightsProbe(dict(model.named_parameters()))
    first, second = split(whole) or (None, None)
    for number, (given, labels) in enumerate((whole, first, second, whole, first, whole, first, whole)):
        model.zero_grad()
        probe.before_backward()
        losses = nn.functional.cross_entropy(model(given), labels, reduction="none") * weight[labels]
        (losses.sum() / weight[labels].sum()).backward()
        probe.after_backward(number, items_of((given, labels)), 1.0)
        probe.end_step()
    assert not probe.weights(torch.float32).confirmed
