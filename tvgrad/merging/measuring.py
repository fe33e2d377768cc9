"""Measuring: what tasks' data says of weights, taken where the data is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.merging.measurements import AT, CALLED, LEADING, Measurements, key_of, kind_task_name
from tvgrad.problem.objective import Objective
from tvgrad.vectors.parameters import Weights


def measure(
    names: Sequence[str],
    objectives: Sequence[Objective],
    weights: Sequence[Mapping[str, torch.Tensor]] | None = None,
    *,
    slopes: NDArray[np.float64] | None = None,
    pairs: NDArray[np.float64] | None = None,
    planned: float | None = None,
) -> Measurements:
    """Measure tasks.

    Of each: an exact Fisher diagonal (empirical where the loss is no known likelihood) and the Gram matrices of its
    layers' inputs, taken at its fine-tuned weights as Fisher merging and RegMean are defined; and the mean magnitudes
    of its gradients at the pretrained weights, which TATR takes.

    Args:
        names: of the tasks.
        objectives: one a task, at the shared pretrained weights.
        weights: fine-tuned ones of each task; by default measurements are taken at the pretrained weights.
        slopes: of a plan (`tvgrad.plan`), kept with the measurements.
        pairs: likewise.
        planned: the plan's coefficient, likewise.

    Returns:
        The measurements, in memory.

    Raises:
        TvgradError: there is no task, two have one name, single samples have no gradients, or what was measured is not
            finite.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import measure
        >>> model, x = torch.nn.Linear(2, 1, bias=False).double(), torch.tensor([[1.0, 2.0]]).double()
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), (x, torch.ones(1, 1).double()))
        >>> measure(["a"], [objective]).grams("weight").tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """
    if not objectives or len(names) != len(objectives):
        raise TvgradError(f"{len(names)} names were given for {len(objectives)} tasks: give one for each, at least one")
    check_names(names)
    found: Weights = {}
    kinds = []
    for task, objective in enumerate(objectives):
        at = None if weights is None else weights[task]
        try:
            diagonal, kind = objective.fisher_diagonal(at), "exact"
        except UnsupportedModel:
            diagonal, kind = objective.fisher_diagonal(at, "empirical"), "empirical"
        kinds.append(kind)
        found |= {key_of("fisher", task, name): part.cpu() for name, part in diagonal.items()}
        found |= {key_of("gram", task, name): part.cpu() for name, part in objective.gram_inputs(at).items()}
        found |= {key_of("magnitude", task, name): part.cpu() for name, part in objective.gradient_magnitudes().items()}
    for key, part in found.items():
        if not torch.isfinite(part).all():
            kind, task, name = kind_task_name(key)
            raise TvgradError(
                f"{CALLED[kind]} of {name!r} of task {names[task]!r} are not finite: measure in float64, or look for a "
                "root, a logarithm or a quotient at 0 in the model or its loss"
            )
    start = objectives[0].initial
    return Measurements(
        tuple(names),
        tuple(kinds),
        AT[0] if weights is not None else AT[1],
        {name: float(torch.linalg.vector_norm(tensor.double())) for name, tensor in start.items()},
        slopes,
        pairs,
        {key: tuple(part.shape) for key, part in found.items()},
        found.__getitem__,
        planned,
        None if weights is None else tuple(_moved(start, at) for at in weights),
    )


def _moved(start: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """How far fine-tuning went in each tensor's first elements."""
    return {
        name: float(torch.linalg.vector_norm(_leading(tuned[name]) - _leading(tensor)))
        for name, tensor in start.items()
    }


def _leading(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[:LEADING].double().cpu()


def check_names(names: Sequence[str]) -> None:
    """Refuse names of tasks by which measurements could not be told apart.

    Args:
        names: of the tasks.

    Raises:
        TvgradError: two are the same.
    """
    for name in names:
        if list(names).count(name) > 1:
            raise TvgradError(
                f"two tasks are called {name!r}, and measurements are found by the names of tasks: measure them apart"
            )
