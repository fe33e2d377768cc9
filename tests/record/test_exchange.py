"""A second pass in other batches tells what the code of a loss hides: targets that weigh otherwise, and are rare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tvgrad
from tvgrad.record.batch_items import facts_of, items_of
from tvgrad.record.exchange import Exchange, exchanged, exchanged_batches
from tvgrad.record.measurement import compared, known_from_one
from tvgrad.record.weighing import BatchWeights, Weighing
from tvgrad.store.measured import ESTIMATE, EXACT

NUMBERS = torch.arange(10)


def samples(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_each_batch_has_every_second_sample_of_the_next() -> None:
    found = samples(exchanged_batches(NUMBERS.split(4)))
    assert found == [[0, 5, 2, 7], [4, 9, 6, 3], [8, 1]]
    assert samples(NUMBERS.split(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert samples(exchanged_batches(NUMBERS.split(9))) == [[9, 1, 2, 3, 4, 5, 6, 7, 8], [0]]
    assert samples(exchanged_batches([NUMBERS])) == [NUMBERS.tolist()]
    assert samples(exchanged_batches([])) == []


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (5, [[0, 3], [2, 5], [4, 7], [6, 9], [8, 1]]),
        (9, [[0, 3], [2, 5], [4, 7], [6, 9], [8, 1]]),
        (6, [[0, 3], [2, 5], [4, 7], [6, 9], [8, 1]]),
        (3, [[0, 3], [2, 5], [4, 1], [6, 7], [8, 9]]),
        (1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
        (0, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
    ],
)
def test_so_many_batches_make_a_round(left: int, expected: list[list[int]]) -> None:
    exchange, found, fetched = Exchange(left), [], []
    batches = iter(NUMBERS.split(2))

    def fetch() -> Any:
        fetched.append(next(batches))
        return fetched[-1]

    give = exchange.parts()
    for number in range(5):
        found.append(give(fetch).tolist())
        assert len(fetched) == min(5, number + 1 + (number + 1 < left)), "none is fetched before it is needed"
    assert found == expected
    with pytest.raises(StopIteration):
        give(fetch)
    batches = iter(NUMBERS.split(5))
    give = exchange.parts()
    again = [[0, 6, 2, 8, 4], [5, 1, 7, 3, 9]] if left > 6 else [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [give(fetch).tolist(), give(fetch).tolist()] == again, "the rest of them are of the next pass"


def test_a_look_at_a_batch_is_no_part_of_the_round() -> None:
    exchange = Exchange(2)
    for _ in range(2):
        batches = iter(NUMBERS[:4].split(2))
        give = exchange.parts()
        assert give(lambda: next(batches)).tolist() == [0, 3]  # noqa: B023 - called at once
    assert give(lambda: next(batches)).tolist() == [2, 1]


class Named(dict[str, Any]):
    pass


def test_everything_of_a_sample_goes_with_it() -> None:
    one = Named(ids=torch.arange(6).view(3, 2), parts=(torch.arange(3), ["a", "b", "c"]), scale=2.0)
    other = Named(ids=torch.arange(6, 12).view(3, 2), parts=(torch.arange(3, 6), ["d", "e", "f"]), scale=2.0)
    first, second = exchanged(one, other) or pytest.fail("not exchanged")
    assert type(first) is Named
    assert first["ids"].tolist() == [[0, 1], [8, 9], [4, 5]]
    assert (first["parts"][0].tolist(), first["parts"][1]) == ([0, 4, 2], ["a", "e", "c"])
    assert (second["ids"][1].tolist(), second["parts"][1], second["scale"]) == ([2, 3], ["d", "b", "f"], 2.0)
    assert one["ids"][1].tolist() == [2, 3], "the loader's own stay what they were"
    sums = [items_of(one).fingerprint, items_of(other).fingerprint], [items_of(first).fingerprint]
    assert (
        facts_of([items_of(one), items_of(other)])["content"]
        == facts_of([items_of(first), items_of(second)])["content"]
    )
    assert not set(sums[0]) & set(sums[1])


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(4, 3), "n": 1},
        {"x": torch.ones(4, 2), "n": 2},
        {"x": torch.ones(4, 2).double(), "n": 1},
        {"x": torch.ones(0, 2), "n": 1},
        {"y": torch.ones(4, 2), "n": 1},
        [torch.ones(4, 2), 1],
        {"x": torch.ones(4, 2), "n": torch.ones(())},
        "a batch without tensors",
    ],
)
def test_batches_that_differ_in_more_than_samples_stay(other: Any) -> None:
    assert exchanged({"x": torch.zeros(4, 2), "n": 1}, other) is None


INPUTS = torch.randn(320, 3, generator=torch.Generator().manual_seed(0)).double()
CLASSES = torch.arange(320) % 3
CLASSES[[102, 103]] = 3  # of the 64 samples that are looked at first, none
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 5.0]).double()


def by_hand(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A mean by class weights, of which torch's losses know nothing."""
    each = -output.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return (each * WEIGHTS[targets]).sum() / WEIGHTS[targets].sum()


