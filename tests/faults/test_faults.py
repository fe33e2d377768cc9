"""Faults at every call that changes files: no epoch is lost, every resume has the same bits, every word is a sentence.

A trace, a resume, the recorder of an unchanged script and a merge each meet, at every write, flush, rename, link,
removal and new folder: an error of the device, a refusal, an interruption, a full disk and a read-only one from there
on, a short write, and a kill before, after and in the middle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.script.script_runs import ONE_THREAD

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="a C compiler makes the faults")


def injected(workloads: str, folder: Path, every: int, first: int, seconds: int) -> list[dict[str, Any]]:
    """Compile what makes the faults, and try every so-manieth pair of a point and a fault of each workload."""
    library = folder / "faults.so"
    subprocess.run([str(COMPILER), "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    command = [sys.executable, str(HERE / "inject.py"), workloads, str(folder), str(every), str(first)]
    root = HERE.parents[1]
    environment = {**ONE_THREAD, "LD_PRELOAD": str(library), "PYTHONPATH": str(root)}
    # Its errors are this process's, so that what has been tried is known even of what is stopped.
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=seconds, cwd=root, check=False
    )
    assert done.returncode == 0, f"it ended with {done.returncode}"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for one in found:
        print(f"{one['workload']}: {one['faults']} of {one['of']} faults at {one['points']} points, {one['ends']}")
    return found


def test_a_sample_of_all_faults(tmp_path: Path) -> None:
    (trace,) = injected("trace", tmp_path, 397, 17, 300)
    assert trace["failures"] == []
    assert trace["faults"] >= 6
    assert trace["of"] > 2000
    assert trace["calls"].keys() == {"open", "write", "fsync", "chmod", "rename", "mkdir", "truncate", "unlink"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("workload", ["trace", "resume", "script", "merge"])
def test_every_fault_at_every_point(tmp_path: Path, workload: str, part: int) -> None:
    """In four parts, each of which takes some minutes."""
    (found,) = injected(workload, tmp_path, 4, part, 3600)
    assert found["failures"] == []
    assert found["faults"] >= found["of"] // 4 > 0
    assert any(name != "0" for name in found["ends"])
