"""Merged weights of runs of LoRA, in weight space: sums of factors are not factors of sums."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from tvgrad.checkpoints.weight_change import WeightChange
from tvgrad.errors import TvgradError
from tvgrad.merging.merge import write_merged
from tvgrad.merging.merged_file import MergedFile
from tvgrad.merging.method import Method, checked_alpha
from tvgrad.merging.stack import FileStack, same_tensor
from tvgrad.store.lora import adapted_model, adapter_at, is_lora
from tvgrad.store.run import Run


def merge_lora_runs(
    runs: Sequence[Run], epoch: int, method: Method, *, alpha: float, out: str | os.PathLike[str]
) -> MergedFile:
    """Merge runs of LoRA into the weights of the model that they adapt.

    Adapters of different ranks and targets are merged as their changes `s (B_e A_e - B_0 A_0)`, formed block by block.

    Args:
        runs: runs of adapters of one model.
        epoch: epochs (or steps) done.
        method: how to merge.
        alpha: what the merged vector is multiplied with.
        out: the file to make; its names are those of the adapted model without the adapter.

    Returns:
        What was written.

    Raises:
        TvgradError: a run trained no adapter, the runs adapt different models, are too few for the method, or hold
            values that are not finite.
    """
    checked_alpha(alpha)
    method.check_tasks(len(runs))
    for run in runs:
        if not is_lora(run):
            raise TvgradError(f"{run.root} trained no adapter, and others did: merge runs of one kind")
    bases = [adapted_model(run) for run in runs]
    changes = [WeightChange(adapter_at(run, epoch), bases[0], torch.float64) for run in runs]
    known = [set(base.source.places) for base in bases]
    changed = set.union(*(set(change.changed) for change in changes))
    merged = [name for name in bases[0].source.places if name in changed and all(name in one for one in known)]
    shared: list[str] = []
    own = sorted(changed - set(merged))
    for name in dict.fromkeys(name for base in bases for name in base.source.places):
        alike = all(same_tensor(bases[0].source, base.source, name) for base in bases[1:])
        if name in merged and not alike:
            raise TvgradError(
                f"{runs[0].root} and another run adapt different weights ({name!r} differs): merge adapters of one "
                "model"
            )
        if name not in merged:
            (shared if alike and name in bases[0].source.places else own).append(name)
    stack = FileStack(bases[0].source, changes, [str(run.root) for run in runs], names=merged, changes=range(len(runs)))
    also = dict.fromkeys(shared, bases[0].source)
    path = write_merged(method, stack, out, alpha=alpha, also=also, confirm=partial(require_checksums, runs))
    return MergedFile(path, tuple(merged), tuple(shared), tuple(dict.fromkeys(own)))


def require_checksums(runs: Iterable[Run]) -> None:
    """Wait until the files of runs that have been read are compared with their checksums.

    Args:
        runs: they.
    """
    for run in runs:
        run.require_checksums()
