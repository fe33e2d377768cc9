"""Finished parts of the merging study on disk, so that one that was stopped goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.writable import make_folder
from tvgrad.results import json_text

Rows = list[dict[str, Any]]


class ResumableCache:
    """A folder with one file for each finished part, or nothing that is kept.

    Several processes may fill one folder: a file appears whole.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        """Make the folder.

        Args:
            folder: its path; the empty word keeps nothing.
            settings: what every part depends on, numbers and words.

        Raises:
            TvgradError: the folder cannot be made.
        """
        self._folder = Path(folder) if folder else None
        self._settings = dict(settings, torch=torch.__version__)
        if self._folder is not None:
            make_folder(self._folder, option="cells=FOLDER")

    @property
    def keeps(self) -> bool:
        """Whether finished parts are kept."""
        return self._folder is not None

    def rows(self, key: Mapping[str, Any], make: Callable[[], tuple[Rows, ...]]) -> tuple[Rows, ...]:
        """Read a part, or make and keep it.

        Args:
            key: which part, numbers and words.
            make: computes its tables of rows.

        Returns:
            The tables.

        Raises:
            TvgradError: the file of this part is of other settings or cannot be read or written.
        """
        if self._folder is None:
            return make()
        path = self._folder / ("-".join(str(value) for value in key.values()) + ".json")
        settings = {**self._settings, **key}
        if path.exists():
            return _read(path, settings)
        tables = make()
        content = json_text({"settings": settings, "tables": tables}, indent=None)
        write_text_atomically(path, content, option="cells=FOLDER")
        return tables


def _read(path: Path, settings: Mapping[str, Any]) -> tuple[Rows, ...]:
    try:
        content = json.loads(path.read_text())
        found = content["settings"]
        tables = tuple(
            [{name: math.nan if value is None else value for name, value in row.items()} for row in table]
            for table in content["tables"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TvgradError(f"cells: {path} cannot be read ({error}): delete it") from None
    other = [name for name in settings if found.get(name) != settings[name]]
    if other:
        raise TvgradError(
            f"cells: {path} was made with {other[0]} {found.get(other[0])!r} and not {settings[other[0]]!r}: give "
            "another folder"
        )
    return tables
