"""Same command, same bits: whatever the optimizer, two traces write the same files, dates and durations apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tvgrad.problem.recipe import OPTIMIZERS, Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace

MakeRecipe = Callable[..., Recipe]
DATED = {"created", "seconds", "metrics"}


def undated(content: Any) -> Any:
    """What run.json tells, without dates and durations."""
    if isinstance(content, dict):
        return {key: undated(value) for key, value in content.items() if key not in DATED}
    return [undated(one) for one in content] if isinstance(content, list) else content


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_trace_has_the_same_bits(tmp_path: Path, make_recipe: MakeRecipe, optimizer: str) -> None:
    found = []
    for name in ("one", "two"):
        torch.manual_seed(len(found))  # what was drawn before does not matter
        small = optimizer != "gd"
        options = TraceOptions(
            optimizer=optimizer,
            epochs=2,
            chunk_size=7,
            batch_size=6 if small else None,
            record=("gradients", "epoch-gradients", *(["batches"] if small else [])),
        )
        trace(prepare(make_recipe(), options), tmp_path / name)
        files = {path.relative_to(tmp_path / name).as_posix(): path for path in (tmp_path / name).rglob("*.*")}
        texts = undated(json.loads(files.pop("run.json").read_text()))
        files.pop("metrics.csv")
        found.append((texts, {relative: path.read_bytes() for relative, path in files.items()}))
    assert any(relative.startswith("gradients/") for relative in found[0][1])
    assert found[0][1] == found[1][1]
    assert found[0][0] == found[1][0]
