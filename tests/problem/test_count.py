"""Wrong counts are found, whatever the head and however rare a class; right ones pass. The truth is formed here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tvgrad.errors import UnsupportedModel
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.count import check_chunks, check_count
from tvgrad.problem.objective import Objective
from tvgrad.problem.samples import Samples

Count = Callable[[Any], Any] | None
CPU = torch.device("cpu")
CHUNK = 7


@dataclass(frozen=True)
class Imbalanced:
    """A data set with classes of very unequal frequency, weights for them, and some masked targets."""

    x: torch.Tensor
    y: torch.Tensor
    masked: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def draw(cls, seed: int) -> Imbalanced:
        generator = torch.Generator().manual_seed(seed)
        classes = int(torch.randint(2, 8, (1,), generator=generator))
        size = int(torch.randint(40, 400, (1,), generator=generator))
        frequencies = torch.rand(classes, generator=generator) ** 4 + 0.003
        y = torch.multinomial(frequencies, size, replacement=True, generator=generator)
        y[0] = classes - 1  # one class may have a single sample
        y[1] = 0
        x = torch.randn(size, 6, generator=generator) + 0.3 * y[:, None]
        masked = y.clone()
        masked[torch.rand(size, generator=generator) < 0.2] = -100
        masked[1] = 0
        return cls(x, y, masked, torch.rand(classes, generator=generator) * 5 + 0.1)

    def model(self, seed: int, zero_head: bool) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 9), nn.Tanh() if seed % 2 else nn.ReLU(), nn.Linear(9, len(self.weights)))
        if zero_head:
            for parameter in model[2].parameters():
                nn.init.zeros_(parameter)
        return model

    def counts(self) -> dict[str, tuple[Any, torch.Tensor, Count]]:
        """Loss, targets and count, right and wrong ones."""
        w = self.weights
        weighted, plain = nn.CrossEntropyLoss(weight=w), nn.CrossEntropyLoss()
        uniform = nn.CrossEntropyLoss(weight=torch.full_like(w, 3.0))
        return {
            "weights, no count": (weighted, self.y, None),
            "weights, counting samples": (weighted, self.y, lambda batch: len(batch[1])),
            "weights, nearly right": (weighted, self.y, lambda batch: (w[batch[1]] ** 1.01).sum()),
            "weights in a function": (lambda o, t: F.cross_entropy(o, t, weight=w.to(o.dtype)), self.y, None),
            "weights of one dtype": (lambda o, t: F.cross_entropy(o, t, weight=w), self.y, None),
            "masked, no count": (plain, self.masked, None),
            "a sum": (nn.CrossEntropyLoss(reduction="sum"), self.y, None),
            "weights, right": (weighted, self.y, lambda batch: w[batch[1]].sum()),
            "weights all alike": (uniform, self.y, None),
            "masked, right": (plain, self.masked, lambda batch: (batch[1] != -100).sum()),
            "plain": (plain, self.y, None),
            "pos_weight": (
                lambda o, t: F.binary_cross_entropy_with_logits(
                    o[:, 0], (t % 2).to(o.dtype), pos_weight=torch.tensor(3.0, dtype=o.dtype)
                ),
                self.y,
                None,
            ),
        }


def gradient_error(part: BatchLoss, x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative error of the full-batch gradient that chunks weighted by the count make, in float64."""
    model, loss = copy.deepcopy(part.model).double(), part.loss
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    parameters = list(model.parameters())

    def gradient(start: int, stop: int) -> torch.Tensor:
        output = model(x[start:stop].double())
        try:
            value = loss(output, y[start:stop])  # type: ignore[misc]
        except RuntimeError:  # weights of one dtype
            value = loss(output.float(), y[start:stop])  # type: ignore[misc]
        found = torch.autograd.grad(value, parameters, materialize_grads=True)
        return torch.cat([tensor.flatten() for tensor in found])

    whole = gradient(0, len(x))
    total, mass = torch.zeros_like(whole), 0.0
    for start in range(0, len(x), CHUNK):
        batch = x[start : start + CHUNK], y[start : start + CHUNK]
        weight = float(len(batch[1]) if part.count is None else part.count(batch))
        if weight:
            total, mass = total + weight * gradient(start, start + CHUNK), mass + weight
    return float((total / mass - whole).norm() / whole.norm())


def check(seed: int) -> None:
    drawn = Imbalanced.draw(seed)
    for zero_head in (False, True):
        for name, (loss, targets, count) in drawn.counts().items():
            part = BatchLoss(drawn.model(seed, zero_head), loss, None, count)
            error = gradient_error(part, drawn.x, targets)
            said = ""
            try:
                check_count(part, Samples((drawn.x, targets)), CPU)
            except UnsupportedModel as refusal:
                said = str(refusal)
            assert ("count" in said) == (error > 1e-6), (seed, name, zero_head, error, said)


@pytest.mark.parametrize("seed", range(8))
def test_counts_over_imbalanced_data(seed: int) -> None:
    check(seed)


