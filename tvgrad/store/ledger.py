"""Ledger: what a run lists, kept in run.json, and for a long run also in a journal that is folded into it."""

from __future__ import annotations

import collections
import csv
import io
import os
import secrets
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tvgrad import system
from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.store.journal import Journal, write_all
from tvgrad.store.layout import MANIFEST, METRICS
from tvgrad.store.manifest import FileEntry, Manifest, Point
from tvgrad.wording import without_formula

WHOLE = 64
"""A run of so many points is described by run.json alone at any moment."""
MOST_EARLY = 8
"""So often metrics.csv is written whole between two foldings, for new names."""
MOST_EMPTY, FREE_CELLS = 16, 1_000_000
"""metrics.csv has so many cells for each that is filled, and so many more: a name too many gets no column."""


class Ledger:
    """The one way to change what a run lists: what `publish` was given is on the disk when it returns.

    Where it raises, the files that were to be listed are whole, and the next call lists them too.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        """Know what is listed, or will be by the first `publish`.

        Args:
            root: the run directory.
            manifest: what its run.json says, or will say.
        """
        self._root = root
        self._base = replace(manifest, points=(), info=_own(manifest.info))
        self._points = list(manifest.points)
        self._places = {point.number: place for place, point in enumerate(self._points)}
        self._journal = Journal(root)
        self._table = _MetricsTable(root / METRICS, manifest.unit)
        self._must_fold = True

    @property
    def manifest(self) -> Manifest:
        """All that is listed."""
        return replace(self._base, points=tuple(self._points))

    @property
    def state(self) -> FileEntry | None:
        """What a resume needs."""
        return self._base.state

    @property
    def unit(self) -> str:
        """What the numbers of points count."""
        return self._base.unit

    def stem(self, number: int) -> str:
        """Name a point's files, as `Manifest.stem` does.

        Args:
            number: its epochs (or steps).

        Returns:
            The stem.
        """
        return self._base.stem(number)

    def find(self, number: int) -> Point | None:
        """Find a point.

        Args:
            number: its epochs (or steps).

        Returns:
            The point, where it is listed.
        """
        place = self._places.get(number)
        return None if place is None else self._points[place]

    def publish(
        self,
        points: Iterable[Point] = (),
        *,
        info: Mapping[str, Any] | None = None,
        extended: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """List points, new or changed, and facts: all of it in one instant, or nothing.

        Args:
            points: new ones come last.
            info: facts to add to the run's description.
            extended: name of a fact -> what is added to that list or mapping.
            **fields: state or finished.
        """
        changed = list(points)
        new_rows = [point for point in changed if not self._has_row(point)]
        fields = self._apply(changed, info or {}, extended or {}, fields)
        # Folding takes as long as the run is: not more often than that costs the same an epoch.
        if self._must_fold or len(self._points) <= WHOLE or self._journal.records >= len(self._points) // 4:
            self.fold()
            return
        record = {"points": [asdict(point) for point in changed], "info": info, "extended": extended}
        self._must_fold = True  # where the journal's end is not known, it is given up
        self._journal.append({name: value for name, value in record.items() if value} | fields, str(self._base.journal))
        self._must_fold = False
        self._table.change(new_rows, self._points)

    def fold(self, closing: bool = False) -> None:
        """Write run.json and metrics.csv whole, and begin a new journal.

        Args:
            closing: nothing will be added, so that no journal follows.
        """
        follows = len(self._points) >= WHOLE and not closing
        self._must_fold = True
        self._base = replace(self._base, journal=secrets.token_hex(8) if follows else None)
        write_text_atomically(self._root / MANIFEST, self.manifest.to_json())
        self._must_fold = False
        self._journal.remove()
        self._table.write(self._points)

    def finish(self) -> None:
        """List that the training came to its planned end, and fold."""
        self._base = replace(self._base, finished=True)
        self.fold(closing=True)

    def close(self) -> None:
        """Fold a journal; where that fails, it stays and says the same."""
        if self._journal.records and not self._must_fold:
            with suppress(OSError, TvgradError):
                self.fold(closing=True)

    def _has_row(self, point: Point) -> bool:
        earlier = self.find(point.number)
        return earlier is not None and earlier.metrics == point.metrics

    def _apply(
        self, changed: Sequence[Point], info: Mapping[str, Any], extended: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Change what is in memory; the fields that are other than they were, as plain values."""
        for point in changed:
            place = self._places.setdefault(point.number, len(self._points))
            self._points[place : place + 1] = [point]
        earlier = self._base
        self._base = replace(earlier, info={**earlier.info, **_own(info)}, **fields)
        for name, more in extended.items():
            held = self._base.info.get(name)
            if isinstance(held, (list, dict)):
                (held.extend if isinstance(held, list) else held.update)(more)
            else:
                self._base.info[name] = type(more)(more)
        new = {name: value for name, value in fields.items() if value != getattr(earlier, name)}
        return {name: asdict(value) if isinstance(value, FileEntry) else value for name, value in new.items()}


