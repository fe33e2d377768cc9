"""One writer at a time; the lock tells who holds it and dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tvgrad.errors import TvgradError
from tvgrad.store.lock import WriterLock
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter

HOLDER = """
import time
from pathlib import Path
from tvgrad.store.lock import WriterLock

def hold(root):
    lock = WriterLock(Path(root))
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    with closing(WriterLock(tmp_path)):
        with pytest.raises(TvgradError) as caught:
            WriterLock(tmp_path)
        assert f"process {os.getpid()} on {socket.gethostname()} since 20" in str(caught.value)
    WriterLock(tmp_path).close()


def test_release_twice_does_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    assert json.loads((tmp_path / "writer.lock").read_text())["pid"] == os.getpid()
    lock.close()
    lock.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_leaves_no_lock(tmp_path: Path, forks: Any) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    run = tmp_path / "run"
    run.mkdir()
    pid = forks.start(tmp_path / "holder.py", "hold", str(run), log=tmp_path / "log")
    deadline = time.monotonic() + 30
    while "held" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(TvgradError, match=f"is being written by process {pid} on "):
        WriterLock(run)
    assert forks.end(signal.SIGKILL) == -signal.SIGKILL
    assert (run / "writer.lock").exists()
    with closing(WriterLock(run)):
        assert json.loads((run / "writer.lock").read_text())["pid"] == os.getpid()


def test_readers_need_no_lock(tmp_path: Path, traced: Callable[..., Run]) -> None:
    traced(tmp_path / "run")
    writer = RunWriter.resume(tmp_path / "run")
    try:
        run = Run.open(tmp_path / "run")
        assert run.problems() == []
        assert run.epochs == [0, 1, 2, 3]
        with pytest.raises(TvgradError, match="is being written by process"):
            traced(tmp_path / "run", resume=True, epochs=5)
    finally:
        writer.close()
    assert Run.open(tmp_path / "run").epochs == [0, 1, 2, 3]


def test_a_lock_file_without_words_is_anothers(tmp_path: Path) -> None:
    (tmp_path / "writer.lock").write_text("")
    with open(tmp_path / "writer.lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TvgradError, match="is being written by another process"):
            WriterLock(tmp_path)


def test_a_directory_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(TvgradError, match="cannot be locked"):
        WriterLock(tmp_path)
    with pytest.raises(TvgradError, match="cannot be written"):
        WriterLock(tmp_path / "missing")


def test_the_lock_holds_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with closing(WriterLock(tmp_path)), pytest.raises(TvgradError, match="another process"):
        WriterLock(tmp_path)


def test_a_lock_released_while_another_waits_to_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened may be gone when it is locked: a lock on it would exclude nobody."""
    first = WriterLock(tmp_path)
    opened = []
    plain = os.open

    def open_then_release(path: Any, *rest: Any, **options: Any) -> int:
        handle = plain(path, *rest, **options)
        if not opened:
            first.close()
        opened.append(handle)
        return handle

    monkeypatch.setattr(os, "open", open_then_release)
    with closing(WriterLock(tmp_path)):
        assert len(opened) == 2
        with pytest.raises(TvgradError, match="is being written"):
            WriterLock(tmp_path)


def test_a_descriptor_that_became_anothers_is_left_alone(tmp_path: Path) -> None:
    """A script may close all descriptors by number, and open its own files under theirs."""
    root = tmp_path / "run"
    root.mkdir()
    lock = WriterLock(root)
    number = lock._handle
    with open(tmp_path / "mine", "w") as mine:
        os.dup2(mine.fileno(), number)  # closes what was there
        try:
            lock.require_held()  # takes the lock again, under another number
            with pytest.raises(TvgradError, match="is being written"):
                WriterLock(root)
            lock.close()
            assert os.fstat(number).st_ino == os.fstat(mine.fileno()).st_ino
        finally:
            os.close(number)
    WriterLock(root).close()


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_that_was_removed_is_noticed(tmp_path: Path, again: bool) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with closing(WriterLock(root)) as lock:
        lock.require_held()
        root.rename(tmp_path / "away")
        if again:
            root.mkdir()
        with pytest.raises(TvgradError, match="was removed or replaced while it was written"):
            lock.require_held()
    assert not again or list(root.iterdir()) == []


def test_a_lock_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    with closing(WriterLock(tmp_path)) as lock:
        (tmp_path / "writer.lock").unlink()
        lock.require_held()
        with pytest.raises(TvgradError, match="is being written"):
            WriterLock(tmp_path)


def test_the_lock_stays_clear_of_the_numbers_of_standard_streams(tmp_path: Path) -> None:
    kept = os.dup(0)
    try:
        os.close(0)
        with closing(WriterLock(tmp_path)) as lock:
            assert lock._handle > 2
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
