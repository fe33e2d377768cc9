"""Regular files of a bounded size: what a device, a pipe or a link that stands in a file's place cannot do to a reader.

A run or a checkpoint may come from a stranger. A pipe in the place of a file would wait for ever, a device would fill
the memory, and a link under a run would read, write or delete somebody else's files. So files are opened here: only
regular ones, and those of a run only where no link stands between the run directory and the file. A user's own paths,
and the files of checkpoints (caches keep them behind links), may be links to regular files.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from tvgrad import system
from tvgrad.fields import parse_json

MOST_BYTES = 64 << 20
"""Bytes of the largest description (JSON or a table of steps) that is read: a run of 40,000 points has no more."""


def real_path(path: Path) -> Path:
    """Follow the links in a path.

    Args:
        path: any path, which need not exist.

    Returns:
        The path without links; links that lead round in a circle stay, and fail where they are opened.
    """
    return Path(os.path.realpath(path))


def why_irregular(path: Path, under: Path | None = None) -> str | None:
    """Say why a path is not opened as a file.

    Args:
        path: the path.
        under: a directory below which nothing may be a link; None follows links.

    Returns:
        The end of a sentence on the path; None for a regular file, and where nothing is.
    """
    if under is not None:
        link = link_below(path, under)
        if link is not None:
            what = "it is a link" if link == path else f"{link.name} in its path is a link"
            return f"{what}, and nothing of a run is reached through a link"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISREG(mode) else f"it is {_kind(mode)} and no regular file"


def link_below(path: Path, under: Path) -> Path | None:
    """Find a link between a directory and a path below it.

    Args:
        path: the path.
        under: the directory; it may be a link itself.

    Returns:
        The first one, or None.
    """
    place = under
    for part in path.relative_to(under).parts:
        place /= part
        if place.is_symlink():
            return place
    return None


def open_regular(path: Path, under: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without a buffer.

    Args:
        path: the file.
        under: a directory below which nothing may be a link; None follows links.

    Returns:
        The file, at its first byte.

    Raises:
        OSError: it cannot be opened, or is no regular file; its `strerror` is the end of a sentence.
    """
    why = why_irregular(path, under)
    if why is not None:
        raise OSError(errno.EINVAL, why, str(path))
    descriptor = os.open(path, system.READ | (0 if under is None else system.NO_LINK))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {_kind(mode)} and no regular file", str(path))
        return open(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(path: Path, under: Path | None = None, most: int = MOST_BYTES) -> bytes:
    """Read a regular file that may not be larger than a stated size.

    Args:
        path: the file.
        under: as for `open_regular`.
        most: bytes.

    Returns:
        Its content.

    Raises:
        OSError: as for `open_regular`, or it is larger.
    """
    with open_regular(path, under) as handle:
        size = os.fstat(handle.fileno()).st_size
        content = b"" if size > most else handle.read(most + 1) or b""
        while 0 < len(content) <= most and (more := handle.read(most + 1 - len(content))):
            content += more
    if size > most or len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that are read of such a file", str(path))
    return content


def read_text(path: Path, under: Path | None = None, most: int = MOST_BYTES) -> str:
    """Read a text file in UTF-8, as `read_bounded` reads bytes.

    Args:
        path: the file.
        under: as for `open_regular`.
        most: bytes.

    Returns:
        Its text.
    """
    return read_bounded(path, under, most).decode("utf-8")


def read_json(path: Path, under: Path | None = None) -> Any:
    """Read a JSON file that is no larger, and has no more parts, than those that tvgrad and its peers write.

    Args:
        path: the file.
        under: as for `open_regular`.

    Returns:
        Its content.
    """
    return parse_json(read_text(path, under))


def reason_of(error: BaseException) -> str:
    """Put an error into words that can stand in brackets.

    Args:
        error: what reading a file raised.

    Returns:
        The system's words, or the error's own, on one line.
    """
    words = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join(words.split())[:300]


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((words for test, words in kinds.items() if test(mode)), "a device")
