"""Running commands and the example scripts of this folder."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
MAIN = "from tvgrad.cli.main import main; main()"
TRACE = (sys.executable, "-c", MAIN, "trace")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SERVER, CLIENT = (Path(__file__).parents[1] / f"warm_{name}.py" for name in ("server", "client"))

Done = subprocess.CompletedProcess[str]


def run(command: list[str] | tuple[str, ...], folder: Path | None = None, starts: int = 1) -> Done:
    """Run a command to its end, keeping what it prints; it may start Python so many times, one after the other."""
    seconds = 120 * starts
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=ONE_THREAD, cwd=folder, check=False
    )


def warm(*words: str, library: str = "") -> list[str]:
    """The command that runs a script (or `-c CODE`) in a process whose torch, and a library, are imported already.

    Its hooks are installed as those of a Python that starts afresh; but no Python is found and reached, which takes
    seconds. Signals do not go through, and messages may name other frames.
    """
    return [sys.executable, "-I", "-S", str(CLIENT), _warm_server(library), *words]


def warm_processes(script: Path, count: int = 2, **environment: str) -> list[str]:
    """The command that runs a script in several such processes, as a launcher would: they meet at the file MEET.

    It ends when all have ended, and fails where one does.
    """
    start = shlex.join(warm(str(script)))
    given = "".join(f" {name}={shlex.quote(value)}" for name, value in environment.items())
    each = "; ".join(f"RANK={rank} {start} & one{rank}=$!" for rank in range(count))
    ends = "; ".join(f"wait $one{rank} || code=$?" for rank in range(count))
    return ["sh", "-c", f"export MEET=$(mktemp -u) COUNT={count}{given}; {each}; code=0; {ends}; exit $code"]


def warm_tvgrad(*words: str) -> list[str]:
    """The command `tvgrad WORDS`, likewise."""
    return warm("-c", MAIN, *words)


@functools.cache
def _warm_server(library: str) -> str:
    """Start a server; where it listens."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    command = [sys.executable, str(SERVER), address, *library.split()]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)

    def end() -> None:
        server.kill()
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return address