def by_samples(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    each = -output.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return (each * WEIGHTS[targets]).mean()


def measured(folder: Path, data: Any, loss: Any, wrapped: Callable[[nn.Module], nn.Module] = lambda one: one) -> Any:
    """What a recorder measures, and how far it is from autograd on all samples at once."""
    torch.manual_seed(1)
    model = nn.Linear(3, 4).double()
    with tvgrad.Recorder(folder, wrapped(model), data=data, loss=loss):
        pass
    run = tvgrad.Run.open(folder)
    (truth,) = torch.autograd.grad(loss(model(INPUTS), CLASSES), [model.weight])
    (gradient,) = (one for name, one in run.gradient(0).items() if name.endswith("weight"))
    return run.info["measured_gradients"]["0"], float((gradient - truth).norm() / truth.norm())


LOADER = DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=8)
BATCHES = list(LOADER)


@pytest.mark.parametrize("data", [LOADER, BATCHES], ids=["loader", "list"])
@pytest.mark.parametrize(("loss", "kind"), [(by_hand, ESTIMATE), (by_samples, EXACT), (nn.CrossEntropyLoss(), EXACT)])
def test_rare_classes_that_weigh_otherwise_are_noticed(tmp_path: Path, data: Any, loss: Any, kind: str) -> None:
    made, off = measured(tmp_path / "run", data, loss)
    assert made["kind"] == kind
    assert (off < 1e-13) is (kind == EXACT)
    assert ("some of them weigh otherwise" in made["reason"]) is (kind != EXACT)


class InOrder(nn.Module):
    """Takes samples in their order only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        places = (INPUTS[:, 0][None] == inputs[:, :1]).double().argmax(1)
        if (places.diff() < 1).any():
            raise RuntimeError("not in order")
        return self.model(inputs)


@pytest.mark.parametrize(("loss", "kind"), [(by_samples, ESTIMATE), (nn.CrossEntropyLoss(), EXACT)])
def test_a_model_that_takes_samples_in_order_only(tmp_path: Path, loss: Any, kind: str) -> None:
    made, _ = measured(tmp_path / "run", BATCHES, loss, InOrder)
    assert made["kind"] == kind
    assert ("some batches held the same samples in both passes" in made["reason"]) is (kind != EXACT)


GRADIENT = {"a": torch.ones(3, dtype=torch.float64)}
FACTS: dict[str, Any] = {
    "samples": 4, "data": 4, "batches": 2, "content": 11, "dtype": "float32", "epochs_repeated": 0, "weight": 4.0,
    "steps": 2, "batches_a_step": 1, "mean_norm": 1.0, "batch_fingerprints": [5, 6], "watched": False,
}  # fmt: skip
MEAN = BatchWeights(others=(4,), confirmed=True, noise=False)


@pytest.mark.parametrize(
    ("weights", "facts", "again", "kind"),
    [
        (MEAN, {}, [7, 4], EXACT),
        (MEAN, {}, [5, 6], ESTIMATE),
        (MEAN, {}, [7, 6], ESTIMATE),
        (MEAN, {"batch_fingerprints": [None, None]}, [None, None], ESTIMATE),
        (MEAN, {"watched": True}, [5, 6], EXACT),
        (replace(MEAN, others=()), {"watched": True}, [5, 6], ESTIMATE),
        (replace(MEAN, weighing=Weighing.SUM), {}, [5, 6], EXACT),
        (MEAN, {"batches": 1, "steps": 1}, [5, 6], EXACT),
    ],
)
def test_the_same_batches_confirm_no_weights(
    weights: BatchWeights, facts: dict[str, Any], again: list[int | None], kind: str
) -> None:
    first = FACTS | facts
    made = compared(weights, (first, GRADIENT), (first | {"batch_fingerprints": again}, GRADIENT))
    assert made.kind == kind
    one = known_from_one(weights, first, [11, 11])
    watched = first["watched"] and 4 in weights.fitting
    assert (one is not None) is (watched or first["batches"] == 1 or weights.weighing is Weighing.SUM)


def test_float64_agrees_to_its_own_rounding() -> None:
    for dtype, apart, kind in (("float32", 1e-7, EXACT), ("float64", 1e-7, ESTIMATE), ("float64", 1e-15, EXACT)):
        other = {"a": GRADIENT["a"] * (1 + apart)}
        facts = FACTS | {"dtype": dtype}
        made = compared(MEAN, (facts, GRADIENT), (facts | {"batch_fingerprints": [1, 2]}, other))
        assert made.kind == kind
