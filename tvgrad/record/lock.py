"""The writer's lock of a run directory: one writer at a time, released by the system when its process ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO

from tvgrad.errors import TvgradError
from tvgrad.record.layout import LOCK

__all__ = ["WriterLock"]


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
            TvgradError: another process is writing to the run.
        """
        self._path = root / LOCK
        self._handle: IO[str] | None = None
        while self._handle is None:
            handle = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - held until released
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                handle.close()
                raise TvgradError(f"{root} is being written by {_described(holder)}: wait for it or stop it") from None
            # A holder that finished between our opening and locking has removed the file we hold: take the new one.
            if self._path.exists() and os.fstat(handle.fileno()).st_ino == self._path.stat().st_ino:
                self._handle = handle
            else:
                handle.close()
        self._handle.seek(0)
        self._handle.truncate()
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, self._handle)
        self._handle.flush()

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            self._handle.close()
            self._handle = None

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _described(holder: str) -> str:
    try:
        content = json.loads(holder)
        return f"process {content['pid']} on {content['host']} since {content['since']}"
    except (ValueError, KeyError, TypeError):
        return holder
