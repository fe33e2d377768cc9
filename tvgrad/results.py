"""Results: frozen dataclasses that become tables and survive a JSON round trip, and the one JSON encoding."""

from __future__ import annotations

import dataclasses
import html
import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from tvgrad.errors import DamagedRun
from tvgrad.fields import Check, anything, boolean, integer, list_of, number, parse_json, record, text
from tvgrad.wording import printed, rounded_up

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DRAWS = "tvgrad.report.plots"
"""The module that draws results. It lies above them, so that it is loaded by its name, when a figure is asked for."""


class Plotted:
    """Base of what has a figure."""

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw its figure, as `tvgrad.report.plots` says for each kind of result.

        Args:
            ax: axes to draw on; by default new ones.
            **options: of the figure: `title=False`, and `figure=NAME` where a result has several.

        Returns:
            The axes.

        Raises:
            TvgradError: there is nothing to draw.
        """  # noqa: DOC502 - raised by what draws
        axes: Axes = importlib.import_module(DRAWS).plot(self, ax=ax, **options)
        return axes


class Shown:
    """Base of what people look at in a shell and in notebooks: a short line there, a table here."""

    def to_frame(self) -> pd.DataFrame:
        """Its rows as a table; of what has none, one row of its numbers and words, with how many it has of others."""
        if hasattr(self, "table"):
            table: pd.DataFrame = self.table
            return table
        for name in ("rows", "verdicts", "row"):
            found = getattr(self, name, None)
            if found is not None and not callable(found):
                return frame_of(found if isinstance(found, (tuple, list)) else [found])
        import pandas as pd

        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        many = (tuple, list, Mapping)
        shown = {name: len(value) if isinstance(value, many) else value for name, value in fields.items()}
        return pd.DataFrame([
            {
                name: str(value) if isinstance(value, PurePath) else value
                for name, value in shown.items()
                if isinstance(value, (bool, int, float, str, PurePath))
            }
        ])

    def __repr__(self) -> str:
        return short_line(self, self._facts())

    def _repr_html_(self) -> str:
        """What a notebook shows: names and numbers are escaped."""
        facts = "; ".join(f"{name} {text}" for name, text in self._facts().items())
        table = self.to_frame().dropna(axis="columns", how="all")
        exact: dict[Any, Any] = {name: partial(_cell, name) for name in table if table[name].dtype.kind == "f"}
        drawn = table.to_html(index=False, border=0, max_rows=40, float_format="{:.4g}".format, formatters=exact)
        return f"<p><b>{type(self).__name__}</b> {html.escape(facts)}</p>{drawn}"

    def _facts(self) -> dict[str, str]:
        """Fields that are one number or a few words."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            name: printed(value, name, DIGITS) if isinstance(value, float) else repr(value)
            for name, value in fields.items()
            if isinstance(value, (bool, int, float, str)) and len(str(value)) <= MOST_LETTERS
        }


def _cell(name: object, value: float) -> str:
    return printed(value, name, DIGITS)


DIGITS = 4
"""Significant digits of what people look at; of bounds the last is rounded outward."""

MOST_LETTERS = 60
"""Longer words are left out of a short line."""

LINE = 114
"""Letters of a short line of a row: the facts that no longer fit are left out, and dots stand for them."""


def short_line(shown: object, facts: Mapping[str, object]) -> str:
    """Show an object in a shell.

    Args:
        shown: the object, whose class is named.
        facts: name -> value; floats are given four digits, bounds outward.

    Returns:
        One line.
    """
    told = (
        f"{name}={printed(value, name, DIGITS) if isinstance(value, float) else value}" for name, value in facts.items()
    )
    return f"{type(shown).__name__}({', '.join(told)})"


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Show names and values in a notebook.

    Args:
        title: stands above them.
        facts: name -> value; both are escaped.

    Returns:
        HTML.
    """
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<p><b>{html.escape(title)}</b></p><table>{rows}</table>"


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of all results: one row of a table."""

    _upper = frozenset[str]()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # a dataclass would write every sentence out

    def __repr__(self) -> str:
        told: dict[str, object] = {}
        for name, fact in self._facts().items():
            if len(fact) > MOST_LETTERS:
                continue
            if len(short_line(self, {**told, name: fact})) > LINE:
                return short_line(self, told)[:-1] + ", ...)"
            told[name] = fact
        return short_line(self, told)

    def row(self) -> dict[str, Any]:
        """The fields that are numbers, words or empty, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_frame(self) -> pd.DataFrame:
        """A table of one row."""
        return frame_of([self])

    def _repr_html_(self) -> str:
        """What a notebook shows: one row, its words escaped."""
        return facts_html(type(self).__name__, self._facts(words=str))

    def _facts(self, words: Callable[[object], str] = repr) -> dict[str, str]:
        """What the row holds, by name; upper bounds whose names do not say so are in `_upper`."""
        return {
            name: words(value)
            if not isinstance(value, float)
            else rounded_up(value, DIGITS)
            if name in self._upper
            else printed(value, name, DIGITS)
            for name, value in self.row().items()
            if not (value is None or (isinstance(value, float) and math.isnan(value)))
        }


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


def from_json(kind: type[Kind], content: str) -> list[Kind]:
    """Read what `to_json` wrote.

    Args:
        kind: the results' class.
        content: JSON text.

    Returns:
        The results.

    Raises:
        DamagedRun: the text is something else.
    """
    fields = dataclasses.fields(kind)
    known = {field.name: _CHECKS.get(str(field.type), anything) for field in fields}
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    try:
        return [kind(**row) for row in list_of(record(known, needed, others=False))(parse_json(content), "rows")]
    except (ValueError, TypeError) as error:
        raise DamagedRun(f"the text holds no {kind.__name__} ({error}): compute it again") from None


_CHECKS: dict[str, Check] = {"str": text, "int": integer(-(10**300), 10**300), "float": number, "bool": boolean}


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
    return json.dumps(plain_json(value, keep_infinities), indent=indent, allow_nan=False)


def read_number(value: Any) -> float:
    """Read a float that `json_text` wrote.

    Args:
        value: a number, null or the word of an infinity.

    Returns:
        The number; null is NaN.

    Raises:
        ValueError: it is something else.
    """  # noqa: DOC502 - raised by number
    return number(value, "the value")


def plain_json(value: Any, keep_infinities: bool) -> Any:
    """Turn a value into what JSON can hold, as `json_text` writes it.

    Args:
        value: mappings, lists, tuples, words and numbers.
        keep_infinities: as for `json_text`.

    Returns:
        Dictionaries, lists, words, numbers and None.
    """
    words = keep_infinities
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy or torch
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value) if words and math.isinf(value) else None
    if isinstance(value, Mapping):
        return {_whole(str(key)): plain_json(part, words) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(part, words) for part in value]
    return value if value is None or isinstance(value, int) else _whole(str(value))


def _whole(text: str) -> str:
    """Text that can be written: half a character, of a path that is no UTF-8 say, becomes its code."""
    return text.encode(errors="backslashreplace").decode()
