"""Methods that take measurements of the tasks, as functions on task vectors in memory, and by name."""

from __future__ import annotations

from tvgrad.merging.fisher import Fisher
from tvgrad.merging.gradient_matching import GradientMatching
from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.measured_meta_gpt import MeasuredMetaGpt
from tvgrad.merging.measured_trust_region import MeasuredTrustRegion
from tvgrad.merging.measurements import Measurements
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.regmean import RegMean
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.vectors.parameters import Weights

MEASURED_METHODS: dict[str, type[MeasuredMethod]] = {
    method.name: method for method in (Fisher, RegMean, GradientMatching, MeasuredMetaGpt, MeasuredTrustRegion)
}
"""Name -> method."""


def fisher(task_vectors: Vectors, measurements: Measurements, alpha: float = 1.0, base: Base = None) -> Weights:
    r"""Average task vectors, every coordinate weighed by its Fisher information.

    Args:
        task_vectors: each name -> tensor.
        measurements: of these tasks, in their order.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> $\alpha \sum_t F_t \tau_t / \sum_t F_t$, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import fisher, measure
        >>> model, y = torch.nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (torch.tensor([[x]]).double(), y)) for x in (1.0, 3.0)]
        >>> vectors = [{"weight": torch.tensor([[value]])} for value in (10.0, 20.0)]
        >>> fisher(vectors, measure(["a", "b"], tasks))["weight"].tolist()  # weights 1 and 9
        [[19.0]]
    """
    return merge_vectors(Fisher(measurements), task_vectors, alpha, base=base)


def regmean(
    task_vectors: Vectors, measurements: Measurements, alpha: float = 1.0, base: Base = None, *, kept: float = 0.9
) -> Weights:
    r"""Merge layers so that their outputs on every task's inputs are nearest to that task's own (RegMean).

    Args:
        task_vectors: each name -> tensor.
        measurements: of these tasks, in their order.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        kept: what entries of Gram matrices off the diagonal are multiplied with.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import measure, regmean
        >>> model, y = torch.nn.Linear(2, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> inputs = [torch.tensor([row]).double() for row in ([1.0, 0.0], [0.0, 1.0])]
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (x, y)) for x in inputs]
        >>> vectors = [{"weight": torch.tensor([row])} for row in ([5.0, 1.0], [1.0, 7.0])]
        >>> regmean(vectors, measure(["a", "b"], tasks))["weight"].round(decimals=6).tolist()
        [[5.0, 7.0]]
    """
    return merge_vectors(RegMean(measurements, kept), task_vectors, alpha, base=base)


def gradient_matching(
    task_vectors: Vectors, measurements: Measurements, alpha: float = 1.0, base: Base = None, *, prior: float = 0.1
) -> Weights:
    r"""Merge so that the tasks' gradients cancel at the result, with diagonal curvatures.

    Args:
        task_vectors: each name -> tensor.
        measurements: of these tasks, in their order.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        prior: curvature of the pretraining, in units of the mean over a tensor of the tasks' curvatures.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import gradient_matching, measure
        >>> model, y = torch.nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (torch.tensor([[x]]).double(), y)) for x in (1.0, 3.0)]
        >>> vectors = [{"weight": torch.tensor([[value]])} for value in (10.0, 20.0)]
        >>> gradient_matching(vectors, measure(["a", "b"], tasks), prior=0.0)["weight"].tolist()
        [[19.0]]
    """
    return merge_vectors(GradientMatching(measurements, prior), task_vectors, alpha, base=base)


def measured_meta_gpt(
    task_vectors: Vectors, measurements: Measurements, alpha: float = 1.0, base: Base = None
) -> Weights:
    r"""Average task vectors, each weighed by how its own loss is curved along it (MetaGPT, measured).

    Args:
        task_vectors: each name -> tensor.
        measurements: of these tasks, in their order, with the pairs of a plan.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import measure, measured_meta_gpt
        >>> model, y = torch.nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (torch.tensor([[x]]).double(), y)) for x in (1.0, 3.0)]
        >>> vectors = [{"weight": torch.tensor([[value]]).double()} for value in (10.0, 20.0)]
        >>> plan = tvgrad.plan(tasks, task_vectors=vectors, pairs=True)
        >>> measured = measure(["a", "b"], tasks, slopes=plan.slopes, pairs=plan.pairs)
        >>> measured_meta_gpt(vectors, measured)["weight"].round(decimals=6).tolist()  # weights 1 and 9
        [[19.0]]
    """
    return merge_vectors(MeasuredMetaGpt(measurements), task_vectors, alpha, base=base)


def measured_trust_region(
    task_vectors: Vectors, measurements: Measurements, alpha: float = 1.0, base: Base = None, *, share: float = 0.01
) -> Weights:
    r"""Add task vectors up, but for the coordinates where one task would hurt another most (TATR).

    Args:
        task_vectors: each name -> tensor.
        measurements: of these tasks, in their order.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        share: of each tensor's coordinates that are left out, rounded down.

    Returns:
        Name -> alpha times the sum, 0 where $\sum_{i \ne j} \mathbb{E} |\nabla \ell_i| |\tau_j|$ is largest, or base
        plus that.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.merging import measure, measured_trust_region
        >>> model, y = torch.nn.Linear(2, 1, bias=False).double(), torch.ones(1, 1).double()
        >>> inputs = [torch.tensor([row]).double() for row in ([9.0, 1.0], [0.0, 1.0])]
        >>> tasks = [tvgrad.Objective(model, torch.nn.MSELoss(), (x, y)) for x in inputs]
        >>> vectors = [{"weight": torch.tensor([row])} for row in ([5.0, 1.0], [4.0, 1.0])]
        >>> measured_trust_region(vectors, measure(["a", "b"], tasks), share=0.5)["weight"].tolist()
        [[0.0, 2.0]]
    """
    return merge_vectors(MeasuredTrustRegion(measurements, share), task_vectors, alpha, base=base)
