"""The writer's lock of a run directory: one writer at a time, released by the system when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from tvgrad.errors import TvgradError
from tvgrad.store.manifest import LOCK


class WriterLock:
    """An advisory lock on a run directory that says who holds it.

    The system drops the lock with the process, however it dies, so that there are no stale locks to remove by hand;
    the file stays and tells who held it last.
    """

    def __init__(self, root: Path) -> None:
        """Take the lock.

        Args:
            root: the run directory.

        Raises:
            TvgradError: another process is writing to the run, or the directory cannot be locked.
        """
        self._path = root / LOCK
        self._handle: int | None = None
        while self._handle is None:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise TvgradError(f"{root} cannot be written ({error.strerror}): choose another --out") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise TvgradError(f"{root} is being written by {_described(holder)}: wait for it or stop it") from None
            except OSError as error:
                os.close(handle)
                raise TvgradError(f"{root} cannot be locked ({error.strerror}): choose another --out") from None
            # A holder that finished between our opening and locking has removed the file we hold: take the new one.
            if _same_file(handle, self._path):
                self._handle = handle
            else:
                os.close(handle)
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        identity = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        # The name of the holder is a courtesy: on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, identity.encode(), 0)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _described(holder: str) -> str:
    try:
        content = json.loads(holder)
        return f"process {content['pid']} on {content['host']} since {content['since']}"
    except (ValueError, KeyError, TypeError):
        return holder
