"""How a run is shown: one line in a shell, a few facts in a notebook."""

from __future__ import annotations

import math
from pathlib import Path

from tvgrad.results import facts_html
from tvgrad.store.manifest import Manifest
from tvgrad.wording import printable


class RunText:
    """What a run shows of itself.

    Attributes:
        root: its directory.
        manifest: the content of its run.json.
    """

    root: Path
    manifest: Manifest

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
