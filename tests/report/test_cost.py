"""What commands say that they take: exact on the disk, within a factor in memory, and stopped before any work."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.traced_runs import Traced
from tvgrad.cost import held_bytes
from tvgrad.files.writing import bytes_on_disk, write_tensors
from tvgrad.merging.by_name import METHODS
from tvgrad.merging.merge_cost import merge_cost
from tvgrad.merging.runs import merge_runs
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.record.options import TraceOptions
from tvgrad.record.trace_cost import trace_cost
from tvgrad.record.training_loop import prepare, trace
from tvgrad.report.report_cost import report_cost
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.theory import budget_plan
from tvgrad.theory.explain import explain
from tvgrad.theory.explain_cost import planned_evaluations

KINDS = ("weights", "gradients", "epoch_gradients")


@pytest.mark.parametrize("most", [10**9, 300, 1])
def test_the_bytes_of_files_are_told_exactly(tmp_path: Path, most: int) -> None:
    tensors = {
        "b.weight": torch.zeros(7, 9),
        "a": torch.zeros((), dtype=torch.float64),
        "ü": torch.zeros(3, dtype=torch.bfloat16),
        "c": torch.zeros(0, 2),
        "mask": torch.zeros(5, dtype=torch.bool),
    }
    write_tensors(tensors, tmp_path / "epoch-0001.safetensors", most)
    places = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert bytes_on_disk(places, "epoch-0001", max_shard_bytes=most) == written


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16", "record": ("gradients", "epoch-gradients"), "optimizer": "adam", "batch_size": 64},
        {"keep": KeepPolicy("last:1"), "record": ()},
    ],
)
def test_the_tensor_files_of_a_trace_take_what_was_told(digits, tmp_path: Path, options) -> None:
    prepared = prepare(digits["low"], TraceOptions(**{"epochs": 2, "chunk_size": 200, **options}))
    told = trace_cost(prepared, 1.0)
    trace(prepared, tmp_path / "run")
    files = [path for kind in KINDS for path in (tmp_path / "run" / kind).glob("*")]
    files += (tmp_path / "run").glob("static.safetensors")
    assert told.disk == sum(path.stat().st_size for path in files)
    assert told.seconds == (3 if "record" not in options else 5 if options["record"] else 2)
    assert f"{told.disk:,} bytes of tensor files (exact)" in told.sentence


@pytest.mark.parametrize("method", ["mean", "ties", "tsv_m"])
def test_a_merged_file_takes_what_was_told(traced: Traced, tmp_path: Path, method: str) -> None:
    runs = [traced("rotated"), traced("low")]
    told = merge_cost(runs, 2, METHODS[method](), tmp_path / "merged.safetensors")
    made = merge_runs(runs, 2, METHODS[method](), alpha=0.5, out=tmp_path / "merged.safetensors")
    assert told.disk == made.path.stat().st_size
    assert told.seconds > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"optimizer": "sgd", "batch_size": 100, "record": ("gradients", "batches")}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_passes_of_an_explanation_are_counted(traced: Traced, options) -> None:
    run = traced("low", epochs=4, **options)
    objective = objective_of(run, recipe_of(run, "digits"), torch.float64, device="cpu")
    told, budgets = planned_evaluations(run, objective, None, remainder=False)
    made = explain(run, objective)
    assert budgets == 4
    batches = len(run.steps(1))
    gradients = made.counts.gradients + made.batch_counts.gradients / batches
    products = made.counts.hvps + made.batch_counts.hvps / batches
    assert told.gradients == pytest.approx(gradients, rel=0.5)
    assert told.hvps == pytest.approx(products, rel=0.5)


def test_a_report_tells_what_it_reads(traced: Traced) -> None:
    run = traced("rotated")
    told = report_cost([run], None, "tables")
    size = sum(one.numel() for one in run.weights(0).values()) * 4
    assert told.what.endswith(f"{size * (4 + len(run.having('gradient'))):,} bytes to read")
    assert told.seconds > 0
    assert told.disk == 0


MEASURE = """
import sys, tempfile
from pathlib import Path
import torch
import tvgrad
from torch import nn
from tvgrad.cost import held_bytes
from tvgrad.problem import count
from tvgrad.record.options import TraceOptions
from tvgrad.record.trace_cost import trace_cost
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.budget_plan import gradient_seconds

