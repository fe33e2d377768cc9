"""What users pass for a run."""

from __future__ import annotations

from tvgrad.errors import TvgradError
from tvgrad.store.run import Run


def require_run(given: object) -> None:
    """Refuse what is no run.

    Args:
        given: what was passed for one.

    Raises:
        TvgradError: it is something else.
    """
    if not isinstance(given, Run):
        what = repr(str(given)) if hasattr(given, "__fspath__") or isinstance(given, str) else type(given).__name__
        raise TvgradError(f"{what} is no run: pass tvgrad.Run(directory)")
