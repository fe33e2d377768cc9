"""Running commands and the example scripts of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
TRACE = (sys.executable, "-c", "from tvgrad.cli.main import main; main()", "trace")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Done = subprocess.CompletedProcess[str]


def run(command: list[str] | tuple[str, ...], folder: Path | None = None, starts: int = 1) -> Done:
    """Run a command to its end, keeping what it prints; it may start Python so many times, one after the other."""
    seconds = 120 * starts
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=ONE_THREAD, cwd=folder, check=False
    )
