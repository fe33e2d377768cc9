"""Files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from tvgrad.atomic_files import sha256_of, write_atomically


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3 * 2**20 + 17])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), RuntimeError("other"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["write", "meanwhile"])
def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path: Path, error: BaseException, when: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        if when == "write":
            raise error

    def read(temporary: Path) -> None:
        raise error

    with pytest.raises(type(error)):
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
