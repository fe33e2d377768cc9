"""MergedFile: what a merge of runs wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvgrad.results import Shown


@dataclass(frozen=True, repr=False)
class MergedFile(Shown):
    """What `merge_runs` wrote.

    Attributes:
        path: the path that opens the tensors.
        merged: names of the merged tensors.
        shared: names of the frozen tensors and buffers that are the same in all runs, and stand in the file too.
        own: names of those that differ from run to run, such as a task's head, and do not.
    """

    path: Path
    merged: tuple[str, ...]
    shared: tuple[str, ...]
    own: tuple[str, ...]
