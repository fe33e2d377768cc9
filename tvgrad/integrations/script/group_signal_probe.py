"""GroupSignalProbe: tells a signal sent to this process alone from one that its whole process group got.

Job schedulers, `timeout` and terminals signal whole groups. The command is in the group and has such a signal already;
passed on, it would come twice, and many scripts take a second interrupt for an order to drop everything.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


class GroupSignalProbe:
    """A process of the same group that blocks the signals in question, so that the kernel keeps them pending on it."""

    def __init__(self, signals: Collection[int]) -> None:
        """Start it. The caller has the signals blocked.

        Args:
            signals: those in question.
        """
        self._signals = signals
        self._process = _asleep()

    def heard(self) -> set[int]:
        """Say which of the signals the group got since the last call.

        Returns:
            Their numbers.
        """
        try:
            lines = Path(f"/proc/{self._process}/status").read_text(encoding="ascii").splitlines()
        except OSError:  # no such file system: nothing is known, and everything is passed on
            return set()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        pending = {number for number in self._signals if any(mask >> (number - 1) & 1 for mask in masks)}
        if pending:  # they stay pending on this one for ever
            self.close()
            self._process = _asleep()
        return pending

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)


def _asleep() -> int:
    """A process that does nothing, holds no file open, and ends soon after this one."""
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    try:
        os.closerange(0, 1024)
        while os.getppid() == parent:
            time.sleep(1)
    finally:
        os._exit(0)
