"""Report: tables, figures and documents, made of run directories alone.

Every figure is a function of a table, and takes `ax=` and `title=False`:

    tables = tvgrad.report.run_tables([tvgrad.Run.open("runs/digits/low")]).tables
    ax = tvgrad.report.descent_cosines(tables["directions"], ax=axes[0])
"""

from __future__ import annotations

import importlib
from typing import Any

from tvgrad.report.public_names import FIGURE_FUNCTIONS as FIGURE_FUNCTIONS
from tvgrad.report.public_names import WHERE


def __getattr__(name: str) -> Any:
    """Load a function when it is first used: nothing draws before it is asked to."""
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *WHERE]
