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
from tvgrad.problem.count import check_count
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
