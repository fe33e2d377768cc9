"""Estimates kept from report to report: the same bits, no weights read again, and nothing believed unproven."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tvgrad.errors import DamagedRun
from tvgrad.files import checksums
from tvgrad.files.atomic import sha256_of
from tvgrad.files.tensors import TensorFile
from tvgrad.problem.recipe import Recipe
from tvgrad.report.tables import run_tables
from tvgrad.store.run import Run
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.theory.sketched import sketched_rows

EPOCHS = 4


@pytest.fixture
def run(
    make_recipe: Callable[..., Recipe],
    traced: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """A run with sketches of gradients and of their sums, whose files count as unchanged for long."""
    monkeypatch.setattr(checksums, "SETTLED_AFTER", -(10**12))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        recipe = make_recipe(nn.Sequential(nn.Linear(5, 90), nn.Tanh(), nn.Linear(90, 3)))
    for parameter in recipe.model.parameters():
        parameter.requires_grad_()
    options: dict[str, Any] = {"optimizer": "sgd", "batch_size": 6, "record": ("gradients", "epoch-gradients")}
    return traced(tmp_path / "run", recipe, epochs=EPOCHS, keep_gradients="sketch:256", **options)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of weights of which numbers are read."""
    found: list[str] = []
    plain = TensorFile.read_into

    def noting(self: TensorFile, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        if self.path.parent.name == "weights":
            found.append(self.path.stem)
        return plain(self, name, start, out)

    monkeypatch.setattr(TensorFile, "read_into", noting)
    return found


def forget() -> None:
    """What another process would know of files."""
    checksums._known.clear()
    checksums._settled.clear()


def shortened(run: Run, epochs: int) -> Run:
    """The run as it was after fewer epochs: its files are where they were."""
    full = run.root / "full.json"
    if not full.exists():
        shutil.copy(run.root / "run.json", full)
    content: dict[str, Any] = json.loads(full.read_text())
    content["points"] = content["points"][: epochs + 1]
    (run.root / "run.json").write_text(json.dumps(content))
    forget()
    return Run.open(run.root)


def rows(run: Run, kept: KeptProducts | None, groups: str | None = None) -> list[Any]:
    return sketched_rows([run], ["run"], run.groups(groups), kept)


def keep(folder: Path) -> KeptProducts:
    return KeptProducts(folder, [], least_bytes=0)


def test_a_report_made_again_sketches_what_is_new(run: Run, tmp_path: Path, read: list[str]) -> None:
    plain = {epochs: rows(shortened(run, epochs), None) for epochs in (2, 3)}
    kept = keep(tmp_path / "kept")
    for epochs, expected in ((2, {"epoch-0000", "epoch-0001", "epoch-0002"}), (3, {"epoch-0000", "epoch-0003"})):
        now = shortened(run, epochs)
        read.clear()
        assert rows(now, kept) == plain[epochs]
        assert set(read) == expected
        assert read.count(f"epoch-000{epochs}") == len(run.parameters)  # for both cosines once
        read.clear()
        assert rows(shortened(run, epochs), kept) == plain[epochs]
        assert not read
    assert rows(run, kept, "weight|bias") == rows(run, None, "weight|bias") != plain[3]


def test_a_whole_report_reads_no_weights_again(run: Run, tmp_path: Path, read: list[str]) -> None:
    plain = run_tables([run]).tables
    for again in (False, True):
        forget()
        read.clear()
        made = run_tables([Run.open(run.root)], extent="tables", kept=keep(tmp_path / "kept")).tables
        assert bool(read) is not again
        assert made.keys() == plain.keys()
        for name, table in made.items():
            pd.testing.assert_frame_equal(table, plain[name], check_exact=True)


def test_what_was_damaged_or_changed_is_not_believed(run: Run, tmp_path: Path, read: list[str]) -> None:
    kept, plain = keep(tmp_path / "kept"), rows(run, None)
    assert rows(shortened(run, EPOCHS), kept) == plain
    for path in (tmp_path / "kept").iterdir():  # what is kept itself: it is made again
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    read.clear()
    assert rows(shortened(run, EPOCHS), kept) == plain
    assert read
    path = run.root / "weights" / "epoch-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedRun, match="does not have the checksum it was written with"):
        rows(shortened(run, EPOCHS), kept)


def test_files_of_earlier_versions_tell_of_the_whole_model(run: Run) -> None:
    now = pd.DataFrame(rows(run, None))
    content = json.loads((run.root / "run.json").read_text())
    for point in content["points"]:
        for kind, entry in point["files"].items():
            if not kind.endswith("sketch"):
                continue
            path = run.root / entry["path"]
            save_file({name: load_file(path)[name] for name in ("sketch", "squares", "projection")}, path)
            entry["parts"] = [[entry["path"], sha256_of(path), path.stat().st_size]]
    (run.root / "run.json").write_text(json.dumps(content))
    forget()
    before = Run.open(run.root)
    assert not before.problems()
    assert before.gradient_sketch(0).split is None
    found = pd.DataFrame(rows(before, None))
    assert set(found["group"]) == {"all"}
    pd.testing.assert_frame_equal(found, now[now["group"] == "all"].reset_index(drop=True), check_exact=True)
    tables = run_tables([before]).tables
    assert tables["norms"]["gradient_norm"].notna().all()
