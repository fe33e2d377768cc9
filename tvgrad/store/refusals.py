"""Refusals: what is said where the system refuses to write to a run."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tvgrad.errors import DiskFull, Unwritable
from tvgrad.files.writable import refusal

RESUME = "go on with --resume"


@contextmanager
def in_words(root: Path, again: str = RESUME) -> Generator[None]:
    """Say in a sentence what the system says of a run that is being written.

    Args:
        root: the run directory.
        again: what the user can do once there is room.

    Raises:
        DiskFull: something could not be written.
    """  # noqa: DOC501 - what was said in words already leaves as it is
    try:
        yield
    except OSError as error:
        told = refusal(error, root if error.filename is None else Path(os.fsdecode(error.filename)))
    except Unwritable as error:
        if not error.path:  # said in words already
            raise
        told = error
    else:
        return
    if told.remedy:
        raise DiskFull(f"{told.what}; {told.remedy} and {again}: finished epochs are whole")
    raise DiskFull(f"{root} cannot be written ({told.path}: {told.reason}): finished epochs are whole")
