"""A run of very many points and metrics: whoever walks through it does work in proportion to it, counted, not timed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tvgrad.errors import TvgradError
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
