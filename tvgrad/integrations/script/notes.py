"""Notes: what the processes of a traced script tell the one that started them, and what they say to the user."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def claim(folder: str) -> bool:
    """Become the one process that is recorded.

    Args:
        folder: the folder of notes.

    Returns:
        Whether no other process was earlier.
    """
    try:
        os.close(os.open(Path(folder, "recorded"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:  # taken, or the process that started the script is gone
        return False
    return True


def leave_note(folder: str, **content: Any) -> None:
    """Leave a note; where the folder is gone, nobody reads it.

    Args:
        folder: the folder of notes.
        content: plain values.
    """
    line = json.dumps({"pid": os.getpid(), **content}) + "\n"
    with suppress(OSError):
        handle = os.open(Path(folder, "notes"), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def read_notes(folder: str) -> list[dict[str, Any]]:
    """Read all notes.

    Args:
        folder: the folder of notes.

    Returns:
        What was left, in order.
    """
    try:
        lines = Path(folder, "notes").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def say(sentence: str) -> None:
    """Say a sentence on the process's standard error, whatever the script has made of `sys.stderr`.

    Args:
        sentence: without the program's name.
    """
    with suppress(OSError, ValueError):
        if sys.__stderr__ is not None:
            sys.__stderr__.flush()
        os.write(2, f"tvgrad: {sentence}\n".encode())
