"""JSON of a bounded size, and checks of what it holds.

The checks are small functions that return a value as it is to be used, or say what is wrong where.

A check is called with a value and with the place it stands at, `points[3].steps` say, and raises a ValueError whose
words begin with that place. (A library for this would be loaded into the processes of other people's scripts, with
whatever version of it they need themselves.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any, str], Any]

MOST_PARTS = 4_000_000
"""Commas, colons and brackets of a JSON text that is read: each part takes up to a hundred bytes of memory."""

MOST_DIGITS = 300
"""Digits of the longest whole number in a JSON text that is read: a float can hold it."""

LONGEST = 100_000
"""Characters of the longest text."""

LARGEST = 2**63 - 1
"""What a 64-bit number holds."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON of a bounded number of parts, with bounded numbers and text that can be encoded.

    Args:
        text: the text.
        pairs: makes an object of its names and values; by default a dictionary.

    Returns:
        Its content.

    Raises:
        ValueError: it is no JSON, or more than is read.
    """
    if sum(map(text.count, ",:[{")) > MOST_PARTS:
        raise ValueError(f"it has more than {MOST_PARTS:,} parts")
    try:
        content = json.loads(text, parse_int=_bounded_integer, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("its parts are nested too deeply") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character (a lone surrogate)") from None
    return content


def _bounded_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def refuse(place: str, value: Any, wanted: str) -> ValueError:
    """Make the error of a value that is not what it should be.

    Args:
        place: where it stands.
        value: what stands there.
        wanted: what should, with an article.

    Returns:
        The error, on one line.
    """
    shown = " ".join(ascii(value).split())
    return ValueError(f"{place or 'it'} is {shown if len(shown) <= 60 else shown[:57] + '...'} and not {wanted}")


def anything(value: Any, place: str) -> Any:  # noqa: ARG001
    """Any value."""
    return value


def text(value: Any, place: str) -> str:
    """Words of a bounded length."""
    if not isinstance(value, str):
        raise refuse(place, value, "text")
    if len(value) > LONGEST:
        raise ValueError(f"{place} has {len(value):,} characters, and at most {LONGEST:,} are read")
    return str(value)


def boolean(value: Any, place: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise refuse(place, value, "true or false")
    return value


def number(value: Any, place: str) -> float:
    """A number; null is NaN, and infinities are words."""
    if value is None:
        return math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)  # of at most MOST_DIGITS digits
    # Runs that were explained by the first versions have {"float": "nan"}.
    word = value.get("float") if isinstance(value, dict) else value
    if isinstance(word, str) and word in {"inf", "-inf", "nan"}:
        return float(word)
    raise refuse(place, value, "a number")


def integer(low: int = 0, high: int = LARGEST) -> Check:
    """A whole number in a range.

    Args:
        low: the smallest.
        high: the largest.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            wanted = f"a whole number of {low} or more" if high == LARGEST else f"a whole number from {low} to {high}"
            raise refuse(place, value, wanted)
        return int(value)

    return check


def one_of(values: Collection[str]) -> Check:
    """One of some words.

    Args:
        values: the words.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or value not in values:
            raise refuse(place, value, f"one of {', '.join(sorted(values))}")
        return value

    return check


def optional(inner: Check) -> Check:
    """Something or null.

    Args:
        inner: checks what is not null.

    Returns:
        The check.
    """
    return lambda value, place: None if value is None else inner(value, place)


def either(first: Check, second: Check) -> Check:
    """One thing or another; the second says what is wrong.

    Args:
        first: is tried first.
        second: is tried where the first refuses.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> Any:
        try:
            return first(value, place)
        except ValueError:
            return second(value, place)

    return check


def list_of(inner: Check, most: int | None = None) -> Check:
    """A list.

    Args:
        inner: checks each of its values.
        most: the largest length.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise refuse(place, value, "a list")
        if most is not None and len(value) > most:
            raise ValueError(f"{place} has {len(value):,} values, and at most {most:,} are read")
        return [inner(one, f"{place}[{index}]") for index, one in enumerate(value)]

    return check


def mapping_of(inner: Check) -> Check:
    """An object whose names are free.

    Args:
        inner: checks each of its values.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise refuse(place, value, "an object with names")
        return {text(name, f"a name in {place}"): inner(one, f"{place}.{name[:80]}") for name, one in value.items()}

    return check


def record(known: Mapping[str, Check], needed: Collection[str] = (), others: bool = True) -> Check:
    """An object with known names.

    Args:
        known: name -> check of what stands there.
        needed: names that must be there.
        others: whether other names are kept as they are; otherwise they are refused.

    Returns:
        The check.
    """

    def check(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise refuse(place, value, "an object with names")
        for name in needed:
            if name not in value:
                raise ValueError(f"{place or 'it'} has no {name}")
        strange = next((name for name in value if name not in known), None)
        if strange is not None and not others:
            raise ValueError(f"{place or 'it'} has a name {ascii(strange)[:80]} that nobody knows")
        inside = f"{place}." if place else ""
        return {name: known.get(name, anything)(one, f"{inside}{name}") for name, one in value.items()}

    return check
