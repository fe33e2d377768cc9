"""Manifest: what run.json says of a run and its files, format version 1.

An epoch exists when run.json lists it. Everything that run.json lists was whole on the disk before run.json was
replaced, so that a reader needs no lock and a killed writer loses nothing that was listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.atomic import sha256_of
from tvgrad.files.checksums import checksum_of
from tvgrad.files.regular import reason_of, why_irregular
from tvgrad.files.tensors import shard_paths
from tvgrad.results import json_text
from tvgrad.store.journal import read_content
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients
from tvgrad.store.layout import CONTENTS, MANIFEST
from tvgrad.store.schema import check_manifest

FORMAT = "tvgrad run"
VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of a run, or an index with its shards.

    Attributes:
        path: what is opened, relative to the run directory.
        parts: (relative path, sha256, bytes) of every file on the disk that belongs to it.
    """

    path: str
    parts: tuple[tuple[str, str, int], ...]

    @classmethod
    def of(cls, root: Path, path: Path, checksums: Mapping[Path, str] | None = None) -> FileEntry:
        """Describe a file that has just been written.

        Args:
            root: the run directory.
            path: the file, or the index of its shards.
            checksums: file -> sha256, where the writer has taken them already.

        Returns:
            Its entry, with checksums.
        """
        files = (
            [path]
            if path.suffix != ".json" or not path.name.endswith(".index.json")
            else [path, *shard_paths(path, root)]
        )
        known = checksums or {}
        parts = tuple(
            (file.relative_to(root).as_posix(), known.get(file) or sha256_of(file, root), file.stat().st_size)
            for file in files
        )
        return cls(path.relative_to(root).as_posix(), parts)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(size for _, _, size in self.parts)

    def problems(self, root: Path, checksums: bool = True) -> list[str]:
        """Compare the files with what the run says of them.

        Args:
            root: the run directory.
            checksums: read every byte; otherwise sizes only.

        Returns:
            One sentence a problem; empty when all is well.
        """
        found = []
        for relative, digest, size in self.parts:
            file = root / relative
            try:
                why = why_irregular(file, root)
                if why is not None:
                    found.append(f"{relative} cannot be read ({why})")
                elif not file.is_file():
                    found.append(f"{relative} is missing")
                elif file.stat().st_size != size:
                    found.append(f"{relative} has {file.stat().st_size} bytes instead of {size}")
                elif checksums and checksum_of(file, root) != digest:
                    found.append(f"{relative} does not have the checksum it was written with")
            except OSError as error:
                found.append(f"{relative} cannot be read ({reason_of(error)})")
        return found

    def unlisted(self, root: Path) -> list[str]:
        """Find shards that an index names and that are not among the parts, so that no checksum covers them.

        Args:
            root: the run directory.

        Returns:
            One sentence a shard; nothing where the index itself cannot be read, which `problems` says.
        """
        if not self.path.endswith(".index.json"):
            return []
        try:
            shards = shard_paths(root / self.path, root)
        except DamagedRun:
            return []
        listed = {relative for relative, _, _ in self.parts}
        names = [shard.relative_to(root).as_posix() for shard in shards]
        return [f"{name} is in {self.path} and not among the run's files" for name in names if name not in listed]


@dataclass(frozen=True)
class Parameter:
    """Shape, storage type and group of one trainable parameter."""

    shape: tuple[int, ...]
    dtype: str
    group: str


