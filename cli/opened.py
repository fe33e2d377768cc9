"""How commands open the runs that are named on the command line, one by one, so that one damaged run hides no other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tvgrad.errors import DamagedRun
from tvgrad.record.layout import MANIFEST

if TYPE_CHECKING:
    from tvgrad.record.run import Run

__all__ = ["open_each", "problems_of"]


def open_each(paths: Iterable[Path]) -> list[tuple[Path, Run | None, list[str]]]:
    """Open runs, and directories of runs, each once.

    Args:
        paths: run directories, or directories whose subdirectories are runs.

    Returns:
        (directory, run, problems) in the order given: where run.json is damaged there is no run and one problem.

    Raises:
        TvgradError: a path is no run and no directory of runs, or a run has another format version.
    """
    from tvgrad.record.run import Run, open_runs

    found: dict[Path, tuple[Path, Run | None, list[str]]] = {}
    for path in paths:
        below = [] if (path / MANIFEST).exists() else sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
        if not below and not (path / MANIFEST).exists():
            open_runs([path])  # says what the path is instead
        for directory in below or [path]:
            key = directory.resolve()
            if key in found:
                continue
            try:
                found[key] = directory, Run.open(directory), []
            except DamagedRun as error:
                found[key] = directory, None, [str(error)]
    return list(found.values())


def problems_of(run: Run, checksums: bool) -> list[str]:
    """Check every file of a run; a file whose header cannot be read is a problem like any other.

    Args:
        run: the run.
        checksums: read every byte; otherwise presence, size and headers only.

    Returns:
        One sentence a problem; empty when all is well.
    """
    try:
        return run.problems(checksums)
    except DamagedRun as error:
        return [str(error)]