@pytest.mark.parametrize("seed", range(2))
def test_counts_by_sketches_of_gradients(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model whose gradients are too large to hold several of."""
    monkeypatch.setattr("tvgrad.problem.sketch.HELD", 0)
    monkeypatch.setattr("tvgrad.problem.sketch.WIDTH", 7)
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 128))
def test_counts_over_a_hundred_imbalanced_data_sets(seed: int) -> None:
    check(seed)


def test_class_weights_of_data_that_cannot_all_be_read_need_a_count() -> None:
    """One rare class among many samples of a data set without tensors: the samples that are read need not hold it."""

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 5000

        def __getitem__(self, index: int) -> Any:
            return torch.ones(6) * (index % 3), int(index == 4321)

    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 20.0]))
    with pytest.raises(
        UnsupportedModel, match=r"CrossEntropyLoss has class weights .* pass count=lambda batch: weight"
    ):
        check_count(BatchLoss(nn.Linear(6, 2), loss), Samples(Rows()), CPU)


def test_a_frozen_head_of_zeros_hides_nothing() -> None:
    """At theta_0 no weight of the backbone has a gradient at all: only perturbed weights show the count."""
    drawn = Imbalanced.draw(3)
    model = drawn.model(3, zero_head=True)
    model[2].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(UnsupportedModel, match="not the mean of the gradients of its parts"):
        check_count(BatchLoss(model, nn.CrossEntropyLoss(weight=drawn.weights)), Samples((drawn.x, drawn.y)), CPU)


def wrong_classes(count: Count = None) -> tuple[BatchLoss, Samples]:
    """A hundred classes, one of which weighs twenty times as much."""
    weights, y = torch.ones(100), torch.arange(2000) % 100
    weights[37] = 20.0
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(5))
    return BatchLoss(nn.Linear(6, 100), nn.CrossEntropyLoss(weight=weights), None, count), Samples((x, y))


def test_one_heavy_class_of_a_hundred_is_among_the_samples() -> None:
    with pytest.raises(UnsupportedModel, match="pass count=lambda batch: weight"):
        check_count(*wrong_classes(), CPU)


def test_a_gradient_far_smaller_than_the_loss_is_compared_by_its_own_size() -> None:
    """Tiny inputs under a head of zeros: all values are log 3, and the gradient is 1e-8 of them and wrong."""
    model, weights = nn.Linear(6, 3, bias=False), torch.tensor([1.0, 5.0, 20.0])
    nn.init.zeros_(model.weight)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(5)) * 1e-8
    part = BatchLoss(model, lambda o, t: F.cross_entropy(o, t, weight=weights.to(o.dtype)))
    with pytest.raises(UnsupportedModel, match="not the mean of the gradients of its parts"):
        check_count(part, Samples((x, torch.arange(200) % 3)), CPU)


def test_a_padding_token_of_few_samples_is_among_them() -> None:
    y = torch.randint(1, 5, (300, 8), generator=torch.Generator().manual_seed(5))
    y[123, 4:] = 0
    part = BatchLoss(nn.Conv1d(3, 5, 1), nn.CrossEntropyLoss(ignore_index=0))
    with pytest.raises(UnsupportedModel, match=r"\(batch\[1\] != 0\)\.sum\(\)"):
        check_count(part, Samples((torch.randn(300, 3, 8), y)), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_loss_that_is_fitted_exactly_only_rounding_is_left(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).to(dtype)
    x = torch.randn(200, 6, dtype=dtype)
    part, samples = BatchLoss(model, nn.MSELoss()), Samples((x, model(x).detach()))
    check_count(part, samples, CPU)
    check_chunks(part, samples, CPU, 64)


class DependsOnLargeBatches(nn.Module):
    """Subtracts the mean of its batch once that is larger than the few samples that are compared at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x - x.mean(0)) if len(x) > 24 else self.inner(x)


def test_the_first_gradient_is_compared_at_two_chunk_sizes() -> None:
    data = torch.randn(900, 6) + 1, torch.arange(900) % 3
    objective = Objective(DependsOnLargeBatches(), nn.CrossEntropyLoss(), data, chunk_size=64)
    with pytest.raises(UnsupportedModel, match=r"between chunks of 56 and of 22 samples.*count is wrong.*statistics"):
        objective.gradient()
    allowed = Objective(DependsOnLargeBatches(), nn.CrossEntropyLoss(), data, chunk_size=64, allow=("count",))
    assert allowed.gradient()


def test_a_count_that_is_wrong_for_classes_unseen_at_construction_is_found_at_the_first_gradient() -> None:
    part, samples = wrong_classes(lambda batch: len(batch[1]))
    weights = part.loss.weight  # type: ignore[union-attr]
    plain = BatchLoss(part.model, lambda o, t: F.cross_entropy(o, t, weight=weights.to(o.dtype)))
    check_count(plain, samples, CPU)  # a function hides its weights, and 24 samples do not hold a hundred classes
    with pytest.raises(UnsupportedModel, match="which is no rounding"):
        check_chunks(plain, samples, CPU, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_right_gradients_through_gates_pass_at_two_chunk_sizes(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no float64 copy is made, and gates open or close by the rounding of another chunk size."""
    monkeypatch.setattr("tvgrad.problem.count.WIDEST", 0)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 64), nn.ReLU())
    model.append(nn.Linear(64, 5))
    data = torch.randn(700, 3, 8, 8).to(dtype), torch.arange(700) % 5
    check_chunks(BatchLoss(model.to(dtype), nn.CrossEntropyLoss()), Samples(data), CPU, 512)


class OneByOne(list[str]):
    """Names that must not be looked up one by one: of 40,000 parameters that takes minutes."""

    def __contains__(self, _: object) -> bool:
        raise AssertionError("looked up in a list")


def test_the_time_of_a_gradient_grows_with_the_parameters_and_not_their_square() -> None:
    model = nn.Linear(3, 2)
    loss = BatchLoss(model, nn.CrossEntropyLoss())
    batch = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    state = loss.parts()
    names = OneByOne(state)
    value, gradients = loss.derivative(state, names, batch)
    truth = nn.functional.cross_entropy(model(batch[0]), batch[1])
    assert float(value) == float(truth)
    wanted = torch.autograd.grad(truth, list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(gradients, wanted, strict=True))
