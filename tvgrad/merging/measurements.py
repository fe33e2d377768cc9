"""Measurements: what tasks' data says of weights, taken where the data is and used where models are merged.

Of every task: the diagonal of its Fisher matrix, the Gram matrices of its layers' inputs, and magnitudes of gradients.
They lie in a safetensors file, beside it a JSON file with the same name that says of which tasks and pretrained weights
they are.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import sha256_of, write_text_atomically
from tvgrad.files.writable import require_file
from tvgrad.files.writing import write_tensors
from tvgrad.results import Shown, json_text

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack

CLOSE = 1e-5
"""Relative distance of norms of pretrained weights that rounding to another dtype explains (bfloat16 apart)."""
LEADING = 2**16
"""Elements of a tensor by whose change fine-tuned weights are told."""
SINGLE = 2.0**-22
"""Of a pretrained tensor's norm, what storing it and the fine-tuned one in float32 can change in their distance."""
AT = ("tuned", "pretrained")

PLAN, PLANNED = "plan.", {"slopes": 2, "pairs": 3}
COEFFICIENT = "coefficient"
CALLED = {"fisher": "Fisher diagonals", "gram": "Gram matrices", "magnitude": "magnitudes of gradients"}


@dataclass(frozen=True, repr=False)
class Measurements(Shown):
    """Measurements of tasks that share one pretrained model.

    Attributes:
        tasks: their names.
        fisher: of each, which diagonal: `exact`, or `empirical` where its loss is no known likelihood.
        at: the weights at which they were taken: `tuned` or `pretrained`; magnitudes of gradients always at the latter.
        norms: tensor -> Euclidean norm of the pretrained one, by which another model is told.
        slopes: `slopes[s, u] = <g_s, tau_u>` of a plan, or None.
        pairs: `pairs[s, t, u] = <tau_t, H_s tau_u>` of a plan, or None.
        places: name of a measurement -> its shape.
        read: reads one, by name.
        planned: the coefficient of that plan, for the sum of all these task vectors; or None.
        moved: of each task, tensor -> Euclidean norm of what its fine-tuning changed in the first 65536 elements, by
            which another epoch is told; None where measurements are of pretrained weights, or older than this field.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import Measurements, measure
        >>> model, x = torch.nn.Linear(2, 1).double(), torch.tensor([[1.0, 2.0]]).double()
        >>> made = measure(["a"], [tvgrad.Objective(model, torch.nn.MSELoss(), (x, torch.ones(1, 1).double()))])
        >>> isinstance(made, Measurements), made.tasks, made.at, sorted(made.norms)
        (True, ('a',), 'pretrained', ['bias', 'weight'])
    """

    tasks: tuple[str, ...]
    fisher: tuple[str, ...]
    at: str
    norms: Mapping[str, float]
    slopes: NDArray[np.float64] | None
    pairs: NDArray[np.float64] | None
    places: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    planned: float | None = None
    moved: tuple[Mapping[str, float], ...] | None = None

    def diagonals(self, name: str) -> torch.Tensor:
        """Read a tensor's Fisher diagonals.

        Args:
            name: the tensor.

        Returns:
            float64, shape (tasks, *tensor).

        Raises:
            TvgradError: they were not measured.
        """
        return self._stacked("fisher", name)

    def magnitudes(self, name: str) -> torch.Tensor:
        """Read the mean magnitudes of a tensor's gradients at the pretrained weights.

        Args:
            name: the tensor.

        Returns:
            float64, shape (tasks, *tensor).

        Raises:
            TvgradError: they were not measured.
        """
        if key_of("magnitude", 0, name) not in self.places:
            raise TvgradError(
                f"these measurements have no magnitudes of gradients of {name!r}: measure again, with tvgrad plan "
                "--save FILE.safetensors"
            )
        return self._stacked("magnitude", name)

    def grams(self, name: str) -> torch.Tensor | None:
        """Read the Gram matrices of a layer's inputs.

        Args:
            name: its weight.

        Returns:
            float64, shape (tasks, inputs, inputs) or (tasks, groups, inputs, inputs); None where there is none.

        Raises:
            TvgradError: some tasks have none, or they are damaged.
        """  # noqa: DOC502 - raised below
        measured = any(key_of("gram", task, name) in self.places for task in range(len(self.tasks)))
        return self._stacked("gram", name) if measured else None

    def _stacked(self, kind: str, name: str) -> torch.Tensor:
        keys = [key_of(kind, task, name) for task in range(len(self.tasks))]
        for key in keys:
            if key not in self.places:
                raise TvgradError(f"these measurements have no {key!r}: they are of another model, so measure this one")
            if self.places[key] != self.places[keys[0]]:
                raise TvgradError(
                    f"in these measurements {key!r} has shape {self.places[key]} and {keys[0]!r} "
                    f"{self.places[keys[0]]}: they are damaged, so measure again"
                )
        found = torch.stack([self.read(key).double() for key in keys])
        if not torch.isfinite(found).all() or (kind != "gram" and bool((found < 0).any())):
            least = "" if kind == "gram" else " or a number below 0"
            raise TvgradError(
                f"these measurements hold a NaN, an infinity{least} where {CALLED[kind]} of {name!r} should be: they "
                "are damaged, or gradients overflowed; measure again, in float64"
            )
        return found

    def of(self, tasks: Sequence[str]) -> Measurements:
        """Pick tasks, in the order of the models that are merged.

        Args:
            tasks: their names.

        Returns:
            Measurements of these tasks alone.

        Raises:
            TvgradError: one was not measured.
        """
        for name in tasks:
            if name not in self.tasks:
                raise TvgradError(f"task {name!r} was not measured: these measurements are of {', '.join(self.tasks)}")
        chosen = [self.tasks.index(name) for name in tasks]
        places = {
            key_of(kind, place, name): (shape, key_of(kind, task, name))
            for place, task in enumerate(chosen)
            for (kind, number, name), shape in ((kind_task_name(key), shape) for key, shape in self.places.items())
            if number == task
        }
        read = self.read
        return Measurements(
            tuple(tasks),
            tuple(self.fisher[task] for task in chosen),
            self.at,
            self.norms,
            None if self.slopes is None else self.slopes[np.ix_(chosen, chosen)],
            None if self.pairs is None else self.pairs[np.ix_(chosen, chosen, chosen)],
            {key: shape for key, (shape, _) in places.items()},
            lambda key: read(places[key][1]),
            self.planned if sorted(chosen) == list(range(len(self.tasks))) else None,
            None if self.moved is None else tuple(self.moved[task] for task in chosen),
        )

    def coefficient(self) -> float:
        """Tell how far to go along the sum of the task vectors.

        Returns:
            The coefficient of the plan, above 0. It is of all tasks that were measured; for some of them it is
            `- sum b / sum A`, to second order.

        Raises:
            TvgradError: no plan is in these measurements, or the summed loss has no minimum above 0 along the sum.
        """
        if self.slopes is None or self.pairs is None:
            raise TvgradError("these measurements hold no plan: make them with tvgrad plan --save FILE.safetensors")
        slope, curvature = float(self.slopes.sum()), float(self.pairs.sum())
        if self.planned:
            return self.planned
        if not curvature > 0:
            raise TvgradError(
                f"the curvature along the merge is not positive ({curvature:.3g}), so that the summed loss has no "
                "minimum to second order: give --alpha a number, or plan with the data (--recipe)"
            )
        if not slope < 0:
            raise TvgradError(
                f"the summed loss rises along the merge (slope {slope:.3g}), and the coefficient would be negative: "
                "leave these task vectors apart"
            )
        if self.planned is not None:
            raise TvgradError(
                "no coefficient that the plan tried lowers the summed loss of these tasks: leave their vectors apart"
            )
        return -slope / curvature

    def check(self, stack: Stack) -> None:
        """Refuse models that are not those that were measured.

        Args:
            stack: the task vectors that are merged.

        Raises:
            TvgradError: names, shapes, the number of tasks, the pretrained or the fine-tuned weights are others.
        """
        if len(self.tasks) != stack.tasks:
            raise TvgradError(f"{len(self.tasks)} tasks were measured and {stack.tasks} are merged: give the same ones")
        for name, (shape, _) in stack.places.items():
            key = key_of("fisher", 0, name)
            if key not in self.places:
                raise TvgradError(f"these measurements are of another model: they have no {name!r}")
            measured = tuple(self.places[key])
            if measured != tuple(shape):
                raise TvgradError(
                    f"these measurements are of another model: {name!r} has shape {measured} in them and "
                    f"{tuple(shape)} here"
                )
            self._check_shapes(name, tuple(shape))
            self._check_start(name, stack)
            self._check_moved(name, stack)

    def _check_start(self, name: str, stack: Stack) -> None:
        """Refuse other pretrained weights."""
        base = stack.base(name, 0, stack.numel(name))
        if base is None or name not in self.norms:
            return
        here, there = float(torch.linalg.vector_norm(base.double())), self.norms[name]
        if not abs(here - there) <= CLOSE * max(here, there):
            raise TvgradError(
                f"these measurements were taken from other pretrained weights: {name!r} has norm {there:.6g} in "
                f"them and {here:.6g} here"
            )

    def _check_shapes(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse measurements whose shapes do not belong to a tensor's."""
        inputs = math.prod(shape[1:])
        for task in range(len(self.tasks)):
            for kind in CALLED:
                found = self.places.get(key_of(kind, task, name), shape)
                fits = found == shape
                if kind == "gram" and key_of(kind, task, name) in self.places:
                    groups = found[0] if len(found) == 3 else 1
                    fits = found[-2:] == (inputs, inputs) and len(found) < 4 and groups > 0 and shape[0] % groups == 0
                if not fits:
                    raise TvgradError(
                        f"these measurements are of another model, or damaged: {key_of(kind, task, name)!r} has shape "
                        f"{found}, which does not belong to {shape}"
                    )

    def _check_moved(self, name: str, stack: Stack) -> None:
        """Refuse the fine-tuned weights of another epoch, or of another training."""
        if self.moved is None:
            return
        rounding = SINGLE * self.norms.get(name, 0.0)
        rows = stack.rows(name, 0, min(LEADING, stack.numel(name)))
        for task, label, moved, row in zip(self.tasks, stack.labels, self.moved, rows, strict=True):
            here, there = float(torch.linalg.vector_norm(row)), moved.get(name, 0.0)
            if not abs(here - there) <= CLOSE * max(here, there) + rounding:
                raise TvgradError(
                    f"these measurements were taken after another epoch or training than {label}: task {task!r} moved "
                    f"{name!r} by {there:.6g} in them and by {here:.6g} here; merge the epoch that was measured, or "
                    "measure this one (tvgrad plan RUNS --epoch N --recipe TARGET --save FILE.safetensors)"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements to a safetensors file and a JSON file beside it.

        Args:
            path: of the safetensors file.

        Raises:
            TvgradError: the name does not end in .safetensors, or its folder is none or may not be written to.
        """
        target = require_file(safetensors_path(path), "--save")
        told = {PLAN + name: torch.from_numpy(part) for name in PLANNED if (part := getattr(self, name)) is not None}
        if self.planned is not None:
            told[PLAN + COEFFICIENT] = torch.tensor([self.planned], dtype=torch.float64)
        # one file, however large: its checksum lies in the other
        write_tensors({key: self.read(key) for key in self.places} | told, target, sys.maxsize)
        fields = {name: getattr(self, name) for name in ("tasks", "fisher", "at", "norms")}
        if self.moved is not None:
            fields["moved"] = self.moved
        content = json_text({**fields, "sha256": sha256_of(target)})
        write_text_atomically(target.with_suffix(".json"), content, option="--save")


def safetensors_path(path: str | os.PathLike[str]) -> Path:
    """Check the name of a file of measurements.

    Args:
        path: of the safetensors file.

    Returns:
        It.

    Raises:
        TvgradError: it does not end in .safetensors.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise TvgradError(f"{target} does not end in .safetensors, as files of measurements do: give such a name")
    return target


def key_of(kind: str, task: int, name: str) -> str:
    """Name a measurement.

    Args:
        kind: `fisher`, `gram` or `magnitude`.
        task: its number.
        name: of the tensor.

    Returns:
        The name in the file.
    """
    return f"{kind}.{task}.{name}"


def kind_task_name(key: str) -> tuple[str, int, str]:
    """Read the name of a measurement.

    Args:
        key: as `key_of` made it.

    Returns:
        Kind, number of the task and name of the tensor.
    """
    kind, task, name = key.split(".", 2)
    return kind, int(task), name
