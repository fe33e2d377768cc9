"""Names, groups and inner products of a model's trainable parameters.

A weight vector is a dict from `state_dict` name to tensor. Tied parameters appear once, under the first name that
`named_parameters` gives them; integer parameters and buffers never appear.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.vectors.spread import is_spread, of_all_parts, own_part

Weights = dict[str, torch.Tensor]
"""Name -> tensor, keyed like `state_dict`."""

ALL = "all"
"""The name that stands for the whole model among the groups."""

BLOCK = 1 << 18
"""Elements that are converted at once where a whole tensor need not be."""

SHARDED = ("DTensor", "FlatParameter")
ONE_PART = (
    "spread over several processes (FSDP), and whole tensors are wanted: trace the training script (`tvgrad trace "
    "--out DIR -- torchrun ...`), train with DistributedDataParallel, or use --from-checkpoints"
)


def all_finite(tensor: torch.Tensor) -> bool:
    """Say whether no value is a NaN or an infinity.

    Args:
        tensor: any shape.

    Returns:
        True where all values are finite.
    """
    plain = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # float8 has no sum
    # One sum is not finite where any value is not; the reverse (an overflow) is settled by the second look.
    return math.isfinite(float(plain.sum())) or bool(torch.isfinite(plain).all())


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Find a tensor that holds an infinity or NaN.

    Args:
        tensors: name -> tensor; those on the meta device hold nothing.

    Returns:
        The name of the first; None where all are finite.
    """
    held = ((name, tensor.detach()) for name, tensor in tensors.items() if not tensor.is_meta)
    return next((name for name, tensor in held if not all_finite(tensor)), None)


def trainable_parameters(model: nn.Module, spread: bool = False) -> dict[str, nn.Parameter]:
    """List the parameters that fine-tuning moves, each once.

    Args:
        model: any module.
        spread: whether each process may hold a part of them only.

    Returns:
        Name -> parameter, for floating-point parameters that require a gradient, in the model's own order.

    Raises:
        TvgradError: the model has none, one of them is complex, or each process holds a part of them only.
    """
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ in SHARDED and not (spread and is_spread(parameter)):
            raise TvgradError(f"{name} is {ONE_PART}")
        if parameter.requires_grad and parameter.is_complex():
            raise TvgradError(f"{name} is a complex parameter: keep its real and imaginary parts (torch.view_as_real)")
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":  # its parameters may look like any other
            raise TvgradError(f"{name or 'the model'} is {ONE_PART}")
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    if not found:
        raise TvgradError(
            f"the model ({type(model).__name__}) has no trainable parameters: set requires_grad on what is to be tuned"
        )
    return found


def weights_of(model: nn.Module) -> Weights:
    """Copy the trainable parameters' present values.

    Args:
        model: any module.

    Returns:
        Name -> detached clone, on the parameter's device and in its dtype.

    Raises:
        TvgradError: the model has no trainable parameters.
    """  # noqa: DOC502 - raised by trainable_parameters
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Find the second names of tied parameters.

    Args:
        model: any module.

    Returns:
        Alias -> the name under which the parameter is counted.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def frozen_state(model: nn.Module, spread: bool = False) -> Weights:
    """Collect what a complete checkpoint holds besides the trainable parameters.

    Args:
        model: any module.
        spread: whether each process may hold a part of them only.

    Returns:
        Name -> detached tensor: frozen parameters and persistent buffers, tied names once.
    """
    trainable = trainable_parameters(model, spread)
    tied = tied_names(model)
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and name not in trainable and name not in tied
    }


