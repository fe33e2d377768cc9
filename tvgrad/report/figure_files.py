"""Figures as files: whole or not there, as all that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tvgrad.files.atomic import write_atomically


def write_figure(figure: Figure, path: Path, *, option: str = "--out", **given: Any) -> None:
    """Draw a figure into a file, without a date: the same numbers make the same bytes.

    Args:
        figure: the figure.
        path: ends in .png, .svg or .pdf.
        option: by which the user chose it, for messages.
        **given: more for matplotlib's `savefig`.

    Raises:
        DiskFull: the disk, or a quota on it, has no room.
        Unwritable: the file cannot be written for another reason.
    """  # noqa: DOC502 - raised by write_atomically
    kind = path.suffix.removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format=kind, metadata=undated, **given), option=option
    )
