"""The vectors of runs (gradients, task vectors, displacements), and their inner products in one streaming pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.store.run import Run, open_runs
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.rows import Vector
from tvgrad.vectors.parameters import group_names

Source = Run | str | os.PathLike[str]


@dataclass(frozen=True)
class RunVectors:
    """The vectors of one run, in the order of its epochs, with what is asked of them.

    Attributes:
        name: the run's name, with which labels begin.
        vectors: the vectors.
        labels: (kind, epoch) -> label, where kind is gradient, task_vector, displacement or epoch_gradient; the first
            displacement is the first task vector.
        projections: pairs of labels (task vector, first gradient) whose residual is wanted.
        before: epoch -> the recorded epoch at which its displacement begins.
    """

    name: str
    vectors: list[Vector] = field(default_factory=list)
    labels: dict[tuple[str, int], str] = field(default_factory=dict)
    projections: list[tuple[str, str]] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)

    def add(self, kind: str, epoch: int, file: TensorFile, minus: TensorFile | None = None) -> None:
        """Add a vector.

        Args:
            kind: gradient, task_vector, displacement or epoch_gradient.
            epoch: the point it belongs to.
            file: its tensors.
            minus: what is subtracted from them.
        """
        label = f"{self.name}:{kind}:{epoch}"
        self.labels[kind, epoch] = label
        self.vectors.append(Vector(label, file, minus))


def vectors_of(run: Run, stack: ExitStack, name: str | None = None) -> RunVectors:
    """List the vectors of a run, opening each of its tensor files once.

    Args:
        run: the run.
        stack: closes the files.
        name: what labels begin with; by default the run's name.

    Returns:
        The gradients, the task vectors, the displacements between kept epochs that follow each other (between recorded
        steps, where a run was recorded by step), and the epoch gradients, as far as they were recorded.

    Raises:
        TvgradError: the run has no pretrained weights.
    """
    found = RunVectors(name or run.name)
    if 0 not in run.epochs:
        raise TvgradError(f"{run.root} has no pretrained weights ({run.unit} 0): its first epoch was never finished")
    weights = {epoch: stack.enter_context(run.file("weights", epoch)) for epoch in run.epochs}
    for epoch in run.having("gradient"):
        found.add("gradient", epoch, stack.enter_context(run.file("gradient", epoch)))
    for epoch in run.having("epoch_gradient"):
        found.add("epoch_gradient", epoch, stack.enter_context(run.file("epoch_gradient", epoch)))
    for epoch, file in weights.items():
        if epoch == 0:
            continue
        found.add("task_vector", epoch, file, weights[0])
        before = max(earlier for earlier in weights if earlier < epoch)
        if run.unit == "step" or before == epoch - 1:
            found.before[epoch] = before
            if before == 0:
                found.labels["displacement", epoch] = found.labels["task_vector", epoch]
            else:
                found.add("displacement", epoch, file, weights[before])
        if ("gradient", 0) in found.labels:
            found.projections.append((found.labels["task_vector", epoch], found.labels["gradient", 0]))
    return found


def gram(
    *sources: Source | Sequence[Source],
    groups: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GramResult:
    """Compute the inner products of all vectors of runs, or of plain safetensors files.

    Args:
        sources: runs (or their directories, or directories of runs), or safetensors files; all of one model. A run
            contributes its gradients, task vectors, displacements and epoch gradients, labelled
            `<run>:<kind>:<epoch>`; a file contributes its tensors, labelled by its name.
        groups: a regular expression for groups of parameters; by default the block that owns each.
        progress: called with the bytes done and the bytes in all.

    Returns:
        `.matrix` (n x n, float64, whole model), `.groups` (group -> matrix), `.labels`, and for every task vector the
        residual of its projection on its run's first gradient.

    Raises:
        TvgradError: there is nothing to multiply, or the sources do not belong to one model.
    """
    flat: list[Any] = []
    for source in sources:
        flat += source if isinstance(source, (list, tuple)) else [source]
    if not flat:
        raise TvgradError("there is nothing to multiply: give runs or safetensors files")
    with ExitStack() as stack:
        vectors: list[Vector] = []
        projections: list[tuple[str, str]] = []
        names: dict[str, str] = {}
        taken: set[str] = set()
        for source in flat:
            if not isinstance(source, Run) and Path(source).is_file():
                file = stack.enter_context(TensorFile(source))
                vectors.append(Vector(_unique(Path(source).name, taken), file))
                names |= group_names(file.names, groups)
                continue
            for run in [source] if isinstance(source, Run) else open_runs([source]):
                found = vectors_of(run, stack, _unique(run.name, taken))
                vectors += found.vectors
                projections += found.projections
                names |= run.groups(groups)
        rows = {vector.label: row for row, vector in enumerate(vectors)}
        pairs = [(rows[left], rows[right]) for left, right in projections]
        return gram_of(vectors, names, projections=pairs, progress=progress)


def _unique(name: str, taken: set[str]) -> str:
    """A name that no other source of the pass has."""
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return unique
