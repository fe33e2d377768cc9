"""Run: a recorded fine-tuning, read back. It knows files and no mathematics beyond a difference."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tvgrad.checkpoints.find import needs_base
from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.checksums import Checksums
from tvgrad.files.tensors import TensorFile
from tvgrad.sketching.sketches import Sketch
from tvgrad.store.gradient_sketches import read_sketch
from tvgrad.store.kept_gradients import SKETCHED
from tvgrad.store.layout import CONTENTS, MANIFEST, run_directories
from tvgrad.store.manifest import FileEntry, Manifest, Parameter, Point, read_manifest
from tvgrad.store.run_problems import run_problems
from tvgrad.store.run_text import RunText
from tvgrad.store.step_table import read_steps
from tvgrad.update_rules.grouped import AnyRule, GroupedRule
from tvgrad.update_rules.rules import rule_from_dict
from tvgrad.vectors.parameters import Weights, group_names, same_names_and_shapes
from tvgrad.wording import printable, ranges_in_words

if TYPE_CHECKING:
    import pandas as pd  # imported where a table is made: a traced script makes none, and would wait for it


class Run(RunText):
    """A run directory, opened for reading. Nothing is loaded until it is asked for.

    Examples:
        >>> import tempfile, torch, tvgrad
        >>> model = torch.nn.Linear(2, 1)
        >>> directory = tempfile.TemporaryDirectory()
        >>> with tvgrad.Recorder(f"{directory.name}/run", model) as recorder:
        ...     with torch.no_grad():
        ...         _ = model.weight.add_(0.5)
        ...     recorder.end_epoch()
        >>> run = tvgrad.Run.open(f"{directory.name}/run")
        >>> run.epochs
        [0, 1]
        >>> run.task_vector(1)["weight"]
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
        >>> directory.cleanup()
    """

    def __init__(self, root: str | os.PathLike[str], manifest: Manifest | None = None) -> None:
        """Open a run directory, as `Run.open` does.

        Args:
            root: the run directory.
            manifest: the content of its run.json, where it has been read already.

        Raises:
            TvgradError: there is no run, or it has another format version.
            DamagedRun: run.json is damaged.
        """  # noqa: DOC502 - raised by read_manifest
        self.root = Path(root)
        self.manifest = read_manifest(self.root) if manifest is None else manifest
        self._checksums = Checksums(self.root)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Run:
        """Open a run directory.

        Args:
            directory: where the run was recorded.

        Returns:
            The run; epochs that were being written when their process died are not part of it.

        Raises:
            TvgradError: there is no run, or it has another format version.
            DamagedRun: run.json is damaged.

        Examples:
            >>> import tvgrad
            >>> tvgrad.Run.open("no/such/run")
            Traceback (most recent call last):
            tvgrad.errors.TvgradError: no/such/run is not a run directory: it has no run.json
        """
        return cls(directory)

    @property
    def name(self) -> str:
        """The task's name, or the directory's."""
        return printable(str(self.manifest.info.get("name") or self.root.name))

    @property
    def info(self) -> dict[str, Any]:
        """How the run was made: recipe, rule, dtype, device, seed, versions, data fingerprint."""
        return self.manifest.info

    @property
    def unit(self) -> str:
        """What the numbers of points count: `epoch` or `step`."""
        return self.manifest.unit

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Name -> shape, dtype and group of the trainable parameters."""
        return self.manifest.parameters

    @property
    def points(self) -> tuple[Point, ...]:
        """All recorded points, also those whose tensors were dropped to save space."""
        return self.manifest.points

    @property
    def epochs(self) -> list[int]:
        """Numbers of the points whose weights are kept (epochs, or steps when recorded by step)."""
        return self.having("weights")

    @property
    def rule(self) -> AnyRule | None:
        """The update rule, grouped where groups have their own; None where it is not known (`info['rule_reason']`)."""
        content = self.info.get("rule")
        rule = None if content is None else rule_from_dict(content)
        return rule.simplified(self.parameters) if isinstance(rule, GroupedRule) else rule

    def having(self, kind: str) -> list[int]:
        """List the points at which something was recorded.

        Args:
            kind: weights, gradient, buffers, epoch_gradient, batches or steps.

        Returns:
            Numbers of points.
        """
        return [point.number for point in self.points if kind in point.files]

    def point(self, number: int) -> Point:
        """Find a recorded point.

        Args:
            number: epochs (or steps) done.

        Returns:
            The point.

        Raises:
            TvgradError: nothing was recorded there.
        """
        found = self.manifest.by_number.get(number)
        if found is not None:
            return found
        known = ranges_in_words(point.number for point in self.points)
        raise TvgradError(f"{self.root} has no {self.unit} {number}: it has {known or 'none yet'}")

    def file(self, kind: str, number: int) -> TensorFile:
        """Open a tensor file of the run without reading its data.

        Args:
            kind: weights, gradient, buffers, epoch_gradient or batches.
            number: epochs (or steps) done.

        Returns:
            The file, whose header and size have been checked.

        Raises:
            TvgradError: that was not recorded, or not kept.
        """
        entry = self.point(number).files.get(kind)
        if entry is None:
            have = ranges_in_words(self.having(kind))
            if SKETCHED.get(kind) in self.point(number).files:
                raise TvgradError(
                    f"{self.root} keeps sketches of its gradients only, which give norms and cosines (`tvgrad report`) "
                    "and nothing else: trace again with --keep-gradients all"
                )
            raise TvgradError(
                f"{self.root} has no {CONTENTS.get(kind, kind)} at {self.unit} {number}"
                + (f": it has them at {have}" if have else ": they were not recorded (see `tvgrad trace --record`)")
            )
        return self._opened(entry)

    def static_file(self) -> TensorFile | None:
        """Open the file of frozen parameters and of buffers at the start.

        Returns:
            The file, or None where there are none.
        """
        return None if self.manifest.static is None else self._opened(self.manifest.static)

    def require_checksums(self) -> None:
        """Wait until the files that are read are compared with their checksums, as the end of their `with` does."""
        self._checksums.require()

    def _opened(self, entry: FileEntry) -> TensorFile:
        self._checksums.expect(entry.parts)
        return TensorFile(self.root / entry.path, self.root, self._checksums)

    def weights(self, number: int) -> Weights:
        """Read the trainable weights after so many epochs.

        Args:
            number: epochs (or steps) done; 0 is pretrained.

        Returns:
            Name -> tensor, in the storage dtype.
        """
        return self._read(self.file("weights", number), parameters=True)

    def gradient(self, number: int) -> Weights:
        """Read the full-batch gradient at the weights of the same number.

        Args:
            number: epochs (or steps) done.

        Returns:
            Name -> tensor, in the storage dtype.
        """
        return self._read(self.file("gradient", number), parameters=True)

    def epoch_gradient(self, number: int) -> Weights:
        """Read the sum of the gradients that the optimizer consumed in the epoch that ended at `number`.

        Args:
            number: epochs (or steps) done, at least 1.

        Returns:
            Name -> tensor.
        """
        return self._read(self.file("epoch_gradient", number), parameters=True)

    def batches(self, number: int) -> list[torch.Tensor]:
        """Read which samples each step of an epoch used, in order.

        Args:
            number: the epoch, at least 1.

        Returns:
            One tensor of positions in the training samples for each step.

        Raises:
            DamagedRun: the file holds something else.
        """
        file = self.file("batches", number)
        content = self._read(file)
        order, sizes = (content.get(name) for name in ("order", "sizes"))
        plain = (one is not None and one.ndim == 1 and one.dtype == torch.int64 for one in (order, sizes))
        if not all(plain) or order is None or sizes is None or bool((sizes < 0).any()) or sizes.sum() != len(order):
            raise DamagedRun(f"{file.path} holds no batches: restore it or trace the run again")
        return list(order.split(sizes.tolist()))

    def task_vector(self, number: int) -> Weights:
        """Subtract the pretrained weights from those after so many epochs.

        Args:
            number: epochs (or steps) done.

        Returns:
            Name -> float64 tensor; the difference is formed in float64.
        """
        start = self.weights(0)
        return {name: tensor.double() - start[name].double() for name, tensor in self.weights(number).items()}

    def buffers(self, number: int) -> Weights:
        """Find the buffers after so many epochs: those of the last recorded change, or of the start.

        Args:
            number: epochs (or steps) done.

        Returns:
            Name -> tensor; only buffers that changed, empty where none did.
        """
        changed = [at for at in self.having("buffers") if at <= number]
        return self._read(self.file("buffers", changed[-1])) if changed else {}

    def static(self) -> Weights:
        """Read the frozen parameters and the buffers at the start.

        Returns:
            Name -> tensor.
        """
        file = self.static_file()
        return {} if file is None else self._read(file)

    def steps(self, number: int | None = None) -> pd.DataFrame:
        """Read the table of optimizer steps.

        Args:
            number: the epoch, at least 1; None is all of them.

        Returns:
            Columns step, lr, batch_size, clip_factor, loss_scale, skipped, NaN where unknown, and what else was noted;
            empty where no steps were recorded.

        Raises:
            DamagedRun: a table cannot be read.
        """  # noqa: DOC502 - raised by _read_steps
        import pandas as pd

        numbers = self.having("steps") if number is None else [number]
        tables = []
        for one in numbers:
            entry = self.point(one).files.get("steps")
            if entry is not None:
                tables.append(read_steps(self.root / entry.path, self.root))
                self._checksums.compare(entry.parts)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["step", "lr"])

    @property
    def metrics(self) -> pd.DataFrame:
        """Loss, accuracy, seconds and whatever else was recorded: one row a point."""
        return self.to_frame()

    def groups(self, pattern: str | None = None) -> dict[str, str]:
        """Assign each parameter to a group.

        Args:
            pattern: a regular expression that replaces the groups chosen when the run was recorded.

        Returns:
            Name -> group.
        """
        if pattern is not None:
            return group_names(self.parameters, pattern)
        return {name: parameter.group for name, parameter in self.parameters.items()}

    def complete(self, number: int) -> Weights:
        """Assemble a complete checkpoint: tuned weights, frozen parameters, buffers and tied names.

        Args:
            number: epochs (or steps) done.

        Returns:
            Name -> tensor, loadable with `load_state_dict`.
        """
        content = {**self.static(), **self.buffers(number), **self.weights(number)}
        return content | {alias: content[name] for alias, name in self.manifest.tied.items() if name in content}

    def problems(self, checksums: bool = True) -> list[str]:
        """Check every file of the run.

        Args:
            checksums: read every byte; otherwise presence and size only.

        Returns:
            One sentence a problem; empty when all is well.
        """
        return run_problems(self.root, self.manifest, checksums)

    def gradient_sketch(self, number: int, kind: str = "gradient") -> Sketch:
        """Read the sketch of a gradient, where sketches are kept.

        Args:
            number: epochs (or steps) done.
            kind: gradient or epoch_gradient.

        Returns:
            The sketch.
        """
        return read_sketch(self.file(SKETCHED[kind], number), self.parameters, self.manifest.sketch_width)

    def _read(self, file: TensorFile, parameters: bool = False) -> Weights:
        with file:
            content = file.read_all()
        if parameters:
            shapes = {name: torch.empty(one.shape, device="meta") for name, one in self.parameters.items()}
            difference = same_names_and_shapes(shapes, content)
            if difference is not None:
                raise DamagedRun(f"{file.path} does not fit the run: {difference}; restore it or trace the run again")
            return {name: content[name] for name in self.parameters}
        return content


def open_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Open runs, and directories of runs.

    Args:
        paths: run directories, or directories that hold runs, up to three levels down.

    Returns:
        The runs; those of one directory sorted by name.

    Raises:
        TvgradError: a path is neither.
    """
    runs = []
    for path in map(Path, paths):
        if (path / MANIFEST).exists():
            runs.append(Run.open(path))
            continue
        below = run_directories(path)
        if not below:
            if (sentence := needs_base(path)) is not None:
                raise TvgradError(sentence)
            what = "is neither a run directory nor a directory of runs" if path.exists() else "does not exist"
            raise TvgradError(f"{path} {what}: give the --out of a `tvgrad trace`")
        runs += [Run.open(child) for child in below]
    return runs
