"""Checksums that are compared while a file is read: a thread reads the same bytes beside the pass that uses them."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

from tvgrad.errors import DamagedRun
from tvgrad.files.atomic import sha256_of
from tvgrad.files.regular import reason_of

WORKERS = 2  # more would make a disk seek

_Work: TypeAlias = "tuple[Path, Path, str, Future[str | None]]"
_queues: dict[int, queue.SimpleQueue[_Work]] = {}
State: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, time of the content's change, time of any change, and size: what tells that a file was changed."""

_known: dict[State, str] = {}
"""The checksums that this process has found, or that `recall` was told."""

_settled: set[State] = set()
"""Those of `_known` whose last change lay so far back that a later one cannot have the same time."""

SETTLED_AFTER = 2_000_000_000  # nanoseconds; the coarsest clock of a file system in use


class Checksums:
    """What the files of one directory are expected to hold, and the comparisons that go on."""

    def __init__(self, root: Path) -> None:
        """Expect nothing yet.

        Args:
            root: the directory, below which nothing may be a link.
        """
        self._root = root
        self._expected: dict[Path, str] = {}
        self._running: dict[Path, Future[str | None]] = {}

    def expect(self, parts: Iterable[tuple[str, str, int]]) -> None:
        """Add files.

        Args:
            parts: (relative path, sha256, bytes) of each.
        """
        self._expected |= {self._root / relative: digest for relative, digest, _ in parts}

    def expected(self, path: Path) -> str | None:
        """What a file is expected to hold.

        Args:
            path: it.

        Returns:
            64 hexadecimal digits; None where nothing is expected.
        """
        return self._expected.get(path)

    def begin(self, path: Path) -> None:
        """Begin to compare a file, where something is expected of it and that has not begun.

        Args:
            path: it.
        """
        if path in self._expected and path not in self._running:
            found: Future[str | None] = Future()
            self._running[path] = found
            _submit((path, self._root, self._expected[path], found))

    def compare(self, parts: Sequence[tuple[str, str, int]]) -> None:
        """Compare files now.

        Args:
            parts: as for `expect`.
        """
        self.expect(parts)
        paths = [self._root / relative for relative, _, _ in parts]
        for path in paths:
            self.begin(path)
        self.require(paths)

    def require(self, paths: Iterable[Path] | None = None) -> None:
        """Wait for comparisons that have begun.

        Args:
            paths: of these files; None is all.

        Raises:
            DamagedRun: a file does not hold what it was written with.
        """
        for path in list(self._running) if paths is None else paths:
            problem = self._running[path].result() if path in self._running else None
            if problem is not None:
                raise DamagedRun(f"{path} {problem}: restore it or trace the run again")


def checksum_of(path: Path, under: Path) -> str:
    """Checksum of a file, read now; `Checksums` need not read it again.

    Args:
        path: the file.
        under: a directory below which nothing may be a link.

    Returns:
        64 hexadecimal digits.
    """
    before, now = _state(path), time.time_ns()
    digest = sha256_of(path, under)
    if before == _state(path):
        _known[before] = digest
        if max(before[2:4]) + SETTLED_AFTER < now:
            _settled.add(before)
    return digest


def recall(found: Mapping[State, str]) -> None:
    """Take over checksums that an earlier process found.

    Args:
        found: settled states of files, and what they held.
    """
    for state, digest in found.items():
        _known.setdefault(state, digest)
        _settled.add(state)


def settled_state(path: Path) -> tuple[State, str] | None:
    """What a later process may take over of a file's checksum.

    Args:
        path: the file.

    Returns:
        Its state and checksum; None where it was not read, or changed so shortly before that one more change could
        have the same time.
    """
    state = _state(path)
    return (state, _known[state]) if state in _settled else None


def state_of(path: Path) -> State | None:
    """Tell what a file's state is.

    Args:
        path: the file.

    Returns:
        It; None where there is no such file.
    """
    try:
        return _state(path)
    except OSError:
        return None


def _state(path: Path) -> State:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _submit(work: _Work) -> None:
    """Hand work to the threads of this process (a fork has none)."""
    pid = os.getpid()
    if pid not in _queues:
        _queues.clear()
        _queues[pid] = queue.SimpleQueue()
        try:
            for _ in range(WORKERS):  # daemons: an interrupted command does not wait for them
                threading.Thread(target=_work, args=(_queues[pid],), name="tvgrad checksums", daemon=True).start()
        except RuntimeError:  # the system has no room for threads, or the interpreter ends
            del _queues[pid]
            _compare(*work)
            return
    _queues[pid].put(work)


def _work(waiting: queue.SimpleQueue[_Work]) -> None:
    while True:
        _compare(*waiting.get())


def _compare(path: Path, under: Path, expected: str, found: Future[str | None]) -> None:
    try:
        digest = _known.get(_state(path)) or checksum_of(path, under)
        found.set_result(None if digest == expected else "does not have the checksum it was written with")
    except OSError as error:
        found.set_result(f"cannot be read ({reason_of(error)})")
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        found.set_exception(error)
