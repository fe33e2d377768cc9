"""What a run can hold of a model, said before any training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import DTYPES
from tvgrad.wording import printable

_STORED = frozenset(DTYPES.values())


def require_storable(model: nn.Module) -> None:
    """Refuse a model of which a parameter or a persistent buffer cannot be written and read again.

    Args:
        model: any module.

    Raises:
        TvgradError: one has no values yet, another layout or format than files have, or a name that they reserve.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if is_lazy(tensor):
            raise TvgradError(f"{printable(name)} has no shape yet: run the model once on a batch before recording")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):  # extra state may be anything, and is not recorded
            why = _why_not(name, tensor)
            if why is not None:
                raise TvgradError(f"{printable(name)} {why}")


def storable(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor can be written and read again.

    Args:
        tensor: it.

    Returns:
        Whether it can.
    """
    return _why_not("", tensor) is None


def _why_not(name: str, tensor: torch.Tensor) -> str | None:
    if name == "__metadata__":
        return "has a name that safetensors files reserve: rename the parameter or buffer"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name with half a character (a lone surrogate): rename the parameter or buffer"
    if tensor.is_meta:
        return "is on the meta device and has no values: load the weights before recording"
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is a {kind} tensor, and files hold dense ones: register it with persistent=False, or make it dense"
    if tensor.is_quantized or tensor.dtype not in _STORED:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"is of dtype {kind}, which cannot be recorded: register it with persistent=False, or convert it"
    return None
