"""RunWriter: adds points to a run directory so that a crash at any instant leaves every listed point whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.regular import link_below, read_json, reason_of
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import MAX_SHARD_BYTES, Stream, write_checked_tensors, write_tensors
from tvgrad.store.gradient_sketches import sketch_file
from tvgrad.store.keep_policy import KEEP_ALL, KeepPolicy
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.layout import CONTENTS, JOURNAL, files_in, is_own, require_free, require_no_links
from tvgrad.store.ledger import Ledger, csv_text
from tvgrad.store.lock import WriterLock
from tvgrad.store.manifest import FileEntry, Manifest, Point, read_manifest
from tvgrad.store.overwrite import remove_run
from tvgrad.store.refusals import RESUME, in_words
from tvgrad.store.schema import check_facts, check_state
from tvgrad.vectors.parameters import Weights

Content = Weights | Stream | FileEntry
"""Tensors to write, what makes them when they are written, or the entry of a file that is written."""

DROPPABLE = ("weights", "gradient", "epoch_gradient")
STEP_COLUMNS = ("step", "lr", "batch_size", "clip_factor", "loss_scale", "skipped")


class RunWriter:
    """The one process that writes to a run directory.

    Attributes:
        root: the run directory.
        again: what the user can do once there is room, where there was none.
    """

    def __init__(self, root: Path, manifest: Manifest, lock: WriterLock, max_shard_bytes: int) -> None:
        """Hold a locked directory; use `create` or `resume`.

        Args:
            root: the run directory.
            manifest: what run.json says, or will say.
            lock: the lock, already taken.
            max_shard_bytes: largest number of tensor bytes in one file.
        """
        self.root = root
        self.again = RESUME
        self._ledger = Ledger(root, manifest)
        self._lock = lock
        self._with_tensors = [point.number for point in manifest.points if _has_tensors(point)]
        self._unclean = False
        self._sketch_width = manifest.sketch_width
        self._max_shard_bytes = max_shard_bytes

    @property
    def manifest(self) -> Manifest:
        """What the run lists."""
        return self._ledger.manifest

    @classmethod
    def create(
        cls,
        root: Path,
        manifest: Manifest,
        static: Weights,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        overwrite: bool = False,
    ) -> RunWriter:
        """Start a new run directory.

        Args:
            root: the directory; it must not exist, be empty, or hold only what a run killed at birth leaves behind.
            manifest: the run's description, without points.
            static: frozen parameters and buffers at the start.
            max_shard_bytes: larger tensor files are split.
            overwrite: delete a run that is there, now that its successor begins.

        Returns:
            A writer that holds the lock.

        Raises:
            TvgradError: the directory holds a run or other files, or cannot be made.
        """
        check_facts(manifest.info)
        if overwrite:
            remove_run(root)
        require_free(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TvgradError(f"{root} cannot be made a run directory: {error.strerror}") from None
        writer = cls(root, manifest, WriterLock(root), max_shard_bytes)
        try:
            require_free(root)  # again: another process may have started a run before we had the lock
            with in_words(root):
                (root / JOURNAL).unlink(missing_ok=True)
                writer._sweep()
                entry = None
                if static:
                    written = write_checked_tensors(static, root / "static.safetensors", max_shard_bytes)
                    entry = FileEntry.of(root, *written)
                writer._publish(static=entry)
        except BaseException:
            writer.close()
            raise
        return writer

    @classmethod
    def resume(cls, root: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> RunWriter:
        """Go on with a run directory: take its lock and sweep what a killed writer left behind.

        Args:
            root: the run directory.
            max_shard_bytes: larger tensor files are split.

        Returns:
            A writer that holds the lock.

        Raises:
            TvgradError: there is no run, another process writes to it, or its format is another version.
            DamagedRun: the last point's files are not what they were.
        """
        read_manifest(root)  # before a lock file is made in a directory that is no run
        require_no_links(root)
        lock = WriterLock(root)
        try:
            manifest = read_manifest(root)
            writer = cls(root, manifest, lock, max_shard_bytes)
            with in_words(root):
                writer._sweep()
            needed = [manifest.static, manifest.state]
            needed += [point.files.get("weights") for point in (*manifest.points[:1], *manifest.points[-1:])]
            for entry in needed:
                for problem in entry.problems(root) if entry is not None else []:
                    raise DamagedRun(f"{root} cannot be resumed: {problem}; restore it or trace the run again")
        except BaseException:
            lock.close()
            raise
        return writer

    def add(
        self,
        number: int,
        steps: int,
        tensors: Mapping[str, Content],
        metrics: Mapping[str, float],
        *,
        step_rows: Sequence[Mapping[str, Any]] = (),
        state: tuple[Weights, dict[str, Any]] | None = None,
        keep: KeepPolicy = KEEP_ALL,
    ) -> None:
        """Record a point. It exists, whole, when this returns, and not at all if the process dies before.

        Args:
            number: epochs (or steps) done.
            steps: optimizer steps done.
            tensors: weights, gradient, buffers, epoch_gradient or batches -> its tensors.
            metrics: name -> number.
            step_rows: one mapping a step since the last point.
            state: tensors and plain values that a resume needs.
            keep: which points keep their tensors.

        Raises:
            DiskFull: there is no room; all earlier points are whole.
        """
        self._lock.require_held()
        stem = self._ledger.stem(number)
        before = self._ledger.state
        with in_words(self.root, self.again):
            if self._unclean:
                self._ledger.fold()
                self._sweep()
            self._unclean = True
            files = dict(self._written(kind, stem, content) for kind, content in tensors.items() if content)
            if step_rows:
                path = self._folder("steps") / f"{stem}.csv"
                write_text_atomically(path, csv_text(step_rows, STEP_COLUMNS))
                files["steps"] = FileEntry.of(self.root, path)
            saved = None if state is None else self._state(stem, *state)
            point = Point(number, steps, files, {name: float(value) for name, value in metrics.items()})
            dropped = self._dropped(point, keep)
            self._publish([*map(_without_tensors, dropped), point], state=saved, finished=False)
            self._unclean = False
            gone = [entry for one in dropped for kind, entry in one.files.items() if kind in DROPPABLE]
            self._remove([*gone, *([before] if before is not None else [])])

    def amend(self, number: int, tensors: Mapping[str, Weights], metrics: Mapping[str, float]) -> None:
        """Add to a recorded point what was computed later.

        Args:
            number: the point's epochs (or steps).
            tensors: gradient, say -> name -> CPU tensor.
            metrics: name -> number.

        Raises:
            TvgradError: there is no such point.
            DiskFull: there is no room; the point is as it was.
        """
        point = self._ledger.find(number)
        if point is None:
            raise TvgradError(f"{self.root} has no {self._ledger.unit} {number} to add to")
        stem = self._ledger.stem(number)
        with in_words(self.root, self.again):
            files = dict(self._written(kind, stem, content) for kind, content in tensors.items())
        values = {name: float(value) for name, value in metrics.items()}
        self._publish([replace(point, files={**point.files, **files}, metrics={**point.metrics, **values})])

    def update_info(self, **facts: Any) -> None:
        """Add facts to the run's description.

        Args:
            facts: plain values.

        Raises:
            TvgradError: a fact is not of the type that tvgrad keeps under its name.
        """  # noqa: DOC502 - raised by check_facts
        check_facts(facts)
        self._publish(info=facts)

    def extend_info(self, name: str, more: list[Any] | dict[str, Any]) -> None:
        """Add to a list or a mapping of the run's description, which may have grown long.

        Args:
            name: of the fact.
            more: what is added.

        Raises:
            TvgradError: it is not of the type that tvgrad keeps under this name.
        """  # noqa: DOC502 - raised by check_facts
        check_facts({name: more})
        self._publish(extended={name: more})

    def finish(self) -> None:
        """Note that the training came to its planned end."""
        self._lock.require_held()
        with in_words(self.root, self.again):
            self._ledger.finish()

    def close(self) -> None:
        """Give the directory back."""
        with suppress(TvgradError):  # another has it, or it is gone
            self._lock.require_held()
            self._ledger.close()
        self._lock.close()

    def read_state(self) -> tuple[Weights, dict[str, Any]] | None:
        """Read what the last point kept for a resume.

        Returns:
            Tensors and plain values, or None where nothing was kept.

        Raises:
            DamagedRun: a file cannot be read.
        """
        entry = self._ledger.state
        if entry is None:
            return None
        path = self.root / entry.path
        with TensorFile(path.with_suffix(".safetensors"), self.root) as file:
            tensors = file.read_all()
        try:
            return tensors, check_state(read_json(path, self.root))
        except (OSError, ValueError) as error:
            raise DamagedRun(f"{path} cannot be read ({reason_of(error)}): trace the run again") from None

    def copied(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> Weights:  # noqa: ARG002
        """Prepare tensors to be written: as they are, because `add` returns when that is done.

        Args:
            kind: what they are; a writer in a thread has buffers for each kind.
            tensors: name -> tensor on any device.

        Returns:
            Name -> tensor, to be passed to `add` before it changes.
        """
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def _written(self, kind: str, stem: str, content: Content) -> tuple[str, FileEntry]:
        """Write tensors, or a sketch of them where the run keeps sketches: what it is, and its file."""
        if isinstance(content, FileEntry):
            return kind, content
        if kind in SKETCHED and self._sketch_width is not None:
            kind, content = SKETCHED[kind], sketch_file(content, self._sketch_width)
        path = self._folder(kind) / f"{stem}.safetensors"
        return kind, FileEntry.of(self.root, *write_checked_tensors(content, path, self._max_shard_bytes))

    def _state(self, stem: str, tensors: Weights, values: dict[str, Any]) -> FileEntry:
        """Tensors and plain values, as two files of one entry."""
        path = self._folder("state") / f"{stem}.json"
        stored = write_tensors(tensors, path.with_suffix(".safetensors"), max_shard_bytes=2**62)
        write_text_atomically(path, json.dumps(values))
        both = FileEntry.of(self.root, path), FileEntry.of(self.root, stored)
        return FileEntry(both[0].path, both[0].parts + both[1].parts)

    def _folder(self, kind: str) -> Path:
        folder = self.root / CONTENTS[kind]
        if folder.is_symlink():
            raise DamagedRun(f"{folder} is a link, and nothing of a run is written through a link: trace the run again")
        folder.mkdir(exist_ok=True)
        return folder

    def _publish(self, points: Iterable[Point] = (), **rest: Any) -> None:
        """Change what is listed: the instant at which a point begins to exist."""
        self._lock.require_held()
        with in_words(self.root, self.again):
            self._ledger.publish(points, **rest)

    def _dropped(self, new: Point, keep: KeepPolicy) -> list[Point]:
        """The points that keep their tensors no longer when there is a new one."""
        if self._with_tensors[-1:] != [new.number]:
            self._with_tensors.append(new.number)
        if keep == KEEP_ALL:
            return []
        kept = keep.kept(self._with_tensors)
        dropped = [self._ledger.find(number) for number in self._with_tensors if number not in kept]
        self._with_tensors = [number for number in self._with_tensors if number in kept]
        return [point for point in dropped if point is not None]

    def _remove(self, entries: Iterable[FileEntry]) -> None:
        """Remove files that are not listed any more, as `_sweep` does."""
        for relative in {relative for entry in entries for relative, _, _ in entry.parts}:
            self._remove_own(relative)

    def _remove_own(self, relative: str) -> None:
        file = self.root / relative
        if is_own(relative) and link_below(file, self.root) is None:
            file.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what run.json does not list: files of unfinished points, temporaries, dropped tensors.

        Only what a writer makes is removed: regular files under its own names, never a link or what it leads to.
        """
        for relative in set(files_in(self.root)) - self.manifest.listed():
            self._remove_own(relative)


def _without_tensors(point: Point) -> Point:
    return replace(point, files={kind: entry for kind, entry in point.files.items() if kind not in DROPPABLE})


def _has_tensors(point: Point) -> bool:
    return any(kind in point.files for kind in DROPPABLE)


def cpu_copies(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Copy tensors to the CPU, so that training may go on while they are written.

    Args:
        tensors: name -> tensor.

    Returns:
        Name -> detached CPU copy.
    """
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
