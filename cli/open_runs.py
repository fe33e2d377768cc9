"""How commands open the runs that are named on the command line, one by one, so that one damaged run hides no other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.regular import real_path
from tvgrad.store.layout import MANIFEST, run_directories

if TYPE_CHECKING:
    from tvgrad.store.run import Run


def open_each(paths: Iterable[Path]) -> list[tuple[Path, Run | None, list[str]]]:
    """Open runs, and directories of runs, each once.

    Args:
        paths: run directories, or directories that hold runs, up to three levels down.

    Returns:
        (directory, run, problems) in the order given: where run.json is damaged there is no run and one problem.

    Raises:
        TvgradError: a path is no run and no directory of runs, or a run has another format version.
    """
    from tvgrad.store.run import Run, open_runs

    found: dict[Path, tuple[Path, Run | None, list[str]]] = {}
    for path in paths:
        below = [] if (path / MANIFEST).exists() else run_directories(path)
        if not below and not (path / MANIFEST).exists():
            open_runs([path])  # says what the path is instead
        for directory in below or [path]:
            key = real_path(directory)
            if key in found:
                continue
            try:
                found[key] = directory, Run.open(directory), []
            except DamagedRun as error:
                found[key] = directory, None, [str(error)]
    return list(found.values())


def whole_runs(paths: Iterable[Path], checksums: bool = False) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Open runs whose files are there, of the size and with the headers that run.json says.

    Args:
        paths: run directories, or directories that hold runs, up to three levels down.
        checksums: read every byte now; otherwise a file is compared with its checksum when it is read.

    Returns:
        The whole runs, and the directory and first problem of each damaged one.

    Raises:
        TvgradError: a path is no run and no directory of runs, or a run has another format version.
    """  # noqa: DOC502 - raised by open_each
    whole, damaged = [], []
    for directory, run, found in open_each(paths):
        problems = found if run is None else problems_of(run, checksums)
        if run is None or problems:
            damaged.append((directory, problems[0]))
        else:
            whole.append(run)
    return whole, damaged


def single_run(path: Path) -> Run:
    """Open one run whose files are whole.

    Args:
        path: a run directory.

    Returns:
        The run.

    Raises:
        TvgradError: it is a directory of several runs, no run, or a damaged one.
    """
    from tvgrad.store.run import Run, open_runs

    if not (path / MANIFEST).exists():
        below = ", ".join(run.root.name for run in open_runs([path]))  # says what the path is instead
        raise TvgradError(f"{path} is a directory of runs ({below}): give one of them")
    run = Run.open(path)
    for problem in problems_of(run, checksums=False):
        raise DamagedRun(f"{path} is damaged: {problem}; see `tvgrad verify`")
    return run


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
