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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.fields import list_of, mapping_of, number, one_of, parse_json, record, text
from tvgrad.files.atomic import sha256_of, write_text_atomically
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.results import Shown, json_text

if TYPE_CHECKING:
    from tvgrad.merging.stack import Stack

CLOSE = 1e-5
"""Relative distance of norms of pretrained weights that rounding to another dtype explains (bfloat16 apart)."""
MOST_BYTES = 2**24
KINDS = ("exact", "empirical")
AT = ("tuned", "pretrained")

PLAN, PLANNED = "plan.", {"slopes": 2, "pairs": 3}
COEFFICIENT = "coefficient"
CALLED = {"fisher": "Fisher diagonals", "gram": "Gram matrices", "magnitude": "magnitudes of gradients"}

_FIELDS = record(
    {
        "tasks": list_of(text),
        "fisher": list_of(one_of(KINDS)),
        "at": one_of(AT),
        "norms": mapping_of(number),
        "sha256": text,
    },
    needed=("tasks", "fisher", "at", "norms", "sha256"),
)


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
            TvgradError: names, shapes, the number of tasks or the pretrained weights are others.
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
            base = stack.base(name, 0, stack.numel(name))
            if base is None or name not in self.norms:
                continue
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements to a safetensors file and a JSON file beside it.

        Args:
            path: of the safetensors file.

        Raises:
            TvgradError: the name does not end in .safetensors.
        """
        target = _safetensors(path)
        told = {PLAN + name: torch.from_numpy(part) for name in PLANNED if (part := getattr(self, name)) is not None}
        if self.planned is not None:
            told[PLAN + COEFFICIENT] = torch.tensor([self.planned], dtype=torch.float64)
        # one file, however large: its checksum lies in the other
        write_tensors({key: self.read(key) for key in self.places} | told, target, sys.maxsize)
        fields = {name: getattr(self, name) for name in ("tasks", "fisher", "at", "norms")}
        content = json_text({**fields, "sha256": sha256_of(target)})
        write_text_atomically(target.with_suffix(".json"), content, option="--save")


def load_measurements(path: str | os.PathLike[str]) -> Measurements:
    """Open a file of measurements; tensors are read when they are used.

    Args:
        path: of the safetensors file; its JSON file lies beside it.

    Returns:
        The measurements.

    Raises:
        TvgradError: a file is missing or damaged, or the two do not belong together.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import load_measurements, measure
        >>> model, x = torch.nn.Linear(2, 1, bias=False).double(), torch.tensor([[1.0, 2.0]]).double()
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (x, torch.ones(1, 1).double()))
        >>> measure(["a"], [objective]).save("tasks.safetensors")
        >>> load_measurements("tasks.safetensors").grams("weight").tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """
    target = _safetensors(path)
    beside = target.with_suffix(".json")
    for one in (target, beside):
        if not one.is_file():
            raise TvgradError(f"{one} is missing: measurements are a .safetensors and a .json file of one name")
    if beside.stat().st_size > MOST_BYTES:
        raise TvgradError(f"{beside} is too large for measurements: give the file that tvgrad plan --save wrote")
    try:
        said = _FIELDS(parse_json(beside.read_text(encoding="utf-8")), "measurements")
    except ValueError as error:
        raise TvgradError(f"{beside} is no file of measurements ({error})") from None
    if sha256_of(target) != said["sha256"]:
        raise TvgradError(f"{target} and {beside.name} do not belong together: the checksum differs")
    if len(said["tasks"]) != len(said["fisher"]) or not said["tasks"]:
        raise TvgradError(f"{beside} names {len(said['tasks'])} tasks and {len(said['fisher'])} kinds of diagonals")
    file = TensorFile(target)
    _check_file(target, said, file)
    told = {name: file.read(PLAN + name).double().numpy() if PLAN + name in file.places else None for name in PLANNED}
    planned = file.read(PLAN + COEFFICIENT).item() if PLAN + COEFFICIENT in file.places else None
    return Measurements(
        tuple(said["tasks"]),
        tuple(said["fisher"]),
        said["at"],
        said["norms"],
        told["slopes"],
        told["pairs"],
        {key: tuple(place.shape) for key, place in file.places.items() if not key.startswith(PLAN)},
        file.read,
        planned,
    )


def _check_file(target: Path, said: Mapping[str, Any], file: TensorFile) -> None:
    """Refuse what a file of measurements cannot hold; of large tensors their names alone, which are read when used."""
    tasks = len(said["tasks"])
    wrong = None
    if len(set(said["tasks"])) < tasks:
        wrong = f"two tasks called {next(one for one in said['tasks'] if said['tasks'].count(one) > 1)!r}"
    for name, norm in said["norms"].items():
        if not (math.isfinite(norm) and norm >= 0):
            wrong = f"a norm of {norm:g} for {name!r}"
    for key, place in file.places.items():
        kind, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        if key.startswith(PLAN):
            shape = (1,) if rest == COEFFICIENT else (tasks,) * PLANNED.get(rest, -1)
            if tuple(place.shape) != shape or not torch.isfinite(file.read(key)).all():
                wrong = f"a {key!r} that is none of {tasks} tasks, or not finite"
        elif not (kind in CALLED and number in map(str, range(tasks)) and rest.count(".")):
            wrong = f"a tensor {key!r} that is no measurement of its {tasks} tasks"
    if wrong is not None:
        raise TvgradError(f"{target} is damaged or no file of measurements, for it holds {wrong}: measure again")


def _safetensors(path: str | os.PathLike[str]) -> Path:
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
