"""Space: whether a run fits on the disk, asked before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from tvgrad.errors import TvgradError
from tvgrad.wording import bytes_in_words


def require_space(directory: Path, nbytes: int) -> None:
    """Refuse to start where what will be written does not fit.

    Args:
        directory: where the run goes; it need not exist yet.
        nbytes: estimated bytes of the whole run.

    Raises:
        TvgradError: there is less room than that.
    """
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if nbytes > free:
        raise TvgradError(
            f"the run needs about {bytes_in_words(nbytes)} and {directory} has room for {bytes_in_words(free)}: "
            "free some space, record fewer epochs (--keep last:2) or choose another --out"
        )
