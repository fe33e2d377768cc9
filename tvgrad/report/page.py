"""The HTML report: one self-contained file with verdicts, numbers, curves, figures and all tables.

Scripts are embedded and packed: the tables' from the package itables (DataTables), the figures' from vl-convert
(Vega-Lite). Nothing is loaded from elsewhere, and without scripts the words and the tables of whole models are still
there.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tvgrad.report.empty_columns import missing_results
from tvgrad.report.first_screen import FirstScreen
from tvgrad.report.headings import in_words, with_symbols
from tvgrad.report.page_figures import PageFigure, curve_figures
from tvgrad.report.page_tables import json_element, page_table, plain_table
from tvgrad.report.vega import vega_script

_PAGES = Environment(loader=PackageLoader("tvgrad.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def html_page(
    tables: Mapping[str, pd.DataFrame],
    figures: Sequence[tuple[Path, str]],
    summary: Sequence[str],
    title: str,
    lead: str,
    refused: Mapping[str, str] | None = None,
    *,
    screen: FirstScreen | None = None,
    charts: Sequence[PageFigure] = (),
    scripts: Collection[str] = (),
) -> str:
    """Render a report as one HTML file that needs nothing beside it.

    Whatever comes from a run (names, reasons) is escaped.

    Args:
        tables: name -> table.
        figures: SVG files and their captions, folded away as the figures for papers.
        summary: sentences for the top.
        title: the page's title.
        lead: one line under it.
        refused: run -> why it cannot be explained.
        screen: badges, tiles, run card and curves; of checkpoints there are none.
        charts: the interactive figures.
        scripts: names of the runs that were traced from scripts.

    Returns:
        The page.
    """
    screen = screen or FirstScreen()
    # Pictures of one run each follow each other under one caption.
    drawn = [
        {"caption": with_symbols(caption), "pictures": [_picture(path) for path, _ in same]}
        for caption, same in groupby(figures, key=lambda figure: figure[1])
    ]
    curves = curve_figures(screen)
    return _PAGES.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        summary=[in_words(sentence) for sentence in summary],
        screen=screen,
        apart=plain_table(screen.apart) if len(screen.apart) else None,
        last=plain_table(_shortened(screen)) if len(screen.last) else None,
        curves=[_chart(figure) for figure in curves],
        charts=[_chart(figure) for figure in charts],
        specs=json_element({figure.name: figure.spec for figure in (*curves, *charts)}),
        figures=drawn,
        tables=[page_table(name, table) for name, table in tables.items() if len(table)],
        missing=[in_words(sentence) for sentence in missing_results(tables, refused, scripts)],
        style=Markup(_asset("page.css")),  # noqa: S704 - the package's own
        table_style=Markup(_of_itables("dt_bundle.css")),  # noqa: S704 - another package's own
        script=Markup(_asset("page.js")),  # noqa: S704
        table_script=_packed(_of_itables("dt_bundle.js")),
        chart_script=_packed(vega_script()),
    )


def _shortened(screen: FirstScreen) -> pd.DataFrame:
    names = [screen.labels[run].short if run in screen.labels else run for run in screen.last["run"].map(str)]
    return screen.last.assign(run=names)


def _chart(figure: PageFigure) -> dict[str, Any]:
    return {"name": figure.name, "title": figure.title, "caption": with_symbols(figure.caption)}


def _picture(path: Path) -> dict[str, str]:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"alt": path.stem.replace("_", " "), "data": data}


@cache
def _asset(name: str) -> str:
    return (files("tvgrad.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _of_itables(name: str) -> str:
    """A file of the bundle that itables carries for pages without a network."""
    return (files("itables") / "html" / name).read_text(encoding="utf-8")


@cache
def _packed(script: str) -> str:
    """A script as base64 of gzip, a third of its size; the page unpacks it. The same script makes the same bytes."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode("ascii")
