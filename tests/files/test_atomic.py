"""Files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tvgrad.errors import Unwritable
from tvgrad.files.atomic import sha256_of, write_atomically


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3 * 2**20 + 17])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


OF_ANOTHER_FILE = PermissionError(errno.EACCES, "no", "/another/file")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OF_ANOTHER_FILE, RuntimeError("other"),
                                   KeyboardInterrupt()])  # fmt: skip
@pytest.mark.parametrize("when", ["write", "meanwhile"])
def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path: Path, error: BaseException, when: str) -> None:
    """But for what the system says of this file, which becomes a sentence that names it."""

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        if when == "write":
            raise error

    def read(temporary: Path) -> None:
        raise error

    of_this = isinstance(error, OSError) and error.filename is None
    expected = f"{tmp_path / 'x'} cannot be written (no): choose another --out" if of_this else str(error)
    with pytest.raises(Unwritable if of_this else type(error), match=re.escape(expected)):
        write_atomically(tmp_path / "x", write, read)
    assert list(tmp_path.iterdir()) == []


def test_what_reads_meanwhile_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush ends only when the reading has begun, which a reading after it never would."""
    begun = threading.Event()

    def flushed(_: int) -> None:
        if not (tmp_path / "x").exists():
            assert begun.wait(60)

    def read(temporary: Path) -> str:
        begun.set()
        return temporary.read_text()

    monkeypatch.setattr(os, "fsync", flushed)
    assert write_atomically(tmp_path / "x", lambda temporary: temporary.write_text("all of it"), read) == "all of it"
    assert (tmp_path / "x").read_text() == "all of it"


def test_reading_goes_on_where_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert write_atomically(tmp_path / "x", lambda temporary: temporary.write_text("whole"), sha256_of) == (
        hashlib.sha256(b"whole").hexdigest()
    )


def test_files_are_written_while_the_interpreter_ends(tmp_path: Path) -> None:
    code = (
        "import atexit, pathlib\nfrom tvgrad.files.atomic import sha256_of, write_atomically\n"
        f"path = pathlib.Path({str(tmp_path / 'x')!r})\n"
        "atexit.register(lambda: write_atomically(path, lambda t: t.write_text('late'), sha256_of))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x").read_text() == "late"
