"""waiting: the end of a pass, whose process stays until the one that waits for its result ends it."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress

from tvgrad.system import is_alive


def wait_to_be_ended(folder: str, parent: int) -> None:
    """End the processes that this one has started, and stay until its folder or the process that waits is gone.

    Args:
        folder: of the pass.
        parent: the process that waits.
    """
    for child in multiprocessing.active_children():
        with suppress(Exception):
            child.terminate()
    while os.path.isdir(folder) and is_alive(parent):
        time.sleep(0.02)
    os._exit(0)
