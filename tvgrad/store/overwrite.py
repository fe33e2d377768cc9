"""Replacing a run by a new one: only what tvgrad itself wrote is ever deleted. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.layout import CONTENTS, JOURNAL, MANIFEST, METRICS, files_in, is_own, require_free, require_no_links
from tvgrad.store.lock import LOCK, WriterLock

RESULTS = "results"
RESULT_FILES = ("second_order.json", "error_budget.json", "explain.json")


def require_replaceable(root: Path) -> None:
    """Refuse a directory in which a new run can neither go nor take the place of an old one. Deletes nothing.

    Args:
        root: the directory.

    Raises:
        TvgradError: it holds files that no run of tvgrad has, or another process writes to it.
    """
    if not (root / MANIFEST).exists():
        require_free(root)
        return
    require_no_links(root, [RESULTS])
    _require_own(root)
    if (root / LOCK).exists():
        WriterLock(root).close()  # refuses a directory in use


def remove_run(root: Path) -> None:
    """Delete the run in a directory, so that a new one can go there; where there is none, do nothing.

    The results of `tvgrad explain` go first and then run.json, so that what an interruption leaves is a whole run or
    none.

    Args:
        root: the directory.

    Raises:
        TvgradError: it holds files that no run of tvgrad has, or another process writes to it.
    """  # noqa: DOC502 - raised by what it calls
    if not (root / MANIFEST).exists():
        return
    require_no_links(root, [RESULTS])
    _require_own(root)
    lock = WriterLock(root)
    try:
        results = [root / RESULTS / name for name in RESULT_FILES]
        recorded = [root / relative for relative in files_in(root) if is_own(relative)]
        for path in (*results, root / MANIFEST, root / JOURNAL, root / METRICS, *recorded):
            path.unlink(missing_ok=True)
        for name in (RESULTS, *CONTENTS.values()):
            if (root / name).is_dir():
                (root / name).rmdir()
    finally:
        lock.close()


def _require_own(root: Path) -> None:
    """Refuse a run.json of another program, and anything beside it that a run does not have."""
    from tvgrad.store.manifest import read_manifest  # loads torch, for which a script should not wait twice

    try:
        read_manifest(root)
    except DamagedRun:
        raise TvgradError(
            f"{root / MANIFEST} cannot be read as a run's, so that nothing of {root} is replaced: choose another --out"
        ) from None
    folders = {*CONTENTS.values(), RESULTS}
    expected = {MANIFEST, METRICS, JOURNAL, LOCK, *folders}
    foreign = [child.name for child in root.iterdir() if child.name not in expected and not is_own(child.name)]
    for name in sorted(folders):
        inside = (root / name).iterdir() if (root / name).is_dir() else ()
        known = RESULT_FILES if name == RESULTS else ()
        foreign += [
            f"{name}/{one.name}" for one in inside if one.name not in known and not is_own(f"{name}/{one.name}")
        ]
    if foreign:
        raise TvgradError(
            f"{root} holds other files beside its run ({min(foreign)}), so that nothing of it is replaced: move them "
            "away, or choose another --out"
        )
