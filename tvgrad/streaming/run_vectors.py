"""The vectors of runs (gradients, task vectors, displacements), and their inner products in one streaming pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.store.run import Run, open_runs
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.rows import Vector
from tvgrad.streaming.vector_key import Kind, VectorKey
from tvgrad.vectors.parameters import group_names

Source = Run | str | os.PathLike[str]


@dataclass(frozen=True)
class RunVectors:
    """The vectors of one run, in the order of its epochs, with what is asked of them.

    Attributes:
        name: the run's name in this pass.
        vectors: the vectors.
        keys: (kind, epoch) -> key of the vector; the first displacement is the first task vector.
        projections: pairs (task vector, first gradient) whose residual is wanted.
        before: epoch -> the recorded epoch at which its displacement begins.
        epoch_gradients: epoch e -> key of the sum of the gradients consumed in the epoch that begins there; none where
            a run was recorded by step.
    """

    name: str
    vectors: list[Vector] = field(default_factory=list)
    keys: dict[tuple[str, int], VectorKey] = field(default_factory=dict)
    projections: list[tuple[VectorKey, VectorKey]] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)
    epoch_gradients: dict[int, VectorKey] = field(default_factory=dict)

    def add(self, kind: Kind, epoch: int, file: TensorFile, *, minus: TensorFile | None = None) -> None:
        """Add a vector.

        Args:
            kind: gradient, task_vector, displacement or epoch_gradient.
            epoch: the point it belongs to.
            file: its tensors.
            minus: what is subtracted from them.
        """
        key = self.keys[kind, epoch] = VectorKey(self.name, kind, epoch)
        self.vectors.append(Vector(key, file, minus))


def vectors_of(run: Run, stack: ExitStack, name: str | None = None) -> RunVectors:
    """List the vectors of a run, opening each of its tensor files once.

    Args:
        run: the run.
        stack: closes the files.
        name: what to call the run; by default its own name.

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
    recorded: tuple[Kind, ...] = ("gradient", "epoch_gradient")
    for kind in recorded:
        for epoch in run.having(kind):
            found.add(kind, epoch, stack.enter_context(run.file(kind, epoch)))
            if kind == "epoch_gradient" and run.unit == "epoch":
                found.epoch_gradients[epoch - 1] = found.keys[kind, epoch]
    for before, epoch in pairwise(weights):
        found.add("task_vector", epoch, weights[epoch], minus=weights[0])
        if run.unit == "step" or before == epoch - 1:
            found.before[epoch] = before
            if before == 0:
                found.keys["displacement", epoch] = found.keys["task_vector", epoch]
            else:
                found.add("displacement", epoch, weights[epoch], minus=weights[before])
        if ("gradient", 0) in found.keys:
            found.projections.append((found.keys["task_vector", epoch], found.keys["gradient", 0]))
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

    Examples:
        >>> import tempfile, torch, tvgrad
        >>> from safetensors.torch import save_file
        >>> folder = tempfile.mkdtemp()
        >>> for name, row in {"a": [3.0, 4.0], "b": [4.0, 3.0]}.items():
        ...     save_file({"layer.weight": torch.tensor([row])}, f"{folder}/{name}.safetensors")
        >>> result = tvgrad.gram(f"{folder}/a.safetensors", f"{folder}/b.safetensors")
        >>> result.labels
        ('a.safetensors', 'b.safetensors')
        >>> result.matrix.tolist()
        [[25.0, 24.0], [24.0, 25.0]]
        >>> round(result.cosine("a.safetensors", "b.safetensors"), 3)
        0.96
    """
    flat: list[Any] = []
    for source in sources:
        flat += source if isinstance(source, (list, tuple)) else [source]
    if not flat:
        raise TvgradError("there is nothing to multiply: give runs or safetensors files")
    with ExitStack() as stack:
        vectors: list[Vector] = []
        projections: list[tuple[VectorKey, VectorKey]] = []
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
        return gram_of(vectors, names, projections=projections, progress=progress)


def _unique(name: str, taken: set[str]) -> str:
    """A name that no other source of the pass has."""
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return unique
