"""Results: frozen dataclasses that become tables and survive a JSON round trip, and the one JSON encoding."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tvgrad.errors import DamagedRun

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of all results: one row of a table."""

    def row(self) -> dict[str, Any]:
        """The fields that are numbers, words or empty, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_frame(self) -> pd.DataFrame:
        """A table of one row."""
        return frame_of([self])


Kind = TypeVar("Kind", bound=Result)


def frame_of(results: Iterable[Result], columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Make a table of results, one row each.

    Args:
        results: results of one kind.
        columns: the columns wanted, also where there is no result.

    Returns:
        The table.
    """
    import pandas as pd  # the JSON encoding is read where nobody waits for tables

    return pd.DataFrame([result.row() for result in results], columns=None if columns is None else list(columns))


def to_json(results: Iterable[Result]) -> str:
    """Write results down, to be read again: floats keep every digit, NaN is null, infinities are words.

    Args:
        results: results of one kind.

    Returns:
        JSON text.
    """
    return json_text([result.row() for result in results], keep_infinities=True)


def from_json(kind: type[Kind], text: str) -> list[Kind]:
    """Read what `to_json` wrote.

    Args:
        kind: the results' class.
        text: JSON text.

    Returns:
        The results.

    Raises:
        DamagedRun: the text is something else.
    """
    floats = {field.name for field in dataclasses.fields(kind) if field.type == "float"}
    try:
        return [
            kind(**{name: _read(value) if name in floats else value for name, value in row.items()})
            for row in json.loads(text)
        ]
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise DamagedRun(f"the text holds no {kind.__name__} ({error}): compute it again") from None


def _read(value: Any) -> float:
    # Runs that were explained by the first versions have {"float": "nan"}.
    return read_number(value["float"] if isinstance(value, dict) else value)


def json_text(value: Any, *, indent: int | None = 1, keep_infinities: bool = False) -> str:
    """Encode a value as JSON that every reader takes: NaN and infinities, which JSON lacks, are null.

    Args:
        value: mappings, lists, tuples, words and numbers, those of numpy and torch too; anything else is written as
            its `str`.
        indent: spaces of each level; None writes one line.
        keep_infinities: write infinities as the words `inf` and `-inf`, which `float` reads: for files that are read
            again.

    Returns:
        The text; finite floats keep every digit.
    """
    return json.dumps(_plain(value, keep_infinities), indent=indent, allow_nan=False)


def read_number(value: Any) -> float:
    """Read a float that `json_text` wrote.

    Args:
        value: a number, null or the word of an infinity.

    Returns:
        The number; null is NaN.
    """
    return math.nan if value is None else float(value)


def _plain(value: Any, words: bool) -> Any:
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy or torch
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value) if words and math.isinf(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part, words) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, words) for part in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)
