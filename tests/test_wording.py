"""Numbers, sizes and lists in words."""

from __future__ import annotations

import pytest

from tvgrad.wording import bytes_in_words, counted, listed


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
