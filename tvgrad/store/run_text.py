"""How a run is shown: one line in a shell, a few facts in a notebook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvgrad.results import facts_html

if TYPE_CHECKING:
    from tvgrad.store.run import Run


class RunText:
    """What `Run` shows of itself."""

    def __repr__(self: Run) -> str:  # type: ignore[misc]
        facts = _facts(self)
        return f"Run({str(self.root)!r}: {', '.join(f'{name} {value}' for name, value in facts.items())})"

    def _repr_html_(self: Run) -> str:  # type: ignore[misc]
        """What a notebook shows; whatever comes from the run is escaped."""
        return facts_html(f"Run in {self.root}", _facts(self))


def _facts(run: Run) -> dict[str, str]:
    rule = run.info.get("rule") or {}
    last = run.points[-1].number if run.points else 0
    return {
        "task": run.name,
        "rule": " ".join(str(rule[name]) for name in ("name", "lr") if name in rule) or "unknown",
        f"{run.unit}s": str(last),
        "parameters": f"{sum(math.prod(one.shape) for one in run.parameters.values()):,}",
    }
