"""The one JSON encoding: every reader takes it, and no digit of a finite number is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvgrad.results import json_text, read_number


def read(text: str) -> object:
    return json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_finite_numbers_keep_every_digit(number: float) -> None:
    assert read(json_text({"number": [number]})) == {"number": [number]}


@given(st.floats())
def test_what_is_kept_is_read_again(number: float) -> None:
    back = read_number(read(json_text(number, keep_infinities=True)))
    assert back == number or (math.isnan(back) and math.isnan(number))


def test_numbers_that_json_lacks_are_null() -> None:
    numbers = (math.nan, math.inf, -math.inf, np.float32("inf"), torch.tensor(math.nan))
    assert read(json_text(numbers)) == [None] * 5
    assert read(json_text(numbers, keep_infinities=True)) == [None, "inf", "-inf", "inf", None]


def test_numbers_of_other_libraries_and_other_things() -> None:
    value = {3: np.float64(0.1), "b": np.int64(3), "c": np.bool_(True), "d": torch.tensor(2), "e": Path("x"), "f": None}
    assert read(json_text(value)) == {"3": 0.1, "b": 3, "c": True, "d": 2, "e": "x", "f": None}
    assert json_text([1], indent=None) == "[1]"
