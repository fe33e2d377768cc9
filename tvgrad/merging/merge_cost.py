"""What merging runs takes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tvgrad.cost import Cost, held_bytes, seconds_to_hash
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import bytes_on_disk
from tvgrad.merging.by_name import METHODS
from tvgrad.merging.merge import merged_blocks
from tvgrad.merging.method import Method
from tvgrad.merging.runs import frozen_of, stack_of
from tvgrad.merging.stack import FileStack, Stack
from tvgrad.store.lora import is_lora
from tvgrad.store.run import Run

SAMPLE = 1 << 22
"""Coordinates of the part of the merge that is timed."""


def merge_cost(runs: Sequence[Run], epoch: int, method: Method, out: str | os.PathLike[str]) -> Cost:
    """Tell what merging runs into a file takes.

    Time: that of merging some of the tensors now, by their coordinates, and of checksums beside it; a method's first
    look at whole vectors is not in it, nor is the disk's own time for the new file. Memory: what the process holds
    after that, and for a method that needs whole tensors the tasks' rows of the largest tensor in float64, three times.
    Disk: the file.

    Args:
        runs: runs of tasks that share one pretrained model.
        epoch: epochs (or steps) done.
        method: how to merge.
        out: the file to make.

    Returns:
        The cost.

    Raises:
        TvgradError: the runs do not fit together, or are merged in weight space.
    """
    method.check_tasks(len(runs))
    if any(is_lora(run) for run in runs):
        raise TvgradError("adapters are merged in weight space, for which no cost is told: merge without --cost")
    stack = stack_of(runs, epoch)
    shared, _ = frozen_of(runs, epoch)
    kept = {name: (file.places[name].shape, file.places[name].dtype) for name, file in shared.items()}
    places = {**stack.places, **kept}
    sizes = {name: stack.numel(name) for name in stack.places}
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    read = (len(runs) + 1) * sum(size * stack.places[name][1].itemsize for name, size in sizes.items())
    files = [
        TensorFile(run.file("weights", number).path) for run, number in [(runs[0], 0), *((r, epoch) for r in runs)]
    ]
    seconds, done = _timed(method, FileStack(files[0], files[1:]), sizes)  # without checksums, which read all of a file
    for file in files:
        file.close()
    whole = 0 if method.elementwise else 3 * len(runs) * largest * 8
    return Cost(
        f"{len(runs)} runs, {total:,} coordinates",
        seconds * total / max(done, 1) + seconds_to_hash(read),
        held_bytes() + whole,
        bytes_on_disk(places, Path(out).name.removesuffix(".safetensors"), as_given=True),
    )


def _timed(method: Method, stack: Stack, sizes: dict[str, int]) -> tuple[float, int]:
    """Seconds of merging the smallest tensors, and how many coordinates they have."""
    # What looks at whole vectors first is timed as the mean, which reads and writes as much.
    ready = method if type(method).prepared is Method.prepared else METHODS["mean"]()
    done, begin = 0, time.perf_counter()
    for name in sorted(sizes, key=lambda one: sizes[one]):
        for _ in merged_blocks(ready, stack, name, alpha=1.0, dtype=stack.places[name][1]):
            pass
        done += sizes[name]
        if done >= SAMPLE:
            break
    return time.perf_counter() - begin, done
