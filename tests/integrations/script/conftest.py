"""Scripts made for a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.script.script_runs import warm
from tests.small_runs import make_recipe, traced

__all__ = ["make_recipe", "traced"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a script whose beginning all share, and returns the command that runs it; `afresh`, in a new Python."""
    beginning = """
import itertools, os, signal, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(20, 3)
data = TensorDataset(x, x.sum(1, keepdim=True))
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(data, batch_size=5, shuffle=True)
def step(a, b):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(a), b).backward()
    optimizer.step()
"""

    def make(content: str, afresh: bool = False) -> list[str]:
        script = tmp_path / "script.py"
        script.write_text(beginning + content)
        return [sys.executable, str(script)] if afresh else warm(str(script))

    return make