@dataclass(frozen=True)
class Point:
    """One recorded moment of a fine-tuning.

    Attributes:
        number: epochs (or optimizer steps, when recorded by step) done.
        steps: optimizer steps done.
        files: what was recorded -> its file; a dropped point keeps its metrics and loses its files.
        metrics: name -> number.
    """

    number: int
    steps: int
    files: dict[str, FileEntry]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """The content of run.json.

    Attributes:
        info: how the run was made: recipe, rule, dtype, device, seed, versions, data fingerprint.
        unit: what the numbers of points count, `epoch` or `step`.
        parameters: name -> shape, dtype, group, in the model's order.
        tied: alias -> name under which a tied parameter is counted.
        points: finished epochs, in order.
        static: frozen parameters and the buffers at the start.
        state: what a resume needs, for the last point.
        finished: whether the training came to its planned end.
        journal: the name of the journal that follows this run.json, whose records `read_manifest` adds; None where it
            lists all.
    """

    info: dict[str, Any]
    unit: str
    parameters: dict[str, Parameter]
    tied: dict[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    static: FileEntry | None = None
    state: FileEntry | None = None
    finished: bool = False
    journal: str | None = None

    @cached_property
    def by_number(self) -> Mapping[int, Point]:
        """The points by their numbers: whoever walks through a long run asks for each."""
        return {point.number: point for point in reversed(self.points)}

    @property
    def sketch_width(self) -> int | None:
        """Numbers in each sketch of a gradient; None where the run keeps gradients whole."""
        return KeptGradients(self.info.get("keep_gradients") or ALL_GRADIENTS).width

    def to_json(self) -> str:
        """Render run.json; NaN is null and infinities are words, which JSON of other languages can read."""
        return json_text({"format": FORMAT, "version": VERSION, **asdict(self)}, keep_infinities=True)

    def stem(self, number: int) -> str:
        """Name a point's files.

        Args:
            number: epochs or steps done.

        Returns:
            `epoch-0003`, or `step-000010`.
        """
        return f"step-{number:06d}" if self.unit == "step" else f"epoch-{number:04d}"

    def listed(self) -> set[str]:
        """Relative paths of every file that belongs to the run, besides run.json and derived tables."""
        entries = [entry for point in self.points for entry in point.files.values()]
        entries += [entry for entry in (self.static, self.state) if entry is not None]
        return {relative for entry in entries for relative, _, _ in entry.parts}


def read_manifest(root: Path) -> Manifest:
    """Read and check run.json.

    Args:
        root: the run directory.

    Returns:
        Its content.

    Raises:
        TvgradError: there is no run here, or its format is not version 1.
        DamagedRun: run.json cannot be read, or names files outside the run directory.
    """  # noqa: DOC501 - the ValueError does not leave
    path = root / MANIFEST
    try:
        content = read_content(root)
    except (FileNotFoundError, NotADirectoryError):
        raise TvgradError(f"{root} is not a run directory: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRun(f"{path} cannot be read ({reason_of(error)}): restore it or trace the run again") from None
    except ValueError as error:
        raise _no_description(path, error) from None
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_description(path, error) from None
    if version != VERSION:
        raise TvgradError(
            f"{root} has format version {version!r} and this tvgrad reads version {VERSION}: "
            "use the tvgrad that wrote it"
        )
    try:
        return _manifest(check_manifest(content))
    except ValueError as error:
        raise DamagedRun(f"{path} is damaged ({error}): restore it or trace the run again") from None


def _no_description(path: Path, error: BaseException) -> DamagedRun:
    return DamagedRun(f"{path} is not a run's description ({reason_of(error)}): restore it or trace the run again")


def _manifest(content: dict[str, Any]) -> Manifest:
    return Manifest(
        info=content["info"],
        unit=content["unit"],
        parameters={
            name: Parameter(one["shape"], one["dtype"], one["group"]) for name, one in content["parameters"].items()
        },
        tied=content["tied"],
        points=tuple(
            Point(
                number=point["number"],
                steps=point["steps"],
                files={kind: _entry(entry) for kind, entry in point["files"].items() if kind in CONTENTS},
                metrics=point["metrics"],
            )
            for point in content["points"]
        ),
        static=None if content["static"] is None else _entry(content["static"]),
        state=None if content["state"] is None else _entry(content["state"]),
        finished=content["finished"],
    )


def _entry(content: dict[str, Any]) -> FileEntry:
    return FileEntry(content["path"], tuple(content["parts"]))