options = {"epochs": 2, "chunk_size": 4, **({"optimizer": "adam", "batch_size": 6} if sys.argv[2] == "adam" else {})}
if sys.argv[1] == "wide":
    count.WIDEST = 0
    import tvgrad.record.trace_cost
    tvgrad.record.trace_cost.WIDEST = 0

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20_000, 1000), nn.Linear(1000, 3)

    def forward(self, words):
        return self.out(self.words(words).mean(1))

data = torch.arange(48).reshape(12, 4) % 20, torch.arange(12) % 3
recipe = tvgrad.Recipe(Bag(), nn.CrossEntropyLoss(), data, name="bag", lr=0.001)
prepared = prepare(recipe, TraceOptions(**options))
told = trace_cost(prepared, gradient_seconds(prepared.objective)).memory
with tempfile.TemporaryDirectory() as folder:
    trace(prepared, Path(folder, "run"))
print(told / held_bytes())
"""

FACTOR = 1.5
"""Within which the memory of a trace is told."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("size", ["narrow", "wide"])
@pytest.mark.parametrize("rule", ["gd", "adam"])
def test_the_memory_of_a_trace_is_told_within_a_factor(size: str, rule: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, size, rule], capture_output=True, text=True, timeout=600, check=True
    )
    assert 1 / FACTOR < float(done.stdout) < FACTOR


def test_commands_stop_after_telling(tvgrad, traced: Traced, tmp_path: Path) -> None:
    runs = [traced("rotated").root, traced("low").root]
    out = tmp_path / "out"
    commands = [
        ["trace", "digits", "--tasks", "low", "--out", out, "--cost"],
        ["report", runs[0], "--out", out, "--cost"],
        ["merge", *runs, "--out", out.with_suffix(".safetensors"), "--cost"],
        ["explain", runs[1], "--cost"],
        ["predict", "digits", "--tasks", "low", "--cost"],
    ]
    for words in commands:
        done = tvgrad(*words)
        assert done.code == 0, done
        assert re.search(r"about [\d.e+-]+ s, about [\d.]+ [kMG]B of memory at the peak, ", done.out), done
        assert len(done.out.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    refused = tvgrad("merge", *runs, "--pretrained", runs[0], "--out", out, "--cost")
    assert refused.code == 2
    assert "leave out --pretrained" in refused.err


def test_what_a_process_holds() -> None:
    assert held_bytes() > 100_000_000  # torch is imported


@pytest.mark.parametrize(("setup", "product"), [(0.5, 0.1), (5.0, 5.1)])
def test_what_the_first_product_sets_up_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, setup: float, product: float
) -> None:
    """On a clock that the calls themselves turn; a long first product is not done twice."""
    now = [0.0]
    called: list[str] = []

    class View:
        def gradient(self) -> None:
            now[0] += 0.04 + setup * ("gradient" not in called)
            called.append("gradient")

        def hvp(self, vector: object) -> None:
            now[0] += 0.1 + setup * ("hvp" not in called)
            called.append("hvp")

    monkeypatch.setattr(budget_plan, "batch_view", lambda objective, places: View())
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    costs = budget_plan.measured_costs(SimpleNamespace(chunk_size=8, samples=range(80)))  # type: ignore[arg-type]
    assert costs.gradient == pytest.approx(10 * 0.04)
    assert costs.hvp == pytest.approx(10 * product)
    assert called.count("hvp") == 1 + (setup < 1)
