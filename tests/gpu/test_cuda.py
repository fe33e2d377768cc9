"""What a GPU may change: speed, and rounding of its own. Skipped where there is none."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from tests.cases import CASES, Case
from tvgrad.errors import UnsupportedModel
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import objective_of
from tvgrad.record.gradient_sum import GradientSum
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.equivalence import EXACT, check_one_epoch
from tvgrad.theory.explain import explain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
# Sums of a few hundred products of order one, in an order of their own: some hundred half ulps.
ROUNDING = 1e-12
WEIGHT_NORM_ROUNDING = 1e-7  # that kernel works with numbers of single precision
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24}


def flat(vector: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([vector[name].cpu().double().flatten() for name in sorted(vector)])


def distance(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    norm = torch.linalg.vector_norm
    return float(norm(flat(found) - flat(truth)) / norm(flat(truth)))


def test_weight_norm_has_a_kernel_that_rounds_to_fewer_digits() -> None:
    """Where this fails, PyTorch has mended its kernel, and the next test needs no exception for it."""
    v, g = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    plain = v * g / v.norm(dim=1, keepdim=True)
    off = (torch._weight_norm(v.cuda(), g.cuda(), 0).cpu() - plain).abs().max() / plain.abs().max()
    assert 100 * ROUNDING < off < WEIGHT_NORM_ROUNDING


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == torch.float64], ids=lambda case: case.name)
def test_agrees_with_the_cpu(case: Case) -> None:
    rounding = WEIGHT_NORM_ROUNDING if case.name == "weight norm" else ROUNDING
    here, there = case.build(), case.build()
    on_cpu = Objective(here.model, here.loss, here.data, device="cpu", **here.options)
    on_gpu = Objective(there.model, there.loss, there.data, device=DEVICE, **there.options)
    assert on_gpu.value() == pytest.approx(on_cpu.value(), rel=rounding)
    gradient = on_cpu.gradient()
    assert distance(on_gpu.gradient(), gradient) < rounding
    if case.oracle_hvp:
        assert distance(on_gpu.hvp(gradient), on_cpu.hvp(gradient)) < 100 * rounding


def test_results_come_home() -> None:
    """To the device of the caller's model, whatever computes them and wherever vectors and data lie."""
    model, inputs = torch.nn.Linear(3, 2), torch.randn(5, 3)
    targets = torch.randint(2, (5,))
    loss = torch.nn.CrossEntropyLoss()
    for home in ("cpu", DEVICE):
        placed = copy.deepcopy(model).to(home)
        for data in ((inputs, targets), (inputs.to(DEVICE), targets.to(DEVICE))):
            objective = Objective(placed, loss, data)
            assert objective.device.type == DEVICE
            gradient = objective.gradient(objective.initial)
            for vector in (objective.initial, gradient, objective.hvp(gradient), *objective.hvps([gradient, gradient])):
                assert {tensor.device.type for tensor in vector.values()} == {home}
    assert distance(gradient, Objective(model, loss, (inputs, targets), device="cpu").gradient()) < 2.0**-20


@pytest.mark.parametrize("narrow", [torch.inference_mode, torch.no_grad])
def test_gradients_where_none_are_wanted(narrow: Callable[[], AbstractContextManager[None]]) -> None:
    inputs, targets = torch.randn(5, 3), torch.randint(2, (5,))
    model, loss = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
    truth = Objective(model, loss, (inputs, targets), device="cpu").gradient()
    with narrow():
        found = Objective(model, loss, (inputs, targets)).gradient()
    assert distance(found, truth) < 2.0**-20


def test_a_count_that_keeps_weights_on_the_cpu() -> None:
    weights = torch.tensor([1.0, 3.0])
    model, inputs, targets = torch.nn.Linear(3, 2), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    loss = torch.nn.CrossEntropyLoss(weight=weights)
    objective = Objective(model, loss, (inputs, targets), count=lambda batch: weights[batch[1]].sum(), chunk_size=2)
    assert objective.value() == pytest.approx(float(loss(model(inputs), targets)), rel=1e-6)


def test_a_loss_that_adds_in_any_order_is_no_noise() -> None:
    """The loss of tokens is summed by atomic additions, whose order is another one each time."""
    embed, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50)
    ids = torch.randint(50, (64, 128))

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = embed, head

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(torch.tanh(self.embed(ids)))
            return logits.transpose(1, 2)

    for _ in range(5):
        Objective(Tokens(), torch.nn.CrossEntropyLoss(), (ids, ids)).value()
    noisy = torch.nn.Sequential(torch.nn.Linear(3, 200), torch.nn.Dropout(0.01), torch.nn.Linear(200, 2)).train()
    with pytest.raises(UnsupportedModel, match="dropout in train mode"):
        Objective(noisy, torch.nn.CrossEntropyLoss(), (torch.randn(5, 3), torch.randint(2, (5,))))


