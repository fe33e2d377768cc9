"""Sums of gradients against a plain float64 sum."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvgrad.record import gradient_sum
from tvgrad.record.gradient_sum import FOLD, GradientSum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, FOLD, FOLD + 1, 5 * FOLD + 3])
@pytest.mark.parametrize("folding", ["script", "script on an accelerator", "recorder"])
def test_the_sum(dtype: torch.dtype, count: int, folding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if folding == "script on an accelerator":
        monkeypatch.setattr(gradient_sum, "FOLDING", ())
    sums = GradientSum(folding != "recorder")
    like = {"a": torch.zeros(50, dtype=dtype), "b": torch.zeros(2, 3, dtype=dtype)}
    for _ in range(2):  # the second time in the same memory
        sums.clear()
        assert not sums
        exact = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
        for index in range(count):
            gradients = {name: torch.randn_like(tensor) for name, tensor in like.items() if name == "a" or index % 2}
            sums.add(gradients)
            for name, gradient in gradients.items():
                exact[name] += gradient.double()
        total = sums.total(like)
    stored = torch.float64 if dtype is torch.float64 else torch.float32
    assert [tensor.dtype for tensor in total.values()] == [stored, stored]
    for name in like:
        if folding == "script on an accelerator" or (folding == "recorder" and dtype is not torch.bfloat16):
            assert torch.equal(total[name], exact[name].to(stored))
        scale = count**0.5 * torch.finfo(stored).eps * 8
        assert (total[name].double() - exact[name]).abs().max() <= scale
    if count == 1:
        assert torch.equal(total["a"].double(), exact["a"])
        assert torch.equal(total["b"], torch.zeros(2, 3, dtype=stored))


def test_a_loss_scale_and_sparse_gradients() -> None:
    sums = GradientSum(folding=True)
    dense = torch.randn(4, 2)
    sums.add({"a": dense.to_sparse() * 8}, divisor=8.0)
    assert torch.equal(sums.total({"a": dense})["a"], dense)


BESIDE_TRAINING = """
import os, threading, torch
from tvgrad.record.gradient_sum import FOLD, GradientSum

like = {"a": torch.randn(1000, 1000)}
sums = GradientSum(folding=True)
for _ in range(2 * FOLD + 1):
    sums.add(like)

def threads():
    return set(os.listdir("/proc/self/task"))

def beside(work):
    counts = []
    def counted():
        counts.append(threads())
        work()
        counts.append(threads())
    thread = threading.Thread(target=counted)
    thread.start()
    thread.join()
    return len(counts[1] - counts[0])  # new ones: a thread that was joined may still be listed

print(beside(lambda: sums.total(like)), beside(lambda: like["a"] + like["a"]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's threads there")
def test_the_sum_is_read_without_a_second_team_of_threads() -> None:
    """Two OpenMP teams on two cores make the script's own operations a third slower."""
    command = [sys.executable, "-c", BESIDE_TRAINING]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    ours, torchs = map(int, done.stdout.split())
    assert torchs >= 1, "torch opens no team here, and nothing is tested"
    assert ours == 0
