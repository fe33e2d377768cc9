"""The errors that tvgrad raises on purpose: each is one sentence that says what is wrong and what to do."""

from __future__ import annotations


class TvgradError(Exception):
    """Wrong usage or unreadable input; the command line turns it into exit code 2."""

    exit_code = 2


class UnsupportedModel(TvgradError):
    """The model's loss is not a deterministic function of weights and data, so it has no full-batch gradient."""


class DamagedRun(TvgradError):
    """A run directory, or a file in it, cannot be read as what it claims to be."""


class NotFinite(TvgradError):
    """Numbers of a file are infinities, NaN, or too large to be squared.

    Attributes:
        paths: the files that are known to hold such numbers; there may be more.
    """

    def __init__(self, sentence: str, paths: tuple[str, ...] = ()) -> None:
        """Make the error.

        Args:
            sentence: all of it.
            paths: of the files.
        """
        super().__init__(sentence)
        self.paths = paths


class Unwritable(TvgradError):
    """A file or folder cannot be written.

    Attributes:
        what: which, and why, in words.
        reason: why alone.
        path: which alone.
        remedy: what can be done, in words that can follow "do".
    """

    def __init__(self, sentence: str, *, what: str = "", reason: str = "", path: str = "", remedy: str = "") -> None:
        """Make the error.

        Args:
            sentence: all of it.
            what: which file, and why.
            reason: why.
            path: which.
            remedy: what can be done.
        """
        super().__init__(sentence)
        self.what, self.reason, self.path, self.remedy = what, reason, path, remedy


class DiskFull(Unwritable):
    """There is no room for what is to be written; all finished epochs stay whole."""


class CheckFailed(TvgradError):
    """A check ran and its answer is no; the command line turns it into exit code 1."""

    exit_code = 1