def group_names(names: Iterable[str], pattern: str | None = None) -> dict[str, str]:
    """Assign each parameter to its layer group.

    The group is the name up to its first purely numeric part (`blocks.3.attn.qkv.weight` -> `blocks.3`), or else the
    module that holds the parameter (`head.weight` -> `head`).

    Args:
        names: parameter names.
        pattern: a regular expression that is searched in each name instead; the group is its first capturing group,
            or the whole match; names without a match fall into `other`.

    Returns:
        Name -> group, in the order given.

    Raises:
        TvgradError: the pattern is not a regular expression.
    """
    if pattern is None:
        return {name: _group_of(name) for name in names}
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # a count too large, parts nested too deeply
        raise TvgradError(f"--groups {pattern!r} is not a regular expression: {error}") from None
    groups = {}
    for name in names:
        match = compiled.search(name)
        found = None if match is None else next((part for part in match.groups() if part), match.group())
        groups[name] = _not_all(found or "other")
    return groups


def _group_of(name: str) -> str:
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit():
            return _not_all(".".join(parts[: position + 1]))
    return _not_all(".".join(parts[:-1]) or name)


def _not_all(group: str) -> str:
    """Keep the name `all` for the whole model."""
    return f"{group} (block)" if group == ALL else group


def inner_product(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """Euclidean inner product of two weight vectors, accumulated in float64.

    Args:
        left: name -> tensor.
        right: name -> tensor, with the same names and shapes.

    Returns:
        The sum over all coordinates of left times right; of spread tensors over all processes, which all ask.
    """
    parts = (
        torch.dot(*(own_part(one.detach()).double().flatten() for one in (tensor, right[name])))
        for name, tensor in left.items()
    )
    return math.fsum(of_all_parts(math.fsum(map(float, parts)), left.values()))


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Make a sparse tensor dense: the gradient of an embedding may be one.

    Args:
        tensor: of any layout.

    Returns:
        The tensor itself where it is dense.
    """
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def add_in_blocks(into: torch.Tensor, what: torch.Tensor, scale: float = 1.0) -> None:
    """Add a tensor of another dtype in place.

    On a CPU, PyTorch would first make a copy of the whole tensor in the wider dtype.

    Args:
        into: the tensor that is changed.
        what: a tensor of its shape.
        scale: times this.
    """
    small = into.numel() <= BLOCK or not into.is_contiguous()
    if small or into.dtype == what.dtype or into.device.type != "cpu":
        into.add_(what, alpha=scale)
        return
    target, source = into.view(-1), what.reshape(-1)
    for start in range(0, len(target), BLOCK):
        target[start : start + BLOCK].add_(source[start : start + BLOCK], alpha=scale)


def norm(vector: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of a weight vector, accumulated in float64.

    Args:
        vector: name -> tensor.

    Returns:
        The square root of the sum of squares over all coordinates; of spread tensors over all processes, each of which
        asks.
    """
    parts = [own_part(tensor.detach()) for tensor in vector.values()]
    own = math.hypot(*(float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts))
    return math.hypot(*of_all_parts(own, vector.values()))


def cosine(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """Cosine of the angle between two weight vectors.

    Args:
        left: name -> tensor.
        right: name -> tensor, with the same names and shapes.

    Returns:
        A number in [-1, 1], or NaN where one of them is zero or not finite.
    """
    return cosine_from(inner_product(left, right), norm(left) * norm(right))


def cosine_from(product: float, lengths: float) -> float:
    """Make a cosine of an inner product that is known.

    Args:
        product: of two vectors.
        lengths: of one times that of the other.

    Returns:
        Their ratio, within [-1, 1] whatever was rounded; NaN where a vector is zero or not finite.
    """
    if not (lengths > 0 and math.isfinite(lengths) and math.isfinite(product)):
        return math.nan  # Python's min and max would make 1 of NaN
    return max(-1.0, min(1.0, product / lengths))


def same_names_and_shapes(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> str | None:
    """Compare two weight vectors' names and shapes.

    Args:
        left: name -> tensor.
        right: name -> tensor.

    Returns:
        None when they agree, otherwise half a sentence about the first difference.
    """
    for name in [*left, *right]:
        if name not in left or name not in right:
            return f"{name!r} is in one and not in the other"
        if left[name].shape != right[name].shape:
            return f"{name!r} has shape {tuple(left[name].shape)} in one and {tuple(right[name].shape)} in the other"
    return None
