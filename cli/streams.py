"""The standard streams of a command: closed, full, or of a locale without some letter."""

from __future__ import annotations

import contextlib
import io
import os
import sys
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


class _Lenient:
    """The error stream, whose disk may be full: what it cannot take is lost, and nothing fails for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or lose it.

        Args:
            text: any text.

        Returns:
            How many letters it has.
        """
        try:
            return self._stream.write(text)
        except OSError:
            _silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        try:
            self._stream.flush()
        except OSError:
            _silence(self._stream)

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
    if not isinstance(sys.stderr, _Lenient):
        sys.stderr = _Lenient(sys.stderr)  # type: ignore[assignment]


def why_output_fails() -> OSError | None:
    """Flush standard output; one that takes nothing is left alone from then on, also by the interpreter as it ends.

    Returns:
        What the system says of it; None where all is well.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        return error
    except ValueError:  # it was closed
        pass
    return None


def _silence(stream: TextIO) -> None:
    """Let a stream that cannot be written go nowhere: the interpreter flushes it once more, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
