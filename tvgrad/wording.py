"""Numbers, sizes and lists in words."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs.

    Args:
        number: how many.
        noun: in the singular; its plural takes an s.

    Returns:
        The words.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[object], most: int | None = None) -> str:
    """A list in a sentence: `a, b and c`, or `a, b and 4 more` where there are more than may be named.

    Args:
        words: what is listed.
        most: so many are named; None names all.

    Returns:
        The words; empty where there are none.
    """
    names = [str(word) for word in words]
    if most is not None and len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


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
