"""The file of measurements: opened, and refused where it is damaged or something else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.fields import list_of, mapping_of, number, one_of, parse_json, record, text
from tvgrad.files.atomic import sha256_of
from tvgrad.files.tensors import TensorFile
from tvgrad.merging.measurements import AT, CALLED, COEFFICIENT, PLAN, PLANNED, Measurements, safetensors_path

MOST_BYTES = 2**24
KINDS = ("exact", "empirical")

_FIELDS = record(
    {
        "tasks": list_of(text),
        "fisher": list_of(one_of(KINDS)),
        "at": one_of(AT),
        "norms": mapping_of(number),
        "moved": list_of(mapping_of(number)),
        "sha256": text,
    },
    needed=("tasks", "fisher", "at", "norms", "sha256"),
)


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
    target = safetensors_path(path)
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
    if "moved" in said and len(said["moved"]) != len(said["tasks"]):
        raise TvgradError(f"{beside} names {len(said['tasks'])} tasks and what {len(said['moved'])} moved")
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
        tuple(said["moved"]) if "moved" in said else None,
    )


def _check_file(target: Path, said: Mapping[str, Any], file: TensorFile) -> None:
    """Refuse what a file of measurements cannot hold; of large tensors their names alone, which are read when used."""
    tasks = len(said["tasks"])
    wrong = None
    if len(set(said["tasks"])) < tasks:
        wrong = f"two tasks called {next(one for one in said['tasks'] if said['tasks'].count(one) > 1)!r}"
    for name, norm in (pair for part in (said["norms"], *said.get("moved", ())) for pair in part.items()):
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
