"""Unchanged training scripts on a GPU: the same bits with and without the trace, and the gradients of their own loss.

The gradient at its recorded weights is computed here again, in float64 and
on the CPU, by other code. Plain Python processes are started: torch's compiler needs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tvgrad import Run
from tvgrad.store.measured import EXACT
from tvgrad.theory.explain import read_results
from tvgrad.theory.verdicts import YES, verdict_rows
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.timeout(600),
]

DATA = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(88, 16)
y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 3))
"""
SCRIPT = """
model = WRAP(model.to("DEVICE"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2OPTIONS)
loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, pin_memory=PINNED, num_workers=WORKERS)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * len(loader))
scaler = torch.amp.GradScaler("DEVICE", enabled=SCALED)
if __name__ == "__main__":
    for epoch in range(3):
        for a, b in loader:
            a, b = a.to("DEVICE", non_blocking=True), b.to("DEVICE", non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast("DEVICE", dtype=torch.NARROW, enabled=CAST):
                loss = nn.functional.cross_entropy(model(a), b)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    torch.save({name: p.detach().cpu() for name, p in model.named_parameters()}, sys.argv[1])
"""
PLAIN = {
    "WRAP": "", "OPTIONS": "", "BATCH": "11", "PINNED": "False", "WORKERS": "0", "SCALED": "False",
    "NARROW": "bfloat16", "CAST": "False",
}  # fmt: skip
# What a script may change, and the relative error of a gradient in its arithmetic: float32 batches of eleven samples,
# two layers, some 16 roundings of half an ulp; with 8 or 11 bits, a rounding of inputs, products and each gradient.
FLOAT32, BFLOAT16, FLOAT16 = 16 * 2.0**-24, 8 * 2.0**-9, 8 * 2.0**-12
SCRIPTS = {
    "plain": ({}, FLOAT32),
    "fused": ({"OPTIONS": ", fused=True"}, FLOAT32),
    "capturable": ({"OPTIONS": ", capturable=True"}, FLOAT32),
    "pinned workers": ({"PINNED": "True", "WORKERS": "2"}, FLOAT32),
    "bfloat16 autocast": ({"CAST": "True"}, BFLOAT16),
    "float16 scaled": ({"CAST": "True", "NARROW": "float16", "SCALED": "True"}, FLOAT16),
    "compiled": ({"WRAP": "torch.compile"}, FLOAT32),
}


def program(**changes: str) -> str:
    text = SCRIPT
    for word, value in {**PLAIN, **changes}.items():
        text = text.replace(word, value)
    return DATA + text.replace("DEVICE", DEVICE)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=240, cwd=folder, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def own_gradient(weights: Weights) -> Weights:
    """The full-batch gradient in float64 on the CPU."""
    scope: dict[str, object] = {}
    exec(DATA, scope)
    model, x, y = scope["model"], scope["x"], scope["y"]
    assert isinstance(model, nn.Module)
    assert isinstance(x, torch.Tensor)
    model.double().load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in weights.items()})
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = nn.functional.cross_entropy(model(x.double()), y)  # type: ignore[arg-type]
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def traced(folder: Path, content: str, *options: str) -> tuple[Run, str]:
    """The run of a script; its final weights are the same to the bit without the trace."""
    (folder / "script.py").write_text(content)
    alone = run(folder, "script.py", "alone.pt")
    assert alone.returncode == 0, alone.stderr
    words = ("-m", "tvgrad", "trace", "--out", "run", *options, "--", sys.executable, "script.py", "traced.pt")
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    final, before = (torch.load(folder / name, weights_only=True) for name in ("traced.pt", "alone.pt"))
    assert all(torch.equal(tensor, final[name]) for name, tensor in before.items())
    record = Run.open(folder / "run")
    last = record.weights(record.epochs[-1])
    # names of a compiled module may carry its prefix in the script, and need not in the record
    assert {name.removeprefix("_orig_mod."): None for name in final}.keys() == last.keys()
    assert all(torch.equal(tensor, last[name.removeprefix("_orig_mod.")]) for name, tensor in final.items())
    return record, done.stderr


@pytest.mark.parametrize("case", SCRIPTS)
def test_gradients_of_a_script(tmp_path: Path, case: str) -> None:
    changes, rounding = SCRIPTS[case]
    record, said = traced(tmp_path, program(**changes), "--gradients", "0,last")
    assert record.epochs == [0, 1, 2, 3]
    assert record.having("gradient") == [0, 3]
    for epoch in (0, 3):
        truth = own_gradient(record.weights(epoch))
        found = {name.removeprefix("_orig_mod."): tensor for name, tensor in record.gradient(epoch).items()}
        assert norm(difference(found, truth)) <= rounding * norm(truth), said
        # Batches are drawn anew in a second pass: only where a pass is repeated to rounding is it the full batch.
        assert record.info["measured_gradients"][str(epoch)]["kind"] == EXACT, said


def test_gradient_descent_is_exact(tmp_path: Path) -> None:
    content = program(BATCH="88").replace("AdamW", "SGD").replace("1e-2", "0.1")
    content = content.replace("    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)\n", "    pass\n")
    content = content.replace("            scheduler.step()\n", "")
    record, _ = traced(tmp_path, content, "--gradients", "0,1")
    for row in verdict_rows(record):
        assert row.gradient_holds == YES


def test_a_script_is_explained(tmp_path: Path) -> None:
    record, _ = traced(tmp_path, program(), "--gradients", "0")
    done = run(tmp_path, "-m", "tvgrad", "explain", "run", "--", sys.executable, "script.py", "again.pt")
    assert done.returncode == 0, done.stderr + done.stdout
    rows = read_results(Run.open(record.root))[1]
    assert {"clipping", "preconditioner"} <= {row.term for row in rows}, done.stdout
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-9)
