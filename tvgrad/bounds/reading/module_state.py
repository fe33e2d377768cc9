"""Module state: what can change a model's function, or move its weights, without being seen in its forward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from tvgrad.bounds.network.network import UnsupportedNetwork
from tvgrad.bounds.reading.builder import LINEAR_FORM

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def check_plain(name: str, module: nn.Module) -> None:
    """Refuse what changes a module's function or derivatives without changing its class.

    Args:
        name: of the module, for messages.
        module: the module; its own parameters and buffers are looked at, not those of its parts.

    Raises:
        UnsupportedNetwork: it has hooks or a forward of its own, all modules have hooks, or a weight has.
    """
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise UnsupportedNetwork(f"{name} has hooks, which may change what it computes: remove them")
    if any(getattr(torch_module, hooks, None) for hooks in _GLOBAL_HOOKS):
        raise UnsupportedNetwork(
            "all modules have hooks (torch.nn.modules.module.register_module_...), which may change what they compute: "
            "remove them"
        )
    if "forward" in vars(module):
        raise UnsupportedNetwork(f"{name} has a forward of its own: {LINEAR_FORM}")
    for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None:
            _check_tensor(f"{own} of {name}", tensor)
    for own in ("weight", "bias"):
        if isinstance(vars(module).get(own), torch.Tensor):
            raise UnsupportedNetwork(
                f"{own} of {name} is a plain tensor, which no optimizer of the model's parameters moves: make it an "
                "nn.Parameter or a buffer"
            )


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in {torch.Tensor, nn.Parameter, nn.Buffer} or tensor.layout != torch.strided:
        raise UnsupportedNetwork(f"{name} is a {type(tensor).__name__}: give plain dense tensors")
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise UnsupportedNetwork(f"{name} has hooks, which may change its gradient: remove them")
    if tensor.is_complex():
        raise UnsupportedNetwork(f"{name} holds complex numbers: there are bounds for real ones alone")


def check_storage(module: nn.Module, inputs: torch.Tensor) -> None:
    """Refuse weights that move together because they lie in the same memory.

    Args:
        module: the model.
        inputs: the samples, which no weight may be a part of.

    Raises:
        UnsupportedNetwork: a trained parameter shares memory with another tensor of the model, or with itself.
    """
    tensors: list[tuple[str, torch.Tensor, bool]] = [
        (name, one, one.requires_grad) for name, one in module.named_parameters()
    ]
    tensors += [(name, one, False) for name, one in module.named_buffers()]
    spans = [(*_span(one), name, trained) for name, one, trained in [*tensors, ("the inputs", inputs, False)]]
    for name, one, trained in tensors:
        if trained and one.numel() > 1 and any(s == 0 and n > 1 for s, n in zip(one.stride(), one.shape, strict=True)):
            raise UnsupportedNetwork(f"{name} is expanded, one number standing for several: give it memory of its own")
    for first, second in _overlapping(sorted(span for span in spans if span[0] < span[1])):
        raise UnsupportedNetwork(
            f"{first} and {second} lie in the same memory, so that training one moves the other: give each its own "
            "(clone it)"
        )


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last."""
    if not tensor.numel() or tensor.device.type == "meta":
        return 0, 0
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()


def _overlapping(spans: list[tuple[int, int, str, bool]]) -> Iterator[tuple[str, str]]:
    """Names of tensors whose bytes overlap, one of them trained."""
    reach: list[tuple[int, int, str, bool]] = []
    for span in spans:
        reach = [one for one in reach if one[1] > span[0]]
        yield from ((one[2], span[2]) for one in reach if one[3] or span[3])
        reach.append(span)
