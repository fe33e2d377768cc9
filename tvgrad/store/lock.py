"""The writer's lock of a run directory: one writer at a time, released by the system when its process ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
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

    def __init__(self, root: Path) -> None:
        """Take the lock.

        Args:
            root: the run directory.

        Raises:
            TvgradError: another process is writing to the run, or the directory cannot be locked.
        """
        self._path = root / LOCK
        if not root.is_dir():  # the library would make it
            raise TvgradError(f"{root} cannot be written ({os.strerror(errno.ENOENT)}): choose another --out")
        why = why_irregular(self._path, root)
        if why is not None:
            raise TvgradError(f"{self._path} cannot be locked ({why}): remove it, or choose another --out")
        # Not thread-local: a background writer takes the lock in its thread, and the main thread gives it back.
        self._lock = FileLock(self._path, timeout=PATIENCE, thread_local=False, on_acquired=_write_identity)
        try:
            self._lock.acquire()
        except Timeout:
            raise TvgradError(f"{root} is being written by {_holder(self._path)}: wait for it or stop it") from None
        except OSError as error:
            what = "locked" if error.filename is None else "written"
            raise TvgradError(f"{root} cannot be {what} ({error.strerror}): choose another --out") from None

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._lock.release()


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
