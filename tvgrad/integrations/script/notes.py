"""Notes: what the processes of a traced script tell the one that started them, and what they say to the user."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tvgrad.files.regular import read_text
from tvgrad.wording import printable


def claim(folder: str) -> bool:
    """Become the one process that is recorded.

    Args:
        folder: the folder of notes.

    Returns:
        Whether no other process was earlier, or this one helps the one that is recorded.
    """
    if _MUTED:
        return True
    try:
        os.close(_opened(folder, "recorded", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return False
    return True


def leave_note(folder: str, **content: Any) -> None:
    """Leave a note; where the folder is gone, nobody reads it.

    Args:
        folder: the folder of notes.
        content: plain values.
    """
    if _MUTED:
        return
    line = json.dumps({"pid": os.getpid(), **content}) + "\n"
    with suppress(OSError):
        handle = _opened(folder, "notes", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def read_notes(folder: str) -> list[dict[str, Any]]:
    """Read all notes.

    Args:
        folder: the folder of notes.

    Returns:
        What was left, in order; a line that is no note is left out.
    """
    found = []
    with suppress(OSError, ValueError):
        for line in read_text(Path(folder, "notes")).splitlines():
            with suppress(ValueError):
                note = json.loads(line)
                found += [note] if isinstance(note, dict) and "event" in note else []
    return found


def help_silently() -> None:
    """Be a process that helps the one that is recorded: leave no notes, and say nothing."""
    _MUTED.append(True)


_MUTED: list[bool] = []


def _opened(folder: str, name: str, flags: int) -> int:
    """Open a note; the folder is made again where somebody has cleaned it away."""
    try:
        return os.open(Path(folder, name), flags, 0o600)
    except FileNotFoundError:
        os.makedirs(folder, 0o700, exist_ok=True)
        return os.open(Path(folder, name), flags, 0o600)


def _has_error_stream() -> bool:
    """Whether standard error is open."""
    try:
        os.fstat(2)
    except OSError:
        return False
    return sys.__stderr__ is not None


_BEGAN_WITH_ONE = _has_error_stream()


def say(sentence: str) -> None:
    """Say a sentence on the process's standard error, whatever the script has made of `sys.stderr`.

    Args:
        sentence: without the program's name.
    """
    # Where standard error was closed at first, number 2 may be a file of the script's own.
    if not _BEGAN_WITH_ONE or _MUTED:
        return
    with suppress(OSError, ValueError):
        if sys.__stderr__ is not None:
            sys.__stderr__.flush()
    with suppress(OSError):
        os.write(2, f"tvgrad: {printable(sentence)}\n".encode(errors="backslashreplace"))
