"""Three English texts that ship inside Python and its packages: two alike, one of another kind.

    statements  "Compound statements" of the language reference, about 50,000 characters (Python, PSF-2.0)
    objects     "Special method names" of the same reference, about 62,000 characters (Python, PSF-2.0)
    licence     the Apache License 2.0, about 11,000 characters (package safetensors, Apache-2.0)

The two chapters are alike: one subject, the same authors, one style. Their wording differs a little from one version of
Python to the next. They are read where they lie, from `pydoc_data` of the standard library.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tvgrad.errors import TvgradError
from tvgrad.wording import near

LICENSED_PACKAGE = "safetensors"


@dataclass(frozen=True)
class TextSource:
    """Where a text comes from, and how it is read.

    Attributes:
        read: returns it.
        about: one line, with the licence.
    """

    read: Callable[[], str]
    about: str


def read_text(name: str) -> str:
    """Read one of the texts.

    Args:
        name: statements, objects or licence.

    Returns:
        The text, with the line breaks that it has.

    Raises:
        TvgradError: there is no text of that name, or its package lacks it.
    """
    if name not in TEXTS:
        raise TvgradError(f"there is no text called {name!r}: choose from {', '.join(TEXTS)}{near(name, TEXTS)}")
    return TEXTS[name].read()


def read_chapter(topic: str) -> str:
    """Read a chapter of Python's language reference.

    Args:
        topic: as `help()` knows it.

    Returns:
        The text.

    Raises:
        TvgradError: this Python does not carry it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise TvgradError(
            "this Python has no pydoc_data, which carries its reference: install the whole standard library"
        ) from None
    if topic not in topics:
        raise TvgradError(f"this Python's reference has no chapter {topic!r}: use Python 3.10 to 3.13")
    return str(topics[topic])


def _licence() -> str:
    files = importlib.metadata.files(LICENSED_PACKAGE) or ()
    for file in files:
        if file.name.startswith("LICENSE"):
            text = Path(str(file.locate())).read_text(encoding="utf-8")
            if "Apache License" in text:
                return text
    raise TvgradError(f"the package {LICENSED_PACKAGE} came without its licence: pip install --force-reinstall it")


TEXTS = {
    "statements": TextSource(partial(read_chapter, "compound"), "Compound statements, Python's reference (PSF-2.0)"),
    "objects": TextSource(partial(read_chapter, "specialnames"), "Special method names, Python's reference (PSF-2.0)"),
    "licence": TextSource(_licence, "the Apache License 2.0 as safetensors carries it (Apache-2.0)"),
}
"""Name -> source."""
