"""The script that draws interactive figures: Vega, Vega-Lite and vega-embed, as the package vl-convert carries them."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from functools import cache

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.user_cache import cache_folder

VEGA_LITE = "6.4"
"""The version that the specifications of `tvgrad.report.charts` are written for."""


@cache
def vega_script() -> str:
    """Bundle the libraries; that takes seconds, so the user's cache folder keeps the bundle of each version.

    Returns:
        A module that sets `window.vegaEmbed` and loads nothing.
    """
    version = importlib.metadata.version("vl-convert-python")
    path = cache_folder() / f"vega-lite-{VEGA_LITE}-vl-convert-{version}.js"
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    import vl_convert  # a library of 84 MB, for which a page from the cache does not wait

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    with suppress(OSError, TvgradError):  # a cache that cannot be written only costs the time to bundle again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, script)
    return script
