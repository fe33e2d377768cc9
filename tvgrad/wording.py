"""Numbers, sizes and lists in words."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs.

    Args:
        number: how many.
        noun: in the singular; its plural takes an s.

    Returns:
        The words.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def near(name: str, known: Iterable[str]) -> str:
    """What to add to a list of choices where one of them was probably meant.

    Args:
        name: what was given.
        known: the choices.

    Returns:
        A clause that begins with a semicolon; empty where no choice resembles the name.
    """
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def printable(text: str) -> str:
    """Text on one line that moves no cursor, colours nothing and changes no reading direction.

    Args:
        text: any text, of a stranger's run say.

    Returns:
        The same with escapes, as Python writes them, in the place of what is no printed character.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def without_formula(cell: str) -> str:
    """Keep a spreadsheet from computing a cell of a csv file.

    Args:
        cell: any text.

    Returns:
        The text; behind an apostrophe where a spreadsheet would take it for a formula.
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def shortened(names: Iterable[str], most: int) -> dict[str, str]:
    """Cut long names in the middle, for pictures, so that different names stay different.

    Args:
        names: the names.
        most: characters that are kept.

    Returns:
        Name -> what to show.
    """
    shown: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        half = most // 2
        short = name if len(name) <= most else f"{name[: most - half - 1]}…{name[-half:]}"
        unique, number = short, 2
        while unique in taken:
            unique, number = f"{short} ({number})", number + 1
        taken.add(unique)
        shown[name] = unique
    return shown


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


def percent(share: float) -> str:
    """A share or a relative deviation with the digits that it deserves.

    Args:
        share: a number of at least 0; 1 is the whole.

    Returns:
        79 %, 0.3 %, 2e-07 or 1,440 times (from ten wholes on), say; "not finite" where it is not.
    """
    if not math.isfinite(share):
        return "not finite"
    if share >= 10:
        return f"{share:,.0f} times"
    return f"{share:.2g}" if share < 5e-4 else f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def rounded_up(bound: float, digits: int = 3) -> str:
    """An upper bound in decimal digits, never below the number itself.

    Args:
        bound: the bound.
        digits: significant digits.

    Returns:
        The shortest text of so many digits that is at least `bound`.
    """
    return _rounded(bound, digits, 1)


def rounded_down(bound: float, digits: int = 3) -> str:
    """A lower bound in decimal digits, never above the number itself.

    Args:
        bound: the bound.
        digits: significant digits.

    Returns:
        The shortest text of so many digits that is at most `bound`.
    """
    return _rounded(bound, digits, -1)


def _rounded(bound: float, digits: int, sign: int) -> str:
    text = f"{bound:.{digits}g}"
    if not math.isfinite(bound) or sign * (Decimal(text) - Decimal(bound)) >= 0:
        return text
    last = Decimal(1).scaleb(Decimal(bound).adjusted() - digits + 1)
    moved = Decimal(text) + sign * last
    # Among the subnormals a float may not hold the digits.
    return f"{moved:.{digits}g}" if abs(bound) < sys.float_info.min else f"{float(moved):.{digits}g}"


UPPER = (
    "bound",
    "error_bound",
    "from_start",
    "closed_form_bound",
    "upper",
    "upper_bound",
    "coefficient_bound",
    "radius",
)
"""Columns and fields that hold upper bounds."""

OUTWARD: dict[str, Callable[[float, int], str]] = {
    **dict.fromkeys(UPPER, rounded_up),
    **dict.fromkeys(("lower_bound", "lower"), rounded_down),
}
"""Column or field that holds bounds -> how its numbers are rounded wherever people read them.

No rounding may make a bound a statement that was not proved: upper bounds go up, lower bounds down.
"""


def printed(value: float, column: object, digits: int) -> str:
    """Print a number of a column; bounds are rounded outward.

    Args:
        value: the number.
        column: its column's name.
        digits: significant digits.

    Returns:
        Its text.
    """
    outward = OUTWARD.get(str(column))
    return f"{value:.{digits}g}" if outward is None else outward(value, digits)


def loading_error(error: BaseException, most: int = 10) -> str:
    """What `load_state_dict` found wrong, with ten names in the place of thousands.

    Args:
        error: what it raised.
        most: so many names at most.

    Returns:
        Half a sentence; any other error's own words.
    """
    text = str(error)
    if "loading state_dict" not in text:
        return " ".join(text.split())
    kinds = {kind: re.search(rf"{kind} key\(s\) in state_dict: (.*)", text) for kind in ("Missing", "Unexpected")}
    found = {
        "missing": re.findall(r'"([^"]+)"', kinds["Missing"][1]) if kinds["Missing"] else [],
        "unexpected": re.findall(r'"([^"]+)"', kinds["Unexpected"][1]) if kinds["Unexpected"] else [],
        "of another shape": re.findall(r"size mismatch for ([^:]+):", text),
    }
    found = {kind: names for kind, names in found.items() if names}
    if not found:
        return " ".join(text.split())
    share = most // len(found)
    return "the state_dict does not fit: " + "; ".join(f"{kind} {listed(n, share)}" for kind, n in found.items())


def ranges_in_words(numbers: Iterable[int]) -> str:
    """Put whole numbers into words.

    Args:
        numbers: they, in any order.

    Returns:
        `0-3, 7`, say.
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in found)
