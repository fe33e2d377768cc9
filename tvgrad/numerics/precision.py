"""Arithmetic: the settings under which recorded numbers are computed, and what is put back afterwards.

A user's settings for speed (TF32, reduced matmul precision, autocast) make a gradient wrong by percents, and a toolkit
that consumes random numbers or leaves a setting behind changes the training that it watches.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

FP32_PARENTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
FP32_LEAVES = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))


@contextmanager
def full_precision(device: torch.device, second_order: bool = False) -> Generator[None]:
    """Put the user's settings for speed aside, record gradients, and restore every setting at the end.

    Works inside `torch.no_grad`, `torch.inference_mode` and `torch.autocast`, and leaves the generators of random
    numbers as they were.

    Args:
        device: where the numbers are computed.
        second_order: run attention under the MATH kernel, the only one with second derivatives, and weight norm
            by its formula: the second derivative of PyTorch's fused one is wrong.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(preserved_randomness(device))
        stack.enter_context(_full_float32())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # A model may compute a part of itself on the CPU whatever the device, and autocast is set for each kind apart.
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if second_order:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_PlainWeightNorm())
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Weight norm as `v * g / ||v||`; twice differentiated, `torch._weight_norm` is off by percents (seen in 2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    length = v.square().sum(others, keepdim=dim != -1).sqrt()
    return v * (g / length)


@contextmanager
def preserved_randomness(device: torch.device) -> Generator[None]:
    """Put the generators of torch, numpy and Python back at the end: reading data may draw from any of them.

    Args:
        device: a CUDA device's generator is kept too.

    Yields:
        Nothing.
    """
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' data sets draw from it
    with torch.random.fork_rng(devices=_cuda(device)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002


@contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None]:
    """Draw torch's random numbers from a seed, and put its generators back at the end.

    Args:
        seed: the seed.
        device: where random numbers are drawn, besides the CPU.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=_cuda(device)):
        # Not torch.manual_seed, which would seed devices whose state is not kept.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


@contextmanager
def _full_float32() -> Generator[None]:
    """Float32 products in float32, whichever of PyTorch's two ways of saying otherwise was used.

    The older settings are changed through their own functions, so that code inside may ask for them; a process that
    has used the newer ones cannot be asked for the older ones at all (PyTorch raises).
    """
    matmul: str | None = None
    cudnn: bool | None = None
    try:
        matmul = torch.get_float32_matmul_precision()
        cudnn = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        pass
    newer = _newer_settings()
    try:
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = False
        for key in newer:
            _set_newer(key, "ieee" if key in FP32_LEAVES else "none")
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for key, value in newer.items():
            _set_newer(key, value)


def _newer_settings() -> dict[tuple[str, str], str]:
    """The newer precision settings, each as it was set itself (asking tells what a setting inherits as well)."""
    get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    if get is None:  # PyTorch before 2.9
        return {}
    found: dict[tuple[str, str], str] = {}
    try:
        for key in FP32_PARENTS:
            found[key] = get(*key)
            _set_newer(key, "none")
        found |= {key: get(*key) for key in FP32_LEAVES}
    finally:
        for key in FP32_PARENTS:
            if key in found:
                _set_newer(key, found[key])
    return found


def _set_newer(key: tuple[str, str], value: str) -> None:
    change: Any = getattr(torch._C, "_set_fp32_precision_setter")  # noqa: B009 - absent in older PyTorch
    change(*key, value)
