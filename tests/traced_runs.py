"""Fixtures for tests that need runs: digits tasks traced once for each set of options, and copies to tamper with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

__all__ = ["Tampered", "Traced", "digits", "digits_cache", "tampered", "traced"]

Traced = Callable[..., Run]
Tampered = Callable[..., Run]


@pytest.fixture(scope="session", autouse=True)
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits(digits_cache: None) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in load_recipes("digits")}


@pytest.fixture(scope="session")
def traced(digits: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """traced(task, **options) -> its run; the same options give the same run."""
    made: dict[str, Run] = {}

    def make(task: str = "rotated", **options: Any) -> Run:
        key = f"{task} {sorted(options.items())}"
        if key not in made:
            given = {"epochs": 3, "chunk_size": 1000, "target": "digits", **options}
            prepared = prepare(digits[task], TraceOptions(**given))
            made[key] = trace(prepared, tmp_path_factory.mktemp("runs") / task)
        return made[key]

    return make


@pytest.fixture
def tampered(tmp_path: Path) -> Tampered:
    """tampered(run, kind, number, change) -> a copy of the run with one file changed and its checksum made to fit."""

    def make(
        run: Run, kind: str, number: int, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
    ) -> Run:
        root = tmp_path / "tampered" / run.root.name
        shutil.copytree(run.root, root)
        relative = run.point(number).files[kind].path
        save_file(dict(change(load_file(root / relative))), root / relative)
        content = json.loads((root / "run.json").read_text())
        for point in content["points"]:
            for entry in point["files"].values():
                entry["parts"] = [
                    [path, hashlib.sha256((root / path).read_bytes()).hexdigest(), (root / path).stat().st_size]
                    for path, _, _ in entry["parts"]
                ]
        (root / "run.json").write_text(json.dumps(content))
        return Run.open(root)

    return make
