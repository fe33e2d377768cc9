"""The folder in which tvgrad keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Tell where pretrained encoders and products of earlier reports are kept.

    Returns:
        `$TVGRAD_CACHE`, or `tvgrad` in the user's cache folder.
    """
    given = os.environ.get("TVGRAD_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tvgrad"
