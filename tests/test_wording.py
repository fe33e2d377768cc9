"""Sizes in words."""

from __future__ import annotations

import pytest

from tvgrad.wording import bytes_in_words


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
