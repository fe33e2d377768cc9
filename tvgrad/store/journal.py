"""The journal of a run that is being written: what was recorded since run.json was written whole. Imports no torch.

Writing run.json whole takes longer with every epoch. So the records of a long run are lines of a second file, which
are folded into run.json from time to time and at the end. The first line names the run.json that the others belong to:
a journal of another one is left over from a writer that was killed while it folded, and says nothing new.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvgrad import system
from tvgrad.fields import parse_json
from tvgrad.files.atomic import UMASK
from tvgrad.files.regular import read_text
from tvgrad.results import plain_json
from tvgrad.store.layout import JOURNAL, MANIFEST

_ATTEMPTS = 10  # a reader that comes between two writes looks again


class Journal:
    """The writer's end of the file: each record is on the disk when `append` returns."""

    def __init__(self, root: Path) -> None:
        """Know the place; nothing is opened before the first record.

        Args:
            root: the run directory.
        """
        self._path = root / JOURNAL
        self.records = 0

    def append(self, record: Mapping[str, Any], key: str) -> None:
        """Add a record.

        Args:
            record: plain values.
            key: what run.json calls the journal that follows it.

        Raises:
            OSError: it could not be written; the journal is then to be given up, by folding.
        """
        text = json.dumps(plain_json(record, keep_infinities=True), allow_nan=False) + "\n"
        begins = self.records == 0
        if begins:
            text = json.dumps({"journal": key}) + "\n" + text
            self._path.unlink(missing_ok=True)  # never through a link
        flags = system.WRITE | os.O_APPEND | (os.O_CREAT | os.O_EXCL if begins else 0)
        # Opened for each record: a script may close every descriptor by its number.
        descriptor = os.open(self._path, flags, 0o666 & ~UMASK)
        try:
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, text.encode())
                system.flush_descriptor(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if begins:
            system.flush(self._path.parent)
        self.records += 1

    def remove(self) -> None:
        """Remove the file: run.json tells all that it does."""
        self.records = 0
        self._path.unlink(missing_ok=True)


def write_all(descriptor: int, content: bytes) -> None:
    """Write bytes to a descriptor, however few the system takes at a time.

    Args:
        descriptor: a file.
        content: the bytes.
    """
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def read_content(root: Path) -> Any:
    """Read run.json with what its journal adds. Nothing is checked besides the journal's own form.

    Args:
        root: the run directory.

    Returns:
        The content, as run.json alone would hold it.

    Raises:
        OSError: a file cannot be read.
        ValueError: run.json is no JSON, or the journal does not fit it.
    """  # noqa: DOC502 - raised by what it calls
    content: Any = None
    for _ in range(_ATTEMPTS):
        before = _state(root)
        content = parse_json(read_text(root / MANIFEST, root))
        key = content.get("journal") if isinstance(content, dict) else None
        if key is None:
            return content
        records = _records(root, key)
        if records is not None:
            return _applied(content, records)
        if _state(root) == before:
            return content  # a journal of an older run.json, or none
    return content


def _state(root: Path) -> tuple[int, int, int]:
    found = os.stat(root / MANIFEST)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _records(root: Path, key: Any) -> list[Any] | None:
    """The records of the journal that follows this run.json; None where there is no such journal."""
    try:
        text = read_text(root / JOURNAL, root)
    except FileNotFoundError:
        return None
    lines = text.split("\n")[:-1]  # what follows the last end of a line was being written
    if not lines or parse_json(lines[0]) != {"journal": key}:
        return None
    return list(parse_json(f"[{','.join(lines[1:])}]"))  # at once, because their parts are counted together


def _applied(content: dict[str, Any], records: list[Any]) -> dict[str, Any]:
    try:
        points = {point["number"]: point for point in content["points"]}
        for record in records:
            points |= {point["number"]: point for point in record.pop("points", ())}
            content["info"] |= record.pop("info", {})
            for name, more in record.pop("extended", {}).items():
                held = content["info"].setdefault(name, type(more)())
                (held.extend if isinstance(held, list) else held.update)(more)
            content |= record
        return {**content, "points": list(points.values())}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{JOURNAL} beside it holds no records of it ({error})") from None
