"""What a GPU may change: speed, and rounding of its own. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cases import CASES, Case
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.record.gradient_sum import GradientSum
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.equivalence import EXACT, check_one_epoch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
# Sums of a few hundred products of order one, in an order of their own: some hundred half ulps.
ROUNDING = 1e-12
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24}


def flat(vector: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([vector[name].cpu().double().flatten() for name in sorted(vector)])


def distance(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    norm = torch.linalg.vector_norm
    return float(norm(flat(found) - flat(truth)) / norm(flat(truth)))


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == torch.float64], ids=lambda case: case.name)
def test_agrees_with_the_cpu(case: Case) -> None:
    here, there = case.build(), case.build()
    on_cpu = Objective(here.model, here.loss, here.data, device="cpu", **here.options)
    on_gpu = Objective(there.model, there.loss, there.data, device=DEVICE, **there.options)
    assert on_gpu.value() == pytest.approx(on_cpu.value(), rel=ROUNDING)
    gradient = on_cpu.gradient()
    assert distance(on_gpu.gradient(), gradient) < ROUNDING
    if case.oracle_hvp:
        assert distance(on_gpu.hvp(gradient), on_cpu.hvp(gradient)) < 100 * ROUNDING


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
