"""SpreadWriter: several processes write the parts of one run, and the first one lists what is whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.writing import MAX_SHARD_BYTES, Stream, write_checked_tensors
from tvgrad.record.spread_model import SpreadModel
from tvgrad.sketching.sketches import sketch_of, sum_of_sketches
from tvgrad.store.gradient_sketches import sketch_tensors
from tvgrad.store.kept_gradients import SKETCHED, KeptGradients
from tvgrad.store.layout import CONTENTS
from tvgrad.store.manifest import FileEntry
from tvgrad.store.refusals import in_words
from tvgrad.store.writer import Content, RunWriter
from tvgrad.vectors.parameters import Weights
from tvgrad.vectors.spread import own_part

SPREAD = ("weights", "epoch_gradient")
"""Kinds of tensors that each process has a part of."""

NORM = "gradient_norm"
"""What a step's row has of each process's part of its gradient."""


class SpreadWriter:
    """Writes as a `RunWriter` does, every process its part; a point is listed when all parts are on the disk.

    Processes meet where a point is collected, and nowhere else: what follows is the first one's.
    """

    def __init__(
        self, opened: Callable[[], RunWriter], root: Path, model: SpreadModel, keep_gradients: KeptGradients
    ) -> None:
        """Open the run in the first process.

        Args:
            opened: makes the writer.
            root: the run directory, which all processes see.
            model: the parameters.
            keep_gradients: whether sums of gradients are kept whole, or sketches of them.

        Raises:
            TvgradError: it cannot be made.
        """
        self._root, self._model, self._width = root, model, keep_gradients.width
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
            content = tensors[kind]
            assert not isinstance(content, FileEntry)
            kept = self._model.whole(_part_of(content) if isinstance(content, Stream) else content)
            if kind in SKETCHED and self._width is not None:
                kind, entry = SKETCHED[kind], self._place_sketch(SKETCHED[kind], stem, kept, self._width)
            else:
                entry = self._place(kind, stem, kept)
            if entry is not None:
                found[kind] = entry
        return found

    def whole_norms(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put together the norms of gradients of which each process has that of its part; of every process.

        Args:
            rows: of the steps since the last point.

        Returns:
            The rows, with the norms of whole gradients.

        Raises:
            TvgradError: a process took other steps.
        """
        parts = self._model.gathered([row.get(NORM) for row in rows])
        if any(len(part) != len(rows) for part in parts):
            raise TvgradError(f"processes took {' and '.join(map(str, sorted({*map(len, parts)})))} steps in one epoch")
        return [
            {**row, NORM: math.hypot(*norms)} if row.get(NORM) is not None else dict(row)
            for row, *norms in zip(rows, *parts, strict=True)
        ]

    def _place_sketch(self, kind: str, stem: str, kept: Weights, width: int) -> FileEntry | None:
        """Sketch the tensors that this process keeps; in the first one, write the sum, which is the sketch of all."""
        sizes = self._model.sizes
        own = self._model.tried(
            lambda: sketch_of(sizes, lambda name: [kept[name].reshape(-1)], width, split=True, own=kept.keys())
        )
        parts = self._model.gathered((own, {tensor.dtype for tensor in kept.values()}))

        def write() -> FileEntry | None:
            if self._model.rank:
                return None
            dtypes = {dtype for _, found in parts for dtype in found}
            made = sketch_tensors(sum_of_sketches([part for part, _ in parts]), dtypes)
            folder = self._root / CONTENTS[kind]
            with in_words(self._root):
                folder.mkdir(exist_ok=True)
                written = write_checked_tensors(made, folder / f"{stem}.safetensors", MAX_SHARD_BYTES)
                return FileEntry.of(self._root, *written)

        return self._model.tried(write)

    def _place(self, kind: str, stem: str, kept: Weights) -> FileEntry | None:
        """Write the tensors that this process keeps; in the first one, list the parts of all."""
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
