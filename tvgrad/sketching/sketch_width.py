"""The width of a sketch: which numbers are taken. Imports no torch."""

from __future__ import annotations

from tvgrad.errors import TvgradError

WIDTH = 1 << 16
"""Numbers in a sketch, where nothing else is said."""

LEAST, MOST = 1 << 8, 1 << 24
"""Widths that are taken: from where sums of so many signs follow the normal law, to 134 MB."""


def width_of(width: int) -> int:
    """Check the width of a sketch.

    Args:
        width: what a user asks for.

    Returns:
        The same.

    Raises:
        TvgradError: it is no power of two, or too small or too large.
    """
    if not LEAST <= width <= MOST or width & (width - 1):
        raise TvgradError(f"a sketch of {width} numbers is not possible: give a power of two from {LEAST} to {MOST:,}")
    return width
