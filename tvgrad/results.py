"""Results: frozen dataclasses that become tables and survive a JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, TypeVar

import pandas as pd

from tvgrad.errors import DamagedRun
from tvgrad.json_text import json_text, read_number


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
