"""A run of very many points and metrics: whoever walks through it does work in proportion to it, counted, not timed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tvgrad.errors import TvgradError
from tvgrad.store import ledger
from tvgrad.store.ledger import Ledger, csv_text
from tvgrad.store.manifest import Manifest, Parameter, Point
from tvgrad.store.run import Run

MANY = 3000


class Counted(tuple[Any, ...]):
    """A tuple that counts the items that are taken from it in turn."""

    taken = 0

    def __iter__(self) -> Iterator[Any]:
        for item in tuple.__iter__(self):
            Counted.taken += 1
            yield item

    def __reversed__(self) -> Iterator[Any]:
        for place in range(len(self) - 1, -1, -1):
            Counted.taken += 1
            yield self[place]


@pytest.fixture
def points() -> Counted:
    Counted.taken = 0
    return Counted(Point(number, number, {}, {f"metric {number}": 0.5, "loss": 1.0}) for number in range(MANY))


def test_every_point_of_a_run_is_found_without_a_search(points: Counted) -> None:
    run = Run("nowhere", Manifest({}, "epoch", {"w": Parameter((2,), "float32", "w")}, points=points))
    for number in range(MANY):
        assert run.point(number).number == number
    with pytest.raises(TvgradError, match=f"has no weights at epoch {MANY - 1}"):
        run.file("weights", MANY - 1)
    assert run.steps().empty
    with pytest.raises(TvgradError, match=f"has no epoch {MANY}: it has 0-{MANY - 1}"):
        run.point(MANY)
    # once for the index, and once for each sentence and each list of what there is
    assert Counted.taken <= 12 * MANY


def test_a_ledger_finds_every_point_without_a_search(tmp_path: Path, points: Counted) -> None:
    ledger = Ledger(tmp_path, Manifest({}, "epoch", {}, points=points))
    assert all(ledger.find(number) == points[number] for number in range(MANY))
    assert Counted.taken <= 4 * MANY


def test_many_names_of_metrics_are_gathered_once() -> None:
    """Each row holds two names of its own; comparing with a list of those before would be quadratic."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    rows = [{Name(f"a{row}"): 1.0, Name(f"b{row}"): 2.0} for row in range(500)]
    text = csv_text(rows)
    assert text.count("\n") == 501
    assert text.splitlines()[0].count(",") == 999
    assert compared <= 20 * 1000


def test_metrics_of_ever_new_names_are_written_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the epochs write twice the bytes, and a little more for foldings; a table of them all would take four."""
    written = 0

    def counted(path: Path, text: str) -> None:
        nonlocal written
        written += len(text) if path.name == "metrics.csv" else 0
        path.write_text(text)

    monkeypatch.setattr(ledger, "write_text_atomically", counted)
    monkeypatch.setattr(ledger, "FREE_CELLS", 2000)
    bytes_of = []
    for count in (500, 1000):
        root, written = tmp_path / str(count), 0
        tenths = range(100, count, 10)
        root.mkdir()
        kept = Ledger(root, Manifest({}, "epoch", {}))
        for number in range(count):
            metrics = {"loss": 1.0, f"metric {number}": 0.5, **({"accuracy": 0.25} if number in tenths else {})}
            kept.publish([Point(number, number, {}, metrics)])
            if number % 100 == 99:  # whatever has no column, every point has its row, at any moment
                rows = list(csv.DictReader((root / "metrics.csv").open()))
                assert [(row["epoch"], row["loss"]) for row in rows] == [(str(n), "1.0") for n in range(number + 1)]
        kept.finish()
        bytes_of.append(written)
        rows = list(csv.DictReader((root / "metrics.csv").open()))
        assert [row["accuracy"] for row in rows] == ["0.25" if n in tenths else "" for n in range(count)]
        assert rows[0]["metric 0"] == "0.5"
        assert (root / "metrics.csv").stat().st_size < 80 * count
        points = Run.open(root).points
        assert all(points[n].metrics[f"metric {n}"] == 0.5 for n in range(count))
    assert bytes_of[1] < 2.5 * bytes_of[0]


def test_a_metric_that_begins_late_has_its_column(tmp_path: Path) -> None:
    kept = Ledger(tmp_path, Manifest({}, "epoch", {}))
    for number in range(150):
        kept.publish([Point(number, number, {}, {"loss": 1.0, **({"late": 2.0} if number >= 120 else {})})])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["late"] for row in rows] == ["" if n < 120 else "2.0" for n in range(150)]
