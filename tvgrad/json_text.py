"""The one JSON encoding: run.json, results, the `--json` of every command and the tables of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


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
