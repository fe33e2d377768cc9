"""Results become tables and survive a JSON round trip."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvgrad.errors import DamagedRun
from tvgrad.results import Result, frame_of, from_json, to_json
from tvgrad.theory.equivalence import StepVerdict


@dataclasses.dataclass(frozen=True)
class Row(Result):
    name: str
    value: float
    count: int
    fine: bool
    note: str | None = None


floats = st.floats(allow_nan=True, allow_infinity=True)
rows = st.builds(Row, st.text(), floats, st.integers(), st.booleans(), st.none() | st.text())


def bits(row: Row) -> list[Any]:
    return [np.float64(value).tobytes() if isinstance(value, float) else value for value in row.row().values()]


@given(st.lists(rows.filter(lambda one: not math.isnan(one.value) or math.copysign(1, one.value) > 0)))
def test_a_round_trip_keeps_every_bit(results: list[Row]) -> None:
    text = to_json(results)
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity: any JSON reader takes it
    back = from_json(Row, text)
    for one, other in zip(results, back, strict=True):
        if math.isnan(one.value):
            assert math.isnan(other.value)
        else:
            assert bits(one) == bits(other)


def test_the_first_encoding_of_non_finite_numbers_is_still_read() -> None:
    text = '[{"name": "a", "value": {"float": "-inf"}, "count": 1, "fine": true}]'
    assert from_json(Row, text) == [Row("a", -math.inf, 1, True)]


def test_numpy_numbers_are_numbers() -> None:
    text = to_json([Row("a", np.float64(0.1), np.int64(3), np.bool_(True))])  # type: ignore[arg-type]
    assert from_json(Row, text) == [Row("a", 0.1, 3, True)]


def test_frames() -> None:
    one = Row("a", math.nan, 1, True)
    pd.testing.assert_frame_equal(
        one.to_frame(),
        pd.DataFrame({"name": ["a"], "value": [math.nan], "count": [1], "fine": [True], "note": [None]}),
    )
    assert list(frame_of([one], ["count", "name"]).columns) == ["count", "name"]
    assert list(frame_of([], ["count", "name"]).columns) == ["count", "name"]
    assert len(frame_of([])) == 0


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Row("a", 0.0, 1, True).value = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "null",
        '{"a": 1}',
        "[1]",
        '[{"name": "a"}]',
        '[{"name": "a", "value": {"other": 1}, "count": 1, "fine": true}]',
        '[{"name": "a", "value": {"float": "x"}, "count": 1, "fine": true}]',
        '[{"name": "a", "value": 1, "count": 1, "fine": true, "more": 1}]',
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(DamagedRun, match=r"holds no Row .*: compute it again"):
        from_json(Row, text)


def test_verdicts() -> None:
    verdict = StepVerdict("low", "tau_1 = -lr g_0", "exact", 0.99, 0.0, math.nan, "a reason")
    (back,) = from_json(StepVerdict, to_json([verdict]))
    assert math.isnan(back.gradient_relative_error)
    assert dataclasses.replace(back, gradient_relative_error=0.0) == dataclasses.replace(
        verdict, gradient_relative_error=0.0
    )
