"""Parts of the specifications of interactive figures: colours, line styles, legends, zoom, and rows as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Spec = dict[str, Any]

COLOURS = 8
"""Colours that the page has; more tasks get colours from the wheel."""
MOST_LEGEND = 8
MOST_EPOCHS = 40
"""Columns of a map: of more epochs, evenly spaced ones are shown."""
_DASHES = ([1, 0], [5, 3], [1, 2], [8, 3, 2, 3], [3, 1])


def some_epochs(numbers: pd.Series, most: int = MOST_EPOCHS) -> set[int]:
    """Choose at most so many of the epochs, evenly spaced, with the first and the last.

    Args:
        numbers: epochs.
        most: so many.

    Returns:
        The epochs to show.
    """
    found = np.unique(numbers.dropna().to_numpy())
    if not len(found):
        return set()
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return {int(found[place]) for place in places}


def chart(spec: Spec) -> Spec:
    """Complete a specification: it takes the width of its place, and the height of what is drawn alone is given.

    Args:
        spec: marks, encodings, data and height.

    Returns:
        The specification.
    """
    return {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}, **spec}


def task_colour(tasks: Sequence[str]) -> Spec:
    """Encode tasks as colours: the page's eight, or the wheel where there are more; a legend names eight at most.

    Args:
        tasks: all that are drawn.

    Returns:
        The encoding.
    """
    wheel = [
        f"var(--c{place})" if len(tasks) <= COLOURS else f"hsl({360 * place // len(tasks)} 55% 52%)"
        for place in range(len(tasks))
    ]
    legend = {
        "orient": "bottom",
        "columns": legend_columns(tasks),
        "labelLimit": 160,
        "symbolOpacity": 1,
        "values": list(tasks[:MOST_LEGEND]),
    }
    return {
        "field": "task",
        "type": "nominal",
        "title": None,
        "sort": None,
        "scale": {"domain": list(tasks), "range": wheel},
        "legend": legend if len(tasks) > 1 else None,
    }


def dash(variants: Sequence[str], tasks: Sequence[str]) -> Spec:
    """Encode what tells runs of one task apart, seeds say, as line styles.

    Args:
        variants: all that are drawn.
        tasks: what the legend of colours names; both together have eight entries at most, and without room for these
            the pointer tells them.

    Returns:
        The encoding.
    """
    named = [variant for variant in variants if variant]  # a task with one run has none, and no entry in the legend
    legend = None
    room = MOST_LEGEND - (min(len(tasks), MOST_LEGEND) if len(tasks) > 1 else 0)
    if 1 < len(named) <= room:
        legend = {"orient": "bottom", "columns": legend_columns(named), "values": named}
    return {
        "field": "variant",
        "type": "nominal",
        "title": None,
        "sort": None,
        "scale": {"domain": list(variants), "range": [list(_DASHES[i % len(_DASHES)]) for i in range(len(variants))]},
        "legend": legend,
    }


def legend_columns(names: Sequence[str]) -> int:
    """Columns of a legend that a narrow screen has room for.

    Args:
        names: what it lists.

    Returns:
        1 to 4.
    """
    return max(1, min(4, 300 // (7 * max(map(len, names)) + 30)))


def legend_selection(name: str) -> Spec:
    """Let clicks in a legend choose what is shown.

    Args:
        name: the field of the legend.

    Returns:
        The parameter `shown`.
    """
    return {"name": "shown", "select": {"type": "point", "fields": [name], "toggle": "true"}, "bind": "legend"}


def zoom() -> list[Spec]:
    """Ctrl and the wheel zoom, so that the page still scrolls; dragging moves; a double click brings all back.

    Returns:
        The parameter.
    """
    mouse = "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!"
    wheel = "wheel![event.ctrlKey || event.metaKey]"
    return [{"name": "zoom", "select": {"type": "interval", "translate": mouse, "zoom": wheel}, "bind": "scales"}]


def hover_number(field: str, title: str) -> Spec:
    """A number as a hover shows it.

    Args:
        field: its field.
        title: its name.

    Returns:
        An entry of a tooltip.
    """
    return {"field": field, "type": "quantitative", "title": title, "format": ".4~g"}


def plain_values(values: Sequence[Any]) -> list[Any]:
    """Numbers of numpy as those of Python.

    Args:
        values: any values.

    Returns:
        The values.
    """
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with as many digits as a hover shows, so that a page stays small.

    Args:
        table: the rows.

    Returns:
        One mapping a row.
    """
    digits = {
        str(name): [float(f"{one:.6g}") if isinstance(one, float) else one for one in plain_values(list(column))]
        for name, column in table.items()
    }
    return [dict(zip(digits, row, strict=True)) for row in zip(*digits.values(), strict=True)]
