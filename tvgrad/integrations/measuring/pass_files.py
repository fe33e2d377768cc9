"""pass_files: what a pass leaves in its folder for the process that waits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.files.writing import write_tensors
from tvgrad.record.step_plan import ScriptSum
from tvgrad.vectors.parameters import Weights

GRADIENT, RESULT = "gradient.safetensors", "result.json"


def write_gradient(folder: str, gradient: Weights) -> None:
    """Leave a gradient.

    Args:
        folder: of the pass.
        gradient: name -> tensor on any device.
    """
    _write(Path(folder, GRADIENT), gradient)


def write_sum(folder: str, epoch: int, what: ScriptSum, content: Mapping[str, torch.Tensor]) -> LazyWeights:
    """Leave a sum over steps.

    Args:
        folder: of the pass.
        epoch: that is explained.
        what: the sum.
        content: it, of which a tensor at a time is formed.

    Returns:
        What is in the file.
    """
    path = Path(folder, f"sums-{epoch}-{what.value}.safetensors")
    _write(path, content)
    return LazyWeights(path)


def write_facts(folder: str, facts: dict[str, Any]) -> None:
    """Leave plain values.

    Args:
        folder: of the pass.
        facts: name -> value.
    """
    Path(folder, RESULT).write_text(json.dumps(facts), encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """Read what `write_facts` left.

    Args:
        folder: of the pass.

    Returns:
        Name -> value.
    """
    facts: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return facts


def read_gradient(folder: Path) -> LazyWeights:
    """Open what `write_gradient` left.

    Args:
        folder: of the pass.

    Returns:
        Name -> CPU tensor.
    """
    return LazyWeights(folder / GRADIENT)


def read_sums(folder: Path) -> dict[int, dict[ScriptSum, LazyWeights]]:
    """Open what `write_sum` left.

    Args:
        folder: of the pass.

    Returns:
        Epoch that is explained -> what -> the sum.
    """
    found: dict[int, dict[ScriptSum, LazyWeights]] = {}
    for path in folder.glob("sums-*.safetensors"):
        _, epoch, what = path.stem.split("-")
        found.setdefault(int(epoch), {})[ScriptSum(what)] = LazyWeights(path)
    return found


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    write_tensors(tensors, path, max_shard_bytes=2**62)
