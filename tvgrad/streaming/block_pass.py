"""One pass over the blocks of files, by several threads, whose sums are merged in the order of the blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from tvgrad.streaming.accumulate import BlockWorker, Sums
from tvgrad.streaming.rows import MatrixPlan

MOST_WORKERS = 4  # beyond this, reading is the limit


class PassOver(Protocol):
    """What goes over the blocks of files: this process alone, or several."""

    def __call__(
        self, plan: MatrixPlan, workers: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Sums]:
        """Read all blocks and add up their sums, as `sums_of_groups` does."""


def sums_of_groups(
    plan: MatrixPlan, workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Sums]:
    """Read all blocks and add up their sums.

    Args:
        plan: what is read and computed.
        workers: number of threads.
        progress: called now and then with the bytes done and the bytes in all.

    Returns:
        Group -> sums.

    Raises:
        TvgradError: a value is infinite or NaN.
        DamagedRun: a file ends before its tensors do.
    """  # noqa: DOC502 - raised by the workers
    size = len(plan.pairs), len(plan.projections), len(plan.signs)
    sums = {group: Sums.zero(*size) for group in dict.fromkeys(plan.groups.values())}
    local = threading.local()

    # One thread works on one block and calls single-threaded kernels: with threads inside the kernels too, the two
    # would compete for cores, and the order of summation would depend on how many there are.
    def prepare() -> None:
        torch.set_num_threads(1)
        local.worker = BlockWorker(plan)

    threads_before = torch.get_num_threads()
    sizes = [plan.bytes_of(block) for block in plan.blocks]
    done, total = 0, sum(sizes)
    with ThreadPoolExecutor(workers, initializer=prepare) as pool:
        try:
            results = pool.map(lambda block: local.worker.run(block), plan.blocks)
            # In the order of blocks, whichever is first.
            for block, units, read in zip(plan.blocks, results, sizes, strict=True):
                for unit in units:
                    sums[block.group].add(unit)
                done += read
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads_before)  # the setting of new threads, too, was changed
    return sums


def cores() -> int:
    """Number of threads that read and multiply: one a core, at most four."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(MOST_WORKERS, (len(affinity(0)) if affinity else os.cpu_count()) or 1)
