"""What tasks are measured by, on a GPU: single samples' gradients, measurements, plans, sketches, spread parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tvgrad
from tests.cases import CASES, Case
from tests.gpu.test_cuda import DEVICE, ROUNDING, distance
from tests.integrations.script.script_runs import SCRIPTS
from tvgrad.errors import UnsupportedModel
from tvgrad.merging import fisher, load_measurements, measure, measured_trust_region, regmean
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.vectors.parameters import Weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.timeout(300),
]
# The kernel of weight_norm works with numbers of single precision (test_cuda).
DOUBLE = [case for case in CASES if case.dtype == torch.float64 and case.name != "weight norm"]
each_case = pytest.mark.parametrize("case", DOUBLE, ids=lambda case: case.name)


def on_both(case: Case) -> tuple[Objective, Objective]:
    return tuple(  # type: ignore[return-value]
        Objective(problem.model, problem.loss, problem.data, device=device, **problem.options)
        for device, problem in (("cpu", case.build()), (DEVICE, case.build()))
    )


def rows(objective: Objective) -> Weights:
    chunks = [part for _, part in objective.sample_gradients()]
    return {name: torch.cat([part[name] for part in chunks]) for name in objective.initial}


@each_case
def test_single_samples_agree_with_the_cpu(case: Case) -> None:
    here, there = on_both(case)
    assert distance(rows(there), rows(here)) < ROUNDING
    assert distance(there.gradient_magnitudes(), here.gradient_magnitudes()) < ROUNDING
    assert distance(there.fisher_diagonal(kind="empirical"), here.fisher_diagonal(kind="empirical")) < ROUNDING
    grams, truth = there.gram_inputs(), here.gram_inputs()
    assert grams.keys() == truth.keys()
    assert not truth or distance(grams, truth) < ROUNDING


@each_case
def test_outputs_agree_with_the_cpu(case: Case) -> None:
    if not case.forward_mode:
        pytest.skip("has no derivative in forward mode")
    here, there = on_both(case)
    direction = here.gradient()
    try:
        here.outputs()
    except UnsupportedModel as error:
        pytest.skip(str(error))
    for one, other in ((there.outputs(), here.outputs()), (there.jvp(direction), here.jvp(direction))):
        assert one.device == other.device
        assert float((one - other).norm()) <= ROUNDING * float(other.norm())


def test_measurements_of_a_gpu_merge_on_a_cpu(digits: dict[str, Recipe], tmp_path: Path) -> None:
    pair = [digits["low"], digits["high"]]
    found = {}
    for device in ("cpu", DEVICE):
        objectives = [recipe.objective(device=device, dtype=torch.float64) for recipe in pair]
        vectors = [{name: -0.01 * part for name, part in one.gradient().items()} for one in objectives]
        told = tvgrad.plan(objectives, task_vectors=vectors, pairs=True)
        path = tmp_path / f"{device}.safetensors"
        measure(["low", "high"], objectives, slopes=told.slopes, pairs=told.pairs).save(path)
        read = load_measurements(path)
        found[device] = [method(vectors, read) for method in (fisher, regmean, measured_trust_region)]
    # RegMean solves a system whose Gram matrices are nearly singular; the others divide sums.
    for one, other, rounding in zip(found[DEVICE], found["cpu"], (1e-10, 1e-6, 1e-10), strict=True):
        assert distance(one, other) < rounding


def test_sketches_are_the_same_bits_wherever_a_vector_lies() -> None:
    vector = {"a": torch.randn(300, 700), "b": torch.randn(11, dtype=torch.float64), "c": torch.randn(5000).bfloat16()}
    there = tvgrad.sketch({name: part.to(DEVICE) for name, part in vector.items()}, 1024)
    assert torch.equal(there.values, tvgrad.sketch(vector, 1024).values)


def tvgrad_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tvgrad", *words], capture_output=True, text=True, timeout=240, cwd=folder, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_plan_is_that_of_the_cpu(tmp_path: Path) -> None:
    said = {}
    for device in ("cpu", DEVICE):
        done = tvgrad_command(tmp_path, "plan", "digits", "--dtype", "float64", "--device", device, "--json")
        assert done.returncode == 0, done.stderr
        said[device] = json.loads(done.stdout)
    assert said[DEVICE]["coefficient"] == pytest.approx(said["cpu"]["coefficient"], rel=1e-9)


@pytest.mark.distributed
def test_a_script_of_spread_parameters_is_recorded(tmp_path: Path) -> None:
    """FSDP2 over NCCL, here a group of one process: weights are the script's to the bit."""
    text = (SCRIPTS / "fully_sharded.py").read_text()
    text = text.replace('"gloo")\n', '"nccl", device_id=torch.device("cuda", 0))\n')
    text = text.replace("for layer in model:", "model.cuda()\nfor layer in model:", 1)
    text = text.replace("model(batch), labels", "model(batch.cuda()), labels.cuda()")
    text = text.replace("torch.save(whole", "torch.save({n: t.cpu() for n, t in whole.items()}")
    assert text.count("cuda") == 4
    (tmp_path / "script.py").write_text(text)
    plain = tmp_path / "plain"
    plain.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    done = tvgrad_command(tmp_path, "trace", "--out", "run", "--", *launcher, "script.py", str(plain), "2")
    assert done.returncode == 0, done.stderr
    record = tvgrad.Run.open(tmp_path / "run")
    assert not record.problems()
    for epoch in (0, 1, 2):
        truth = torch.load(plain / f"epoch{epoch}.pt", weights_only=True)
        assert all(torch.equal(truth[name], tensor) for name, tensor in record.complete(epoch).items())
