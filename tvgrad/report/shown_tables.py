"""What a shell and a notebook show of the tables of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.results import Plotted, Shown
from tvgrad.wording import counted, near


class ShownTables(Plotted, Shown):
    """Base of results that hold several tables.

    Attributes:
        tables: name -> table.
    """

    if TYPE_CHECKING:
        tables: dict[str, pd.DataFrame]

    def to_frame(self, name: str = "norms") -> pd.DataFrame:
        """One of the tables.

        Args:
            name: its name.

        Returns:
            The table.

        Raises:
            TvgradError: there is no such table.
        """
        if name not in self.tables:
            raise TvgradError(
                f"there is no table {name!r}: choose among {', '.join(self.tables)}{near(name, self.tables)}"
            )
        return self.tables[name]

    def _facts(self) -> dict[str, str]:
        return {name: counted(len(table), "row") for name, table in self.tables.items() if len(table)}
