"""SpreadWriter: several processes write the parts of one run, and the first one lists what is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.writing import Stream, write_checked_tensors
from tvgrad.record.spread_model import SpreadModel
from tvgrad.store.layout import CONTENTS
from tvgrad.store.manifest import FileEntry
from tvgrad.store.writer import Content, RunWriter
from tvgrad.vectors.parameters import Weights
from tvgrad.vectors.spread import own_part

SPREAD = ("weights", "epoch_gradient")
"""Kinds of tensors that each process has a part of."""


class SpreadWriter:
    """Writes as a `RunWriter` does, every process its part; a point is listed when all parts are on the disk.

    Processes meet where a point is collected, and nowhere else: what follows is the first one's.
    """

    def __init__(self, opened: Callable[[], RunWriter], root: Path, model: SpreadModel) -> None:
        """Open the run in the first process.

        Args:
            opened: makes the writer.
            root: the run directory, which all processes see.
            model: the parameters.

        Raises:
            TvgradError: it cannot be made.
        """
        self._root, self._model = root, model
        self._inner: RunWriter | None = None
        failure: Exception | None = None
        if model.rank == 0:
            try:
                self._inner = opened()
            except (OSError, TvgradError) as error:
                failure = error
        try:
            model.agree("the start", None if failure is None else str(failure))
        except TvgradError:
            self.close()
            raise failure or TvgradError("process 0 cannot make the run") from None

    def copied(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> Weights:  # noqa: ARG002
        """Prepare tensors to be placed, as they are.

        Args:
            kind: what they are.
            tensors: name -> tensor.

        Returns:
            Name -> this process's part, to be placed before it changes.
        """
        return {name: own_part(tensor.detach()) for name, tensor in tensors.items()}

    def placed(self, stem: str, tensors: Mapping[str, Content]) -> dict[str, Content]:
        """Write this process's part of a point, while the weights stand still; of every process.

        Args:
            stem: name of the point's files.
            tensors: kind -> tensors: of those that are spread, this process's parts.

        Returns:
            Kind -> what the first process has to list: files that are on the disk, and what it has alone.

        Raises:
            TvgradError: a process fails, or is not at this point.
        """  # noqa: DOC502 - raised by agree
        kinds = [kind for kind in SPREAD if tensors.get(kind)]
        self._model.agree(f"{stem} ({', '.join(kinds)})")
        found = {kind: content for kind, content in tensors.items() if kind not in SPREAD}
        for kind in kinds:
            entry = self._place(kind, stem, tensors[kind])
            if entry is not None:
                found[kind] = entry
        return found

    def _place(self, kind: str, stem: str, content: Content) -> FileEntry | None:
        """Write the tensors that this process keeps; in the first one, list the parts of all."""
        assert not isinstance(content, FileEntry)
        kept = self._model.whole(_part_of(content) if isinstance(content, Stream) else content)
        folder = self._root / CONTENTS[kind]
        sizes = {name: int(tensor.nbytes) for name, tensor in kept.items()}
        with_parts = [rank for rank, names in enumerate(self._model.gathered(sizes)) if names]
        failure, made = None, dict[str, str]()
        if kept:
            try:
                folder.mkdir(exist_ok=True)
                number = with_parts.index(self._model.rank) + 1
                name = f"{stem}-{number:05d}-of-{len(with_parts):05d}" if len(with_parts) > 1 else stem
                _, sums = write_checked_tensors(kept, folder / f"{name}.safetensors", 2**62)
                made = {path.name: digest for path, digest in sums.items()}
            except (OSError, TvgradError) as error:
                failure = f"its part of {kind} cannot be written ({error})"
        parts = self._model.gathered((failure, sizes, made))
        for rank, (failed, _, _) in enumerate(parts):
            if failed is not None:
                raise TvgradError(f"process {rank} failed: {failed}")
        if self._model.rank:
            return None
        checksums = {folder / name: digest for _, _, files in parts for name, digest in files.items()}
        missing = next((path for path in checksums if not path.is_file()), None)
        if missing is not None:
            raise TvgradError(f"process 0 does not see {missing}: --out must be a folder that all processes share")
        if len(checksums) == 1:
            return FileEntry.of(self._root, next(iter(checksums)), checksums)
        weight_map = {name: file for _, names, files in parts for file in files for name in names}
        total = sum(size for _, names, _ in parts for size in names.values())
        index = folder / f"{stem}.safetensors.index.json"
        write_text_atomically(
            index, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
        )
        return FileEntry.of(self._root, index, checksums)

    def add(self, number: int, steps: int, tensors: Mapping[str, Content], *rest: Any, **more: Any) -> None:
        """List a point whose parts are placed.

        Args:
            number: epochs (or steps) done.
            steps: optimizer steps done.
            tensors: what `placed` returned.
            *rest: as for `RunWriter.add`.
            **more: likewise.
        """
        if self._inner is not None:
            self._inner.add(number, steps, tensors, *rest, **more)

    def amend(self, number: int, tensors: Mapping[str, Weights], metrics: Mapping[str, float]) -> None:
        """Add to a recorded point.

        Args:
            number: the point's epochs (or steps).
            tensors: kind -> tensors that the first process has whole.
            metrics: name -> number.
        """
        if self._inner is not None:
            self._inner.amend(number, tensors, metrics)

    def update_info(self, **facts: Any) -> None:
        """Add facts to the run's description.

        Args:
            facts: plain values.
        """
        if self._inner is not None:
            self._inner.update_info(**facts)

    def extend_info(self, name: str, more: list[Any] | dict[str, Any]) -> None:
        """Add to a list or a mapping of the run's description.

        Args:
            name: of the fact.
            more: what is added.
        """
        if self._inner is not None:
            self._inner.extend_info(name, more)

    def wait(self) -> None:
        """Nothing is written later."""

    def finish(self) -> None:
        """Note that the training came to its planned end."""
        if self._inner is not None:
            self._inner.finish()

    def close(self) -> None:
        """Give the directory back."""
        if self._inner is not None:
            self._inner.close()


def _part_of(stream: Stream) -> Callable[[str], torch.Tensor]:
    """Name -> this process's part of a sum that is read in blocks."""

    def read(name: str) -> torch.Tensor:
        blocks = list(stream.blocks(name))
        return torch.cat(blocks).reshape(stream.places[name][0])

    return read
