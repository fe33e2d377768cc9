"""Places that are written to: what is refused before long work, and what is said where the system refuses to write.

Every error of the system that comes of writing becomes a sentence here, by `writing`: which file, why, what to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tvgrad.errors import DiskFull, TvgradError, Unwritable
from tvgrad.files.regular import real_path, reason_of, why_irregular

_FULL = {
    errno.ENOSPC: ("", "free some space"),
    errno.EDQUOT: (" (Disk quota exceeded)", "free some space of your own"),
    errno.EFBIG: (" (File too large)", "raise the size that a file may have (`ulimit -f`)"),
}
"""What means that there is no room: what is said beside it, and what can be done."""
_AGAIN = "and type the command again"


@contextmanager
def writing(path: Path, option: str = "--out", *, meanwhile: Path | None = None) -> Generator[None]:
    """Turn what the system says of a file that is being written into a sentence.

    Args:
        path: the file or folder.
        option: by which the user chose it.
        meanwhile: the name under which it is written before it gets its own.

    Raises:
        DiskFull: the disk, or a quota on it, has no room, or files may not become so large.
        Unwritable: it cannot be written for another reason.
    """  # noqa: DOC501, DOC502 - made by refusal
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        if named not in {None, path, meanwhile, path.parent}:
            raise  # another file, one that is read say, which the error names
        raise refusal(error, path, option) from None


def refusal(error: OSError, path: Path, option: str = "--out") -> Unwritable:
    """Say in a sentence that a file cannot be written.

    Args:
        error: what the system said.
        path: the file or folder.
        option: by which the user chose it.

    Returns:
        What is to be raised.
    """
    reason = reason_of(error)
    if error.errno in _FULL:
        why, remedy = _FULL[error.errno]
        what = f"no room on the disk for {path}{why}"
        return DiskFull(f"{what}: {remedy} {_AGAIN}", what=what, reason=reason, path=str(path), remedy=remedy)
    what = f"{path} cannot be written ({reason})"
    return Unwritable(f"{what}: choose another {option}", what=what, reason=reason, path=str(path))


def make_folder(path: Path, what: str = "a folder", option: str = "--out") -> None:
    """Make a folder, and those above it, where they are not there yet.

    Args:
        path: the folder.
        what: what it is to be.
        option: by which the user chose it.

    Raises:
        DiskFull: the disk, or a quota on it, has no room.
        Unwritable: it cannot be made for another reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = refusal(error, path, option)
        if told.remedy:
            raise told from None
        made = f"{path} cannot be made {what} ({told.reason})"
        raise Unwritable(f"{made}: choose another {option}", what=made, reason=told.reason, path=told.path) from None


def require_file(path: Path, option: str = "--out") -> Path:
    """Refuse, before long work, a path where no file can be written.

    Args:
        path: what the user chose.
        option: by which.

    Returns:
        The path, or what it leads to where it is a link: the link stays.

    Raises:
        TvgradError: it is a folder, a pipe, a socket or a device, or its folder is none or may not be written to.
    """
    place = real_path(path)
    if not place.parent.is_dir():
        raise TvgradError(f"{place.parent} is no folder: choose another {option}")
    try:
        why = why_irregular(place)
    except OSError as error:
        why = reason_of(error)
    if why is not None:
        raise TvgradError(f"{path} cannot be written ({why}): choose another {option}")
    _require_access(place.parent, f"choose another {option}")
    return place


def require_folder(path: Path, remedy: str = "choose another --out", in_the_way: str | None = None) -> None:
    """Refuse, before long work, a path where no folder can be made or written to.

    Args:
        path: what the user chose; it need not exist.
        remedy: what can be done.
        in_the_way: what can be done where something else stands in its place; the same by default.

    Raises:
        TvgradError: it is, or lies in, something else than a folder, or may not be written to.
    """  # noqa: DOC501 - made by refusal
    try:
        for place in (path, *path.absolute().parents):
            if place.is_dir():
                _require_access(place, remedy)
                return
            if os.path.lexists(place):
                raise TvgradError(f"{place} is {_kind(place)}: {in_the_way or remedy}")
    except OSError as error:
        raise refusal(error, path) from None


def _require_access(folder: Path, remedy: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TvgradError(f"{folder} may not be written to: {remedy}")


def _kind(path: Path) -> str:
    if path.is_file():
        return "a file"
    if not path.exists():
        return "a link that leads nowhere"
    return (why_irregular(path) or "").removeprefix("it is ").removesuffix(" and no regular file")
