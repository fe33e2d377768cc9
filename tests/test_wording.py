"""Numbers, sizes and lists in words."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.report.documents import check_formats
from tvgrad.update_rules.rules import make_rule
from tvgrad.wording import bytes_in_words, counted, listed, loading_error, near, percent, rounded_down, rounded_up


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999.5, "1 kB"),
        (4_570, "4.57 kB"),
        (999_600, "1 MB"),
        (343_000_000, "343 MB"),
        (1_250_000_000, "1.25 GB"),
        (78_200_000_000, "78.2 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_bytes_in_words(number: float, words: str) -> None:
    assert bytes_in_words(number) == words


def test_what_was_meant() -> None:
    assert near("tise", ("mean", "ties")) == "; did you mean 'ties'?"
    assert near("nothing like it", ("mean", "ties")) == ""
    for call, said in (
        (lambda: make_rule("adma", 0.1), "choose one of gd, .*; did you mean 'adam'"),
        (lambda: check_formats(["latx"]), "choose from csv, .*; did you mean 'latex'"),
        (lambda: load_recipes("digits", ["partiy"]), "choose from low, .*; did you mean 'parity'"),
    ):
        with pytest.raises(TvgradError, match=said):
            call()


def test_counted() -> None:
    assert [counted(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


@pytest.mark.parametrize(
    ("words", "most", "text"),
    [
        ([], None, ""),
        (["a"], None, "a"),
        (["a", 2], None, "a and 2"),
        (["a", "b", "c"], None, "a, b and c"),
        (["a", "b", "c"], 3, "a, b and c"),
        (["a", "b", "c", "d"], 2, "a, b and 2 more"),
    ],
)
def test_listed(words: list[object], most: int | None, text: str) -> None:
    assert listed(words, most) == text


@example(number=5e-324, digits=1)
@example(number=-1e-310, digits=3)
@given(number=st.floats(allow_nan=False, allow_infinity=False), digits=st.integers(1, 8))
def test_bounds_are_never_printed_on_the_wrong_side(number: float, digits: int) -> None:
    above, below = Decimal(rounded_up(number, digits)), Decimal(rounded_down(number, digits))
    assert below <= Decimal(number) <= above
    if 1e-300 < abs(number) < 1e307:
        assert above - below <= Decimal(10) ** (Decimal(number).adjusted() - digits + 1)  # one unit of the last digit


def test_bounds_in_words() -> None:
    assert [rounded_up(x) for x in (0.0, 1.0, 0.1, 9.9991, 1e300, math.inf)] == [
        "0",
        "1",
        "0.101",
        "10",
        "1.01e+300",
        "inf",
    ]
    assert [rounded_down(x) for x in (0.0, 1.0, 0.3, 9.9991)] == ["0", "1", "0.299", "9.99"]


def test_percent() -> None:
    shares = (0.0, 3.3e-5, 0.003, 0.0994, 0.788, 8.13, 1440.4, math.inf, math.nan)
    words = ["0", "3.3e-05", "0.3 %", "9.9 %", "79 %", "813 %", "1,440 times", "not finite", "not finite"]
    assert [percent(share) for share in shares] == words


def test_a_state_dict_that_does_not_fit_is_told_in_ten_names() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200)))
    with pytest.raises(RuntimeError) as raised:
        model.load_state_dict({"other": torch.zeros(1), "0.weight": torch.zeros(3, 2)})
    told = loading_error(raised.value)
    assert len(str(raised.value)) > 4000 > 400 > len(told)
    assert told.startswith("the state_dict does not fit: missing 0.bias, 1.weight, 1.bias and 396 more; unexpected")
    assert told.endswith("of another shape 0.weight")
    assert loading_error(ValueError("two\nlines")) == "two lines"
