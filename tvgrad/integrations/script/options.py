"""Options: what `tvgrad trace -- COMMAND` hands to the process that runs the script, through its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.record.record_at import AT_EPOCHS, RecordAt
from tvgrad.store.keep_policy import KEEP_ALL, KeepPolicy
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients

VARIABLE = "TVGRAD_TRACE"


def launch_of(options: ScriptOptions) -> str:
    """Tell one start of a command from every other: run.json keeps it.

    Args:
        options: of the start.

    Returns:
        A name that no other start has.
    """
    return Path(options.notes).name


@dataclass(frozen=True)
class ScriptOptions:
    """How a script is recorded.

    Attributes:
        out: the run directory, absolute.
        notes: a folder in which the script's processes leave notes for the one that started them.
        command: the command, for the record.
        record: any of epoch-gradients, gradient-norms.
        record_at: epochs, or steps:1,10,100.
        keep: all, last:N or epochs:0,1,5.
        keep_gradients: all, or sketch:65536: sums of gradients are kept as sketches of so many numbers.
        groups: a regular expression for groups of parameters.
        steps_per_epoch: optimizer steps in an epoch; None reads epochs off the script's DataLoaders.
        model: which model to record where there are several.
        recipe: TARGET of the recipe whose full-batch gradients are computed afterwards.
        frozen: record frozen parameters too, which may begin to train later.
        overwrite: replace a run that is there, when the first step is recorded.
        resume: go on with a run that is there, where the script begins with the weights that the run ends with.
        strict: end the script where recording fails.
        quiet: say nothing where all is well.
        measure: what a pass at recorded weights does, where nothing is to be recorded.
        training: counts those of the command that have runs: folds, say.
    """

    out: str
    notes: str
    command: tuple[str, ...]
    record: tuple[str, ...] = ("epoch-gradients",)
    record_at: RecordAt = AT_EPOCHS
    keep: KeepPolicy = KEEP_ALL
    keep_gradients: KeptGradients = ALL_GRADIENTS
    groups: str | None = None
    steps_per_epoch: int | None = None
    model: str | None = None
    recipe: str | None = None
    frozen: bool = False
    overwrite: bool = False
    resume: bool = False
    strict: bool = False
    quiet: bool = False
    measure: PassOptions | None = None
    training: int = 1

    def __post_init__(self) -> None:
        """Check the values that come as text from a command line or the environment."""
        object.__setattr__(self, "record_at", RecordAt(self.record_at))
        object.__setattr__(self, "keep", KeepPolicy(self.keep))
        object.__setattr__(self, "keep_gradients", KeptGradients(self.keep_gradients))

    def to_environment(self) -> str:
        """Render the value of the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ScriptOptions | None:
        """Read the environment variable.

        Args:
            environment: where to look.

        Returns:
            The options, or None in a process that no `tvgrad trace` has started.
        """
        text = environment.get(VARIABLE)
        if text is None:
            return None
        content = json.loads(text)
        measure = content["measure"]
        return cls(
            **content
            | {
                "command": tuple(content["command"]),
                "record": tuple(content["record"]),
                "measure": None if measure is None else PassOptions(**measure),
            }
        )


def sibling(out: str, number: int, replaced: bool) -> str:
    """Name a run directory beside another.

    Args:
        out: the other.
        number: of the training, from 2.
        replaced: whether a run of that name may be replaced.

    Returns:
        `out-2`, say: the first that does not exist, from this number on.
    """
    while not replaced and os.path.exists(f"{out}-{number}"):
        number += 1
    return f"{out}-{number}"
