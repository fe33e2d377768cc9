"""check_points: the list of points that a command line gives. Imports no torch."""

from __future__ import annotations

from tvgrad.errors import TvgradError


def check_points(text: str) -> list[str]:
    """Split a list of points, before there is a run.

    Args:
        text: numbers, `last` or `all`, separated by commas.

    Returns:
        Its parts.

    Raises:
        TvgradError: it is not understood.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() or part in {"last", "all"} for part in parts):
        raise TvgradError(f"{text!r} is no list of points: give numbers, last or all, as in 0,1,last")
    return parts
