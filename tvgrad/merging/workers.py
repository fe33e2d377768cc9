"""Workers: the threads of methods whose numpy work lets go of the interpreter's lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

MOST = 4


@cache
def workers() -> ThreadPoolExecutor:
    """Start the threads, once: as many as torch computes with, and no more than four.

    Returns:
        The pool.
    """
    return ThreadPoolExecutor(max_workers=max(1, min(MOST, torch.get_num_threads())))
