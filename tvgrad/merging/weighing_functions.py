"""Methods that weigh whole task vectors, as functions on vectors in memory."""

from __future__ import annotations

from tvgrad.merging.centred_clip import CentredClip
from tvgrad.merging.disentangled import Disentangled
from tvgrad.merging.fed_nova import FedNova
from tvgrad.merging.lines import Lines
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.meta_gpt import MetaGpt
from tvgrad.merging.slerp import Slerp
from tvgrad.merging.vector_bases import VectorBases
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.vectors.parameters import Weights


def slerp(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, toward: float = 0.5) -> Weights:
    """Interpolate two task vectors along the arc between them, tensor by tensor (SLERP).

    Args:
        task_vectors: two, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        toward: share of the way from the first to the second.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import slerp
        >>> vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
        >>> slerp(vectors, toward=1 / 3)["w"].round(decimals=4).tolist()  # 30 degrees
        [0.866, 0.5]
    """
    return merge_vectors(Slerp(toward), task_vectors, alpha, base=base)


def lines(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, first: float | None = None, last: float = 1.0
) -> Weights:
    """Add task vectors, the more of them the deeper a layer lies (LiNeS).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        first: factor of the first block; by default 1/T.
        last: factor of the last block.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import lines
        >>> vectors = [{"0.w": torch.ones(1), "1.w": torch.ones(1), "2.w": torch.ones(1)}]
        >>> [part.item() for part in lines(vectors, first=0.0).values()]
        [0.0, 0.5, 1.0]
    """
    return merge_vectors(Lines(first, last), task_vectors, alpha, base=base)


def meta_gpt(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Add task vectors, each weighed by the square of its length (MetaGPT).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import meta_gpt
        >>> vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}]
        >>> meta_gpt(vectors)["w"].round(decimals=6).tolist()
        [0.1, 2.7]
    """
    return merge_vectors(MetaGpt(), task_vectors, alpha, base=base)


def fed_nova(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, steps: tuple[int, ...] = ()) -> Weights:
    """Average task vectors of different numbers of steps, brought to one number (FedNova).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        steps: of each task; by default all took as many.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import fed_nova
        >>> vectors = [{"w": torch.tensor([4.0])}, {"w": torch.tensor([8.0])}]
        >>> fed_nova(vectors, steps=(1, 3))["w"].round(decimals=6).tolist()
        [6.666667]
    """
    return merge_vectors(FedNova(steps), task_vectors, alpha, base=base)


def centred_clip(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, radius: float | None = None
) -> Weights:
    """Average task vectors none of which counts for more than a radius (CClip).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        radius: longest that a vector is allowed to be; by default the median of their lengths.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import centred_clip
        >>> vectors = [{"w": torch.tensor([10.0])}, {"w": torch.tensor([-2.0])}]
        >>> centred_clip(vectors, radius=4.0)["w"].tolist()
        [1.0]
    """
    return merge_vectors(CentredClip(radius), task_vectors, alpha, base=base)


def disentangled(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, penalty: float = 0.1) -> Weights:
    """Take from each task vector what all share, and add them (adaptive weight disentanglement).

    Args:
        task_vectors: two or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        penalty: of the shared vector's length.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import disentangled
        >>> vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
        >>> disentangled(vectors)["w"].round(decimals=4).abs().tolist()  # orthogonal ones share nothing
        [1.0, 1.0]
    """
    return merge_vectors(Disentangled(penalty), task_vectors, alpha, base=base)


def vector_bases(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, bases: int | None = None) -> Weights:
    """Add task vectors as fewer vectors hold them, each a mixture of theirs (task vector bases).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        bases: how many; by default half as many as tasks.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import vector_bases
        >>> vectors = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 4.0])}]
        >>> vector_bases(vectors, bases=1)["w"].round(decimals=4).tolist()  # parallel ones need one
        [3.0, 6.0]
    """
    return merge_vectors(VectorBases(bases), task_vectors, alpha, base=base)
