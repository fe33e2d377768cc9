"""Sizes in words."""

from __future__ import annotations


def bytes_in_words(number: float) -> str:
    """A number of bytes with three significant digits and the decimal unit that suits it.

    Args:
        number: bytes, at least 0.

    Returns:
        12 bytes, 4.57 kB, 343 MB or 1.2 TB, say.
    """
    if number < 999.5:
        return f"{number:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.5:
            return f"{number:.3g} {unit}"
    return f"{number / 1000:.3g} TB"