@pytest.mark.parametrize("optimizer", ["gd", "sgd", "adam"])
def test_a_run_of_a_gpu_is_explained(digits: dict[str, Recipe], tmp_path: Path, optimizer: str) -> None:
    batch = None if optimizer == "gd" else 256
    record = () if batch is None else ("batches",)
    options = TraceOptions(
        optimizer=optimizer, device=DEVICE, epochs=2, lr=1e-3, batch_size=batch, record=("gradients", *record)
    )
    run = trace(prepare(digits["rotated"], options), tmp_path / "run")
    explanation = explain(run, objective_of(run, digits["rotated"], torch.float64))
    assert sum(row.share for row in explanation.budget.rows if row.epoch == 2) == pytest.approx(1, abs=1e-9)
    assert "replay mismatch" not in {row.term for row in explanation.budget.rows}
    assert all(math.isfinite(row.error_norm) for row in explanation.second_order)


@pytest.fixture
def reduced_precision() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def test_tf32_does_not_reach_recorded_numbers(reduced_precision: None) -> None:
    """TF32 keeps 10 bits, an error of some 1e-3; float32 sums of 256 products stay below 256 half ulps."""
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10)).double()
    inputs, targets = torch.randn(512, 256, dtype=torch.float64), torch.randint(10, (512,))
    loss = torch.nn.CrossEntropyLoss()
    truth = Objective(model, loss, (inputs, targets), device="cpu").gradient()
    narrow = Objective(model.float(), loss, (inputs.float(), targets), device=DEVICE)
    assert distance(narrow.gradient(), truth) < 256 * 2.0**-24
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_a_traced_run_verifies(digits: dict[str, Recipe], tmp_path: Path, dtype: str, optimizer: str) -> None:
    options = TraceOptions(optimizer=optimizer, dtype=dtype, device=DEVICE, epochs=3, lr=1e-3, batch_size=None)
    run = trace(prepare(digits["rotated"], options), tmp_path / "run")
    assert run.info["device"].startswith(DEVICE)
    check = check_one_epoch(run)
    # The budgets were derived for the kernels of the CPU. A kernel that keeps the rate in float32 is off by half an
    # ulp of it more, and the verdict then says whose kernels they were.
    assert check.holds == EXACT or "CPU kernels" in check.verdicts[-1].reason
    start, end, gradient = run.weights(0), run.weights(1), run.gradient(0)
    if optimizer != "adam":
        moved = {name: (start[name].double() - end[name].double()) / 1e-3 for name in start}
        worst = max(float((moved[n] - gradient[n].double()).abs().max()) for n in moved)
        largest = max(float(end[name].abs().max()) for name in end)
        # half an ulp of the weight over the rate, and the rounding of rate and product
        slope = max(float(g.abs().max()) for g in gradient.values())
        u = UNIT_ROUNDOFF[dtype]
        assert worst <= 2 * u * largest / 1e-3 + 4 * max(u, 2.0**-24) * slope


def test_a_run_goes_on_to_the_same_bits(digits: dict[str, Recipe], tmp_path: Path) -> None:
    made = {}
    for name, legs in {"whole": [4], "halves": [2, 4]}.items():
        for number, epochs in enumerate(legs):
            options = TraceOptions(
                optimizer="adam", lr=1e-3, batch_size=256, epochs=epochs, device=DEVICE, chunk_size=500,
                resume=number > 0,
            )  # fmt: skip
            made[name] = trace(prepare(digits["low"], options), tmp_path / name)
    for name, tensor in made["whole"].weights(4).items():
        assert torch.equal(tensor, made["halves"].weights(4)[name])


def test_the_sum_of_gradients_stays_in_place_and_takes_eight_bytes_a_parameter() -> None:
    like = {"w": torch.randn(1000, 1000, device=DEVICE)}
    sums = GradientSum()
    before = torch.cuda.memory_allocated()
    exact = torch.zeros(1000, 1000, dtype=torch.float64)
    for _ in range(40):
        gradient = torch.randn_like(like["w"])
        sums.add({"w": gradient})
        exact += gradient.cpu().double()
    del gradient
    assert torch.cuda.memory_allocated() - before <= 8 * 1_000_000 + 4096
    assert not sums.on_cpu
    assert torch.equal(sums.total(like)["w"], exact.float())
