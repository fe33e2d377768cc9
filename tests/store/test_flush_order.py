"""What is listed was flushed before: a power cut at any moment leaves a run whose listed epochs are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_runs import make_recipe, traced  # noqa: F401 - fixtures
from tvgrad.store import ledger
from tvgrad.store.run import Run

Traced = Callable[..., Run]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are named by /proc")
@pytest.mark.parametrize("whole", [1, 64])
def test_files_and_their_names_are_on_the_disk_before_they_are_listed(
    traced: Traced,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: int,
) -> None:
    """With a journal from the second point on, and with run.json alone."""
    root = tmp_path / "run"
    flushed: set[int] = set()  # inodes whose content is on the disk
    durable: set[tuple[str, int]] = set()  # names that are, with their inodes
    listings: list[set[str]] = []

    def check() -> None:
        """All that run.json and the journal list, as they are about to be found, is on the disk with its name."""
        known = Run.open(root).manifest
        listed = {path for path in known.listed() if (root / path).exists()}
        for path in listed:
            inode = (root / path).stat().st_ino
            assert inode in flushed, f"the content of {path} is not on the disk when it is listed"
            assert (str(root / path), inode) in durable, f"the name of {path} is not on the disk when it is listed"
        listings.append(listed)

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.is_dir():
            durable.update((str(one), one.stat().st_ino) for one in place.iterdir() if one.is_file())
            return
        flushed.add(os.fstat(descriptor).st_ino)
        if place.name == "journal.jsonl":
            check()

    replace = os.replace

    def replaced(source: str | Path, target: str | Path) -> None:
        assert Path(source).stat().st_ino in flushed, f"{target} gets a content that is not on the disk"
        replace(source, target)
        if Path(target) == root / "run.json":
            check()

    monkeypatch.setattr(ledger, "WHOLE", whole)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    run = traced(root, record=("gradients", "epoch-gradients"), optimizer="adam")
    assert len(run.epochs) == 4
    assert len(listings) >= 5
    assert any("weights/epoch-0002.safetensors" in listed for listed in listings)
    assert (str(root / "run.json"), (root / "run.json").stat().st_ino) in durable
    assert json.loads((root / "run.json").read_text())["finished"]
