"""The standard streams of a command: closed, full, or of a locale without some letter."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO


class _Nowhere(io.TextIOBase):
    """A stream in the place of one that is closed. It has no descriptor, whose number would be a standard stream's."""

    encoding = "utf-8"

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Drop text.

        Args:
            text: any text.

        Returns:
            How many letters it has.
        """
        return len(text)


class _Watched:
    """A standard stream that knows whether it could be written.

    Nothing fails for the error stream, whose disk may be full, say: what it cannot take is lost.
    """

    def __init__(self, stream: TextIO, lenient: bool) -> None:
        self.failed: OSError | None = None
        self._stream, self._lenient = stream, lenient

    def write(self, text: str) -> int:
        """Write text.

        Args:
            text: any text.

        Returns:
            How many letters it has.
        """
        with self._watching():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        with self._watching():
            self._stream.flush()

    @contextlib.contextmanager
    def _watching(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self.failed = error
            _silence(self._stream)
            if not self._lenient:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_streams_safe() -> None:
    """Let a command write whatever it has to say.

    Where a standard stream is closed, Python has none: the command is done all the same, and says nothing. Under a
    locale without some letter, its code is written in its place. Where the error stream cannot be written, what would
    go there is lost.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _Nowhere())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):  # a stream that cannot be flushed stays as it is
                stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, _Watched):
        sys.stdout = _Watched(sys.stdout, lenient=False)  # type: ignore[assignment]
    if not isinstance(sys.stderr, _Watched):
        sys.stderr = _Watched(sys.stderr, lenient=True)  # type: ignore[assignment]


def why_output_fails() -> OSError | None:
    """Flush standard output; one that takes nothing is left alone from then on, also by the interpreter as it ends.

    Returns:
        What the system said of it; None where all is well.
    """
    with contextlib.suppress(OSError, ValueError):  # it may be closed
        sys.stdout.flush()
    return getattr(sys.stdout, "failed", None)


def _silence(stream: TextIO) -> None:
    """Let a stream that cannot be written go nowhere: the interpreter flushes it once more, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