def _own(info: Mapping[str, Any]) -> dict[str, Any]:
    """Facts whose lists and mappings the ledger may extend."""
    return {
        name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else value
        for name, value in info.items()
    }


class _MetricsTable:
    """metrics.csv, made of the points: rows are added to it, and it is written whole where that is not enough.

    It grows in proportion to what the points hold, and so does all that is ever written of it: names of few points
    have no column where most of the table would be empty, and a new name waits for the next folding where there have
    been many. run.json has them all.
    """

    def __init__(self, path: Path, unit: str) -> None:
        self._path, self._unit = path, unit
        self._names: list[str] = []
        self._known: set[str] = set()
        self._last = 0  # where the last row begins
        self._rows = 0
        self._early = 0

    def write(self, points: Sequence[Point]) -> None:
        self._early = 0
        if not points:
            return
        self._names = _columns([self._row(point) for point in points])
        self._known = set(self._names)
        rows = [self._row(point, self._known) for point in points]
        text = csv_text(rows, self._names)
        write_text_atomically(self._path, text)
        self._rows = len(rows)
        self._last = len(text.encode()) - len(csv_text(rows[-1:], self._names, header=False).encode())

    def change(self, rows: Sequence[Point], points: Sequence[Point]) -> None:
        """Put new rows in their places.

        Args:
            rows: points with other metrics than before.
            points: all.
        """
        if not rows:
            return
        added = len(points) - self._rows
        early = self._early
        fits = set(rows[0].metrics) <= self._known or early >= MOST_EARLY
        if len(rows) > 1 or rows[0] is not points[-1] or added not in {0, 1} or not fits:
            self.write(points)
            self._early = early + 1
            return
        with suppress(OSError):  # it is made anew when run.json is
            descriptor = os.open(self._path, system.WRITE)
            try:
                if added:
                    self._last = os.fstat(descriptor).st_size
                os.ftruncate(descriptor, self._last)
                os.lseek(descriptor, self._last, os.SEEK_SET)
                write_all(descriptor, csv_text([self._row(rows[0], self._known)], self._names, header=False).encode())
                self._rows = len(points)
            finally:
                os.close(descriptor)

    def _row(self, point: Point, known: Container[str] | None = None) -> dict[str, Any]:
        row = {self._unit: point.number, **point.metrics}
        return row if known is None else {name: value for name, value in row.items() if name in known}


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of rows that get a column, in the order in which they come: all, unless nearly all would be empty."""
    counts = collections.Counter(name for row in rows for name in row)
    most = (MOST_EMPTY * counts.total() + FREE_CELLS) // len(rows)
    chosen = {name for name, _ in counts.most_common(max(most, 1))}
    return [name for name in counts if name in chosen]


def csv_text(rows: Sequence[Mapping[str, Any]], first: Sequence[str] = (), header: bool = True) -> str:
    """Render rows as csv; a name that begins like a formula gets an apostrophe.

    Args:
        rows: name -> value; a value that a row lacks is an empty cell.
        first: columns that come first, and are there in any case.
        header: whether a line of names comes first.

    Returns:
        The text.
    """
    names = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    if header:
        writer.writerow({name: without_formula(name) for name in names})
    # repr keeps every digit of a float
    writer.writerows(
        {name: repr(value) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue()
