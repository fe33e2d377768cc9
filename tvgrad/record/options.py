"""TraceOptions: what the user of `tvgrad trace` says, or said when a resumed run was started."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from tvgrad.record.record_at import AT_EPOCHS, RecordAt
from tvgrad.store.keep_policy import KEEP_ALL, KeepPolicy
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients
from tvgrad.store.layout import MANIFEST
from tvgrad.store.manifest import read_manifest

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TraceOptions:
    """How to fine-tune and what to record; None leaves a choice to the recipe.

    Attributes:
        optimizer: gd, sgd, momentum, nesterov, adam or adamw.
        lr: learning rate.
        momentum: for momentum and nesterov.
        weight_decay: coupled for all but adamw.
        epochs: passes over the data.
        batch_size: samples in a mini-batch; `gd` always takes the full batch.
        dtype: float32, float64 or bfloat16: casts the model and floating-point data.
        device: a torch device, or auto.
        seed: orders of mini-batches, and noise.
        record: any of gradients, epoch-gradients, batches.
        record_at: epochs, or steps:1,10,100.
        keep: all, last:N or epochs:0,1,5.
        keep_gradients: all, or sketch:65536: gradients are kept as sketches of so many numbers.
        groups: a regular expression for groups of parameters.
        chunk_size: samples evaluated at once; None measures.
        allow: checks to switch off besides the recipe's own.
        resume: go on with an interrupted run.
        target: the recipe's name on the command line, for the record.
    """

    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    dtype: str | None = None
    device: str = "auto"
    seed: int = 0
    record: Sequence[str] = ("gradients",)
    record_at: RecordAt = AT_EPOCHS
    keep: KeepPolicy = KEEP_ALL
    keep_gradients: KeptGradients = ALL_GRADIENTS
    groups: str | None = None
    chunk_size: int | None = None
    allow: Sequence[str] = ()
    resume: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        """Check the values that come as text from a command line or a run.json."""
        object.__setattr__(self, "record_at", RecordAt(self.record_at))
        object.__setattr__(self, "keep", KeepPolicy(self.keep))
        object.__setattr__(self, "keep_gradients", KeptGradients(self.keep_gradients))


def as_started(options: TraceOptions, directory: Path, given: Collection[str]) -> TraceOptions:
    """Fill in, for a resume, what is not said again: it is as it was when the run was started.

    Args:
        options: with defaults where nothing was said.
        directory: the run directory.
        given: names of the options that were said.

    Returns:
        The options to go on with; as they are where there is no run to resume.
    """
    if not (options.resume and (directory / MANIFEST).is_file()):
        return options
    started = read_manifest(directory).info.get("options")
    if not isinstance(started, Mapping):
        return options
    own = {"resume", "target", "device", "epochs"}  # the planned epochs are the run's business, see `trace`
    names = {field.name for field in fields(TraceOptions)} - own - set(given)
    return replace(options, **{name: value for name, value in started.items() if name in names})
