"""The checks refuse what has no full-batch gradient, let the rest through, and leave no trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import (
    CLASSES,
    FEATURES,
    IGNORED,
    REFUSED,
    Drops,
    Noisy,
    Rows,
    TokenModel,
    kept_tokens,
    mlp,
    token_loss,
)
from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.problem.batch_loss import BatchLoss, size_of, target_of
from tvgrad.problem.checks import ALLOWABLE, CHECKED_SAMPLES, check_problem
from tvgrad.problem.count import SAMPLES, SCANNED
from tvgrad.problem.samples import Samples

CPU = torch.device("cpu")


def data(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, FEATURES), torch.arange(n) % CLASSES


def test_a_sound_objective_passes_in_every_mode_and_context() -> None:
    model = nn.Sequential(mlp().float(), nn.Dropout(0.0)).train()
    for around in (torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        with around():
            check_problem(BatchLoss(model, F.cross_entropy), Samples(data()), CPU)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rounding_is_not_taken_for_a_wrong_count(dtype: torch.dtype, scale: float) -> None:
    model = mlp().to(dtype)
    check_problem(BatchLoss(model, lambda out, y: F.cross_entropy(out, y) * scale), Samples(data(), dtype=dtype), CPU)


@pytest.mark.parametrize("where", [0, 15, 29])
def test_samples_from_all_over_the_data_are_read(where: int) -> None:
    """The first and the last sample, and what lies between: not the first dozen."""
    x, y = data()
    weights = torch.ones(CLASSES + 1)
    weights[CLASSES] = 50.0
    y[max(0, where - 2) : where + 3] = CLASSES
    model = nn.Linear(FEATURES, CLASSES + 1)
    with pytest.raises(UnsupportedModel, match="pass count="):
        check_problem(BatchLoss(model, nn.CrossEntropyLoss(weight=weights)), Samples((x, y)), CPU)
    seen: list[int] = []

    class Counted(Rows):
        def __getitem__(self, index: int) -> object:
            seen.append(index)
            return super().__getitem__(index)

    check_problem(BatchLoss(mlp().float(), F.cross_entropy), Samples(Counted(list(zip(*data(1000), strict=True)))), CPU)
    assert {0, 999} <= set(seen)
    assert len(set(seen)) <= CHECKED_SAMPLES + SCANNED + SAMPLES


@pytest.mark.parametrize("n", [1, 2, 3, 11, 12, 13])
def test_small_data(n: int) -> None:
    check_problem(BatchLoss(mlp().float(), F.cross_entropy), Samples(data(n)), CPU)


@pytest.mark.parametrize(
    ("allowed", "model", "given"),
    [
        ("dropout", Drops, data()),
        ("batchnorm", lambda: nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)), data()),
        ("augmentation", lambda: mlp().float(), Noisy("torch")),
    ],
)
def test_what_is_allowed_passes_and_nothing_else_allows_it(allowed: str, model: type[nn.Module], given: object) -> None:
    loss = BatchLoss(model(), F.cross_entropy)
    check_problem(loss, Samples(given), CPU, [allowed])
    for other in set(ALLOWABLE) - {allowed, "dropout" if allowed == "augmentation" else allowed}:
        with pytest.raises(UnsupportedModel, match=f"allow '{allowed}'"):
            check_problem(loss, Samples(given), CPU, [other])


def test_allowed_count() -> None:
    loss = BatchLoss(mlp().float(), nn.CrossEntropyLoss(reduction="sum"))
    check_problem(loss, Samples(data()), CPU, ["count"])


def test_an_ignored_part_does_not_make_the_recombination_nan() -> None:
    """The first third of what is probed weighs nothing: its mean is 0/0 and has no part in the sum."""
    labels = torch.randint(0, 10, (12, 4))
    labels[:5] = IGNORED
    rows = [{"input_ids": torch.randint(0, 10, (4,)), "labels": label} for label in labels]
    loss = BatchLoss(TokenModel(), token_loss, lambda net, batch: net(batch["input_ids"]), kept_tokens)
    check_problem(loss, Samples(Rows(rows)), CPU)


def test_buffers_and_modes_stay() -> None:
    model = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_problem(BatchLoss(model, F.cross_entropy), Samples(data()), CPU, ["batchnorm"])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_every_refusal_is_one_sentence_with_one_cause() -> None:
    assert len({wanted.name for wanted in REFUSED}) == len(REFUSED) >= 40


class Answers(nn.Module):
    def forward(self, *parts: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return torch.tensor([len(parts), len(named), "labels" in named])


def test_how_batches_go_through_a_model() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)

    def seen(batch: object, **options: object) -> list[int]:
        return BatchLoss(Answers(), **({"loss": F.mse_loss} | options)).output(batch).tolist()

    assert seen((x, y)) == [1, 0, 0]
    assert seen(((x, x), y)) == [2, 0, 0]
    assert seen(({"a": x, "b": x}, y)) == [0, 2, 0]
    assert seen({"a": x, "labels": y}) == [0, 1, 0]
    assert seen({"a": x, "labels": y}, loss=None) == [0, 2, 1]


def test_targets_and_sizes() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4)
    assert target_of((x, y)) is y
    assert target_of({"x": x, "target": y}) is y
    for nothing in (x, [x], {"x": x}):
        with pytest.raises(TvgradError, match="target"):
            target_of(nothing)
    assert size_of({"flag": torch.tensor(1), "x": [x]}) == 4
    with pytest.raises(TvgradError, match="pass count="):
        size_of({"flag": torch.tensor(1), "words": ["a", "b"]})
