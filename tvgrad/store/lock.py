"""The writer's lock of a run directory: one writer at a time, released by the system when its process ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Generator
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from tvgrad.errors import TvgradError
from tvgrad.files.regular import read_bounded, why_irregular

LOCK = "writer.lock"
PATIENCE = 0.1  # seconds in which a holder that is just finishing has removed its file


class WriterLock:
    """An advisory lock on a run directory that says who holds it.

    The system drops the lock with the process, however it dies, so that there are no stale locks to remove by hand.
    The file of a killed process stays and names it.
    """

    def __init__(self, root: Path, remedy: str = "choose another --out") -> None:
        """Take the lock.

        Args:
            root: the run directory.
            remedy: what can be done where it cannot be written to.

        Raises:
            TvgradError: another process is writing to the run, or the directory cannot be locked.
        """
        self._path = root / LOCK
        if not root.is_dir():  # the library would make it
            raise TvgradError(f"{root} cannot be written ({os.strerror(errno.ENOENT)}): {remedy}")
        why = why_irregular(self._path, root)
        if why is not None:
            raise TvgradError(f"{self._path} cannot be locked ({why}): remove it, or {remedy}")
        self._root, self._remedy = root, remedy
        self._folder = _identity(os.stat(root))
        self._handle, self._file = -1, (0, 0)
        # Not thread-local: a background writer takes the lock in its thread, and the main thread gives it back.
        self._lock = FileLock(self._path, timeout=PATIENCE, thread_local=False, on_acquired=self._acquired)
        self._acquire()

    def require_held(self) -> None:
        """Make sure that the directory is still the one that was locked, and locked.

        A script may close every descriptor by its number, and a directory may be removed and made again.

        Raises:
            TvgradError: the directory is another one, or another process has taken the lock.
        """
        root = self._root
        try:
            same = _identity(os.stat(root)) == self._folder
        except OSError:
            same = False
        if not same:
            self._forget()
            raise TvgradError(f"{root} was removed or replaced while it was written, and what was recorded is gone")
        try:
            held = self._owns_handle() and _identity(os.stat(self._path)) == self._file
        except OSError:
            held = False
        if not held:
            self._forget()
            self._acquire()

    def _acquire(self) -> None:
        root = self._root
        try:
            with _above_standard_streams():
                self._lock.acquire()
        except Timeout:
            raise TvgradError(f"{root} is being written by {_holder(self._path)}: wait for it or stop it") from None
        except OSError as error:
            what = "locked" if error.filename is None else "written"
            raise TvgradError(f"{root} cannot be {what} ({error.strerror}): {self._remedy}") from None

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._lock.is_locked and self._owns_handle():
            with contextlib.suppress(OSError):
                if _identity(os.stat(self._path)) == self._file:
                    self._path.unlink()
            self._lock.release()
        self._forget()

    def _acquired(self, handle: int) -> None:
        self._handle, self._file = handle, _identity(os.fstat(handle))
        _write_identity(handle)

    def _owns_handle(self) -> bool:
        """Whether the descriptor is still the lock file's: closed by its number, it may be anybody's."""
        try:
            return _identity(os.fstat(self._handle)) == self._file
        except OSError:
            return False

    def _forget(self) -> None:
        """Let go of a descriptor that is not ours any more, without closing what is another's."""
        if self._lock.is_locked:
            if self._owns_handle():
                self._lock.release(force=True)
            else:
                self._lock._context.lock_file_fd = None
                self._lock._context.lock_counter = 0


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _above_standard_streams() -> Generator[None]:
    """Keep the numbers 0 to 2 from a file that stays open: where they are closed, programs write there all the same."""
    held: list[int] = []
    try:
        while not held or held[-1] < 3:
            held.append(os.open(os.devnull, os.O_RDWR))
        os.close(held.pop())
        yield
    finally:
        for handle in held:
            os.close(handle)


def _write_identity(handle: int) -> None:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    identity = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    # The holder's name is a courtesy: on a full disk the lock holds without it.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, identity.encode())


def _holder(path: Path) -> str:
    """The process that a lock file names, in words."""
    text = ""
    try:
        text = read_bounded(path, path.parent, 4096).decode("utf-8", errors="replace").strip()
        content = json.loads(text)
        return f"process {content['pid']} on {content['host']} since {content['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return text or "another process"
