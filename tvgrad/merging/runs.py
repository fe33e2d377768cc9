"""Merged weights of several runs: their shared trainable parameters at one epoch, and what is frozen alike in all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.merging.lora_runs import merge_lora_runs, require_checksums
from tvgrad.merging.merge import write_merged
from tvgrad.merging.merged_file import MergedFile
from tvgrad.merging.method import Method, checked_alpha
from tvgrad.merging.stack import FileStack, first_difference, same_tensor
from tvgrad.store.lora import is_lora
from tvgrad.store.run import Run


def common_epoch(runs: Sequence[Run]) -> int:
    """Find the last epoch whose weights all runs keep.

    Args:
        runs: at least one.

    Returns:
        Its number.

    Raises:
        TvgradError: there is none after the pretrained weights.
    """
    kept = set(runs[0].epochs).intersection(*(run.epochs for run in runs[1:])) - {0}
    if not kept:
        raise TvgradError("the runs keep no epoch in common: give --epoch, or trace them with the same --keep")
    return max(kept)


def stack_of(runs: Sequence[Run], epoch: int) -> FileStack:
    """Put the runs' task vectors at one epoch side by side, as files.

    Args:
        runs: runs of tasks that share one pretrained model.
        epoch: epochs (or steps) done.

    Returns:
        The stack.

    Raises:
        TvgradError: a run has no such epoch, or the runs have different tensors or pretrained weights.
    """
    if not runs:
        raise TvgradError("there is no run to merge: give the --out of a `tvgrad trace`")
    if epoch < 1:
        raise TvgradError(f"epoch {epoch} has no task vector: give an epoch of at least 1")
    first = runs[0].file("weights", 0)
    stack = FileStack(first, [run.file("weights", epoch) for run in runs], [str(run.root) for run in runs])
    for run in runs[1:]:
        _same_start(runs[0], run, first)
    return stack


def merge_runs(
    runs: Sequence[Run], epoch: int, method: Method, *, alpha: float, out: str | os.PathLike[str]
) -> MergedFile:
    """Merge the trainable parameters of runs into one safetensors file.

    Frozen parameters and buffers are written beside the merged tensors where they are the same, bit for bit, in all
    runs. Those that differ (each task's own head) are not: take them from the task's run. Runs of LoRA are merged
    in weight space, under the names of the adapted model.

    Args:
        runs: runs of tasks that share one pretrained model.
        epoch: epochs (or steps) done.
        method: how to merge.
        alpha: what the merged vector is multiplied with.
        out: the file to make.

    Returns:
        What was written.

    Raises:
        TvgradError: the runs do not fit together, are too few for the method, or hold values that are not finite.
    """  # noqa: DOC502 - raised by what is called
    checked_alpha(alpha)
    method.check_tasks(len(runs))
    if any(is_lora(run) for run in runs):
        return merge_lora_runs(runs, epoch, method, alpha=alpha, out=out)
    stack = stack_of(runs, epoch)
    shared, own = frozen_of(runs, epoch)
    path = write_merged(method, stack, out, alpha=alpha, also=shared, confirm=partial(require_checksums, runs))
    return MergedFile(path, tuple(stack.places), tuple(shared), tuple(own))


def _same_start(first: Run, other: Run, file: TensorFile) -> None:
    entries = [run.point(0).files["weights"] for run in (first, other)]
    if [digest for _, digest, _ in entries[0].parts] == [digest for _, digest, _ in entries[1].parts]:
        return  # the same bytes, as recorded
    name = first_difference(file, other.file("weights", 0))
    if name is not None:
        raise TvgradError(
            f"{first.root} and {other.root} started from different pretrained weights ({name!r} differs): "
            "merge runs of one pretrained model"
        )


def frozen_of(runs: Sequence[Run], epoch: int) -> tuple[dict[str, TensorFile], list[str]]:
    """Find the frozen tensors and buffers at an epoch.

    Args:
        runs: the runs.
        epoch: epochs (or steps) done.

    Returns:
        Name -> file of those that all runs have alike, to the bit; and the others' names.
    """
    tables = [_frozen_files(run, epoch) for run in runs]
    shared: dict[str, TensorFile] = {}
    own = []
    for name in dict.fromkeys(name for table in tables for name in table):
        files = [table[name] for table in tables if name in table]
        if len(files) == len(tables) and all(same_tensor(files[0], file, name) for file in files[1:]):
            shared[name] = files[0]
        else:
            own.append(name)
    return shared, own


def _frozen_files(run: Run, epoch: int) -> dict[str, TensorFile]:
    table: dict[str, TensorFile] = {}
    static = run.static_file()
    if static is not None:
        table |= dict.fromkeys(static.places, static)
    changed = [at for at in run.having("buffers") if at <= epoch]
    if changed:
        buffers = run.file("buffers", changed[-1])
        table |= dict.fromkeys(buffers.places, buffers)
    return table
