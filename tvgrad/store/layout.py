"""The names of the files of a run directory, and the places where a new one may go. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tvgrad.errors import TvgradError
from tvgrad.store.lock import LOCK

MANIFEST = "run.json"
METRICS = "metrics.csv"
JOURNAL = "journal.jsonl"
CONTENTS = {
    "weights": "weights",
    "gradient": "gradients",
    "buffers": "buffers",
    "epoch_gradient": "epoch_gradients",
    "gradient_sketch": "gradient_sketches",
    "epoch_gradient_sketch": "epoch_gradient_sketches",
    "batches": "batches",
    "steps": "steps",
    "state": "state",
}
"""What a point may hold -> the folder it lies in."""

OWN_FILES = re.compile(
    r"static(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    rf"|({'|'.join(CONTENTS.values())})"
    r"/(epoch-\d{4,}|step-\d{6,})(-\d{5}-of-\d{5})?\.(safetensors|safetensors\.index\.json|csv|json)"
)
# Our own temporary names, and those under which the safetensors library writes before it renames to them.
OWN_TEMPORARY = re.compile(r"\..+\.\d+\.tmp|\.tmp[A-Za-z0-9]{6}")


def is_own(relative: str) -> bool:
    """Tell whether a file has a name that only a run's writer gives, so that it may be swept.

    Args:
        relative: its path in the run directory.

    Returns:
        Whether it is a point's, the frozen parameters' or a temporary file; anything else is somebody's own.
    """
    folder, _, name = relative.rpartition("/")
    temporary = OWN_TEMPORARY.fullmatch(name) is not None and folder in {"", *CONTENTS.values()}
    return temporary or OWN_FILES.fullmatch(relative) is not None


def files_in(root: Path) -> list[str]:
    """List what lies in a run directory and in its folders of points. What a link leads to is not part of a run.

    Args:
        root: the directory.

    Returns:
        Relative paths; a folder that is a link is listed itself, and not what is in it.
    """
    folders = [root, *(root / name for name in CONTENTS.values() if _is_folder(root / name))]
    return [
        child.relative_to(root).as_posix()
        for folder in folders
        for child in folder.iterdir()
        if folder != root or not _is_folder(child)
    ]


def require_no_links(root: Path, besides: Iterable[str] = ()) -> None:
    """Refuse to write to a run in which a folder or a file that will be replaced or deleted is a link.

    Args:
        root: the run directory; it may be a link itself.
        besides: more names in it that will be written.

    Raises:
        TvgradError: one of them is a link.
    """
    for name in (*CONTENTS.values(), MANIFEST, METRICS, JOURNAL, LOCK, *besides):
        if (root / name).is_symlink():
            raise TvgradError(
                f"{root / name} is a link, and nothing of a run is written through a link: put what it leads to in its "
                "place, or choose another --out"
            )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def require_free(root: Path, or_else: str = ", go on with it by --resume, or replace it by --overwrite") -> None:
    """Refuse a directory where no new run can go.

    Args:
        root: the directory; it may be missing, empty, or hold only what a run killed at birth leaves behind.
        or_else: what can be done with a run that is there, for the message.

    Raises:
        TvgradError: it is a file or lies in one, or holds a run or other files.
    """
    for place in (root, *root.parents):
        if place.exists() and not place.is_dir():
            raise TvgradError(f"{place} is a file: choose another --out")
    if (root / MANIFEST).exists():
        raise TvgradError(f"{root} already holds a run: choose another --out{or_else}")
    if not root.is_dir():
        return
    require_no_links(root)
    known = {*CONTENTS.values(), LOCK, JOURNAL}
    foreign = [child.name for child in root.iterdir() if child.name not in known and not is_own(child.name)]
    # A folder called weights may be anybody's.
    foreign += [relative for relative in files_in(root) if "/" in relative and not is_own(relative)]
    if foreign:
        raise TvgradError(f"{root} holds other files ({min(foreign)}): choose an empty or new directory for --out")


MOST_LEVELS = 3
"""How deep below a directory runs are looked for."""


def run_directories(path: Path) -> list[Path]:
    """Find the runs in a directory, and in directories of it up to three levels down.

    Args:
        path: a directory of runs, or of directories of runs.

    Returns:
        Their directories, sorted; what lies inside a run is none.
    """
    found: list[Path] = []
    for depth in range(1, MOST_LEVELS + 1):
        for manifest in sorted(path.glob("*/" * depth + MANIFEST)):
            if not any(known in manifest.parents for known in found):
                found.append(manifest.parent)
    return sorted(found)
