"""How a run is shown: one line in a shell, a few facts in a notebook."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tvgrad.results import Plotted, facts_html
from tvgrad.store.manifest import Manifest
from tvgrad.wording import printable

if TYPE_CHECKING:
    import pandas as pd  # imported where a table is made


class RunText(Plotted):
    """What a run shows of itself.

    Attributes:
        root: its directory.
        manifest: the content of its run.json.
    """

    root: Path
    manifest: Manifest

    def to_frame(self) -> pd.DataFrame:
        """Loss, accuracy, seconds and whatever else was recorded: one row a point."""
        import pandas as pd

        return pd.DataFrame([{self.manifest.unit: point.number, **point.metrics} for point in self.manifest.points])

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"Run({str(self.root)!r}: {facts})"

    def _repr_html_(self) -> str:
        """What a notebook shows; whatever comes from the run is escaped."""
        return facts_html(f"Run in {self.root}", self._facts())

    def _facts(self) -> dict[str, str]:
        info, points = self.manifest.info, self.manifest.points
        rule = info.get("rule") or {}
        return {
            "task": printable(str(info.get("name") or self.root.name)),
            "rule": " ".join(str(rule[name]) for name in ("name", "lr") if name in rule) or "unknown",
            f"{self.manifest.unit}s": str(points[-1].number if points else 0),
            "parameters": f"{sum(math.prod(one.shape) for one in self.manifest.parameters.values()):,}",
        }
