"""Methods that evaluate the tasks' data while they merge, as functions on task vectors in memory, and by name."""

from __future__ import annotations

from collections.abc import Sequence

from tvgrad.merging.ada_merging import AdaMerging
from tvgrad.merging.exact_gradient_matching import ExactGradientMatching
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.merging.with_objectives import ObjectiveMethod
from tvgrad.problem.objective import Objective
from tvgrad.vectors.parameters import Weights

OBJECTIVE_METHODS: dict[str, type[ObjectiveMethod]] = {
    method.name: method for method in (AdaMerging, ExactGradientMatching)
}
"""Name -> method."""


def ada_merging(
    task_vectors: Vectors,
    objectives: Sequence[Objective],
    alpha: float = 1.0,
    base: Base = None,
    *,
    start: float = 0.3,
    rate: float = 1e-3,
    steps: int = 500,
) -> Weights:
    """Add task vectors with coefficients that make the merged model sure of its answers (AdaMerging, task by task).

    Args:
        task_vectors: one or more, each name -> tensor.
        objectives: of `tvgrad.merging.ada_merging.mean_entropy`, on unlabelled inputs of each task.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        start: every coefficient before the first step.
        rate: of Adam.
        steps: of Adam.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import ada_merging
        >>> from tvgrad.merging.ada_merging import mean_entropy
        >>> model, x = torch.nn.Linear(1, 2, bias=False).double(), torch.ones(1, 1).double()
        >>> objective = tvgrad.Objective(model, mean_entropy, (x, torch.zeros(1)))
        >>> vectors = [{"weight": torch.tensor([[1.0], [-1.0]]).double()}]
        >>> merged = ada_merging(vectors, [objective], steps=10, rate=0.1)["weight"]
        >>> bool(merged[0] > 1.0 or merged[0] < -0.3)  # further along, whichever way is surer
        True
    """
    return merge_vectors(AdaMerging(tuple(objectives), start, rate, steps), task_vectors, alpha, base=base)


def exact_gradient_matching(
    task_vectors: Vectors,
    objectives: Sequence[Objective],
    alpha: float = 1.0,
    base: Base = None,
    *,
    prior: float = 0.1,
) -> Weights:
    """Merge so that the tasks' gradients cancel at the result, with whole Hessians.

    Args:
        task_vectors: one or more, each name -> tensor.
        objectives: of the tasks, at the pretrained weights.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        prior: curvature of the pretraining, in units of the mean curvature along the task vectors.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import exact_gradient_matching
        >>> model, y = torch.nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (torch.tensor([[x]]).double(), y)) for x in (1.0, 3.0)]
        >>> vectors = [{"weight": torch.tensor([[value]]).double()} for value in (10.0, 20.0)]
        >>> exact_gradient_matching(vectors, tasks, prior=0.0)["weight"].round(decimals=6).tolist()
        [[19.0]]
    """
    return merge_vectors(ExactGradientMatching(tuple(objectives), prior), task_vectors, alpha, base=base)
