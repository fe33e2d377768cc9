"""GradientSum: the sum of the gradients that an optimizer consumes, kept wide without paying for it at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch

from tvgrad.files.writing import Stream
from tvgrad.vectors.parameters import BLOCK, Weights, add_in_blocks, dense

FOLD = 16
"""Gradients that are summed in their own precision (at least float32) before they enter the float64 sum.

A float64 addition at every step costs four times a float32 one, and the rounding of sixteen float32 additions is of the
size of the rounding of the float32 file that the sum goes to. The float64 sum lies on the CPU.
"""
FOLDING = ("cpu", "mps")
"""Device types that do so: MPS has no float64. Others add in float64 at once, in two thirds of the memory, of which a
script may have none to spare there; their additions are quick beside their matrix products."""


class GradientSum:
    """A sum of gradients, by parameter. Its memory is reused from one sum to the next."""

    def __init__(
        self, folding: bool = False, far: Weights | None = None, settle: Callable[[], None] = lambda: None
    ) -> None:
        """Start at nothing.

        Args:
            folding: spend little time at each step, beside a script that must not wait: see `FOLD`. Without it,
                gradients narrower than float32 are summed in float32, all others in float64.
            far: float64 memory for what is folded, which this sum shares with the one before it.
            settle: returns when the one before it is needed no longer.
        """
        self._folding = folding
        self._near: Weights = {}
        self._far: Weights = {} if far is None else far
        self._settle = settle
        self._counts: dict[str, int] = {}
        self._folded: set[str] = set()

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self._counts)

    @property
    def on_cpu(self) -> bool:
        """Whether all of it lies on the CPU, where a thread may read it while another sum grows."""
        return all(near.device.type == "cpu" for near in self._near.values())

    @torch.no_grad()
    def add(self, gradients: Mapping[str, torch.Tensor], divisor: float | None = None) -> None:
        """Add one gradient. A sum of one is that gradient, bit for bit.

        Args:
            gradients: name -> gradient; parameters without one are left out.
            divisor: a loss scale that the gradients still carry.
        """
        into, what = [], []
        for name, gradient in gradients.items():
            plain = dense(gradient) if divisor is None else dense(gradient) / divisor
            if self._folding and self._counts.get(name, 0) >= FOLD and self._near[name].dtype != torch.float64:
                self._fold(name)
            if not self._counts.get(name):
                self._start(name, plain)
            elif plain.dtype == self._near[name].dtype:
                into.append(self._near[name])
                what.append(plain)
            else:
                add_in_blocks(self._near[name], plain)
            self._counts[name] = self._counts.get(name, 0) + 1
        if into:
            torch._foreach_add_(into, what)

    def clear(self) -> None:
        """Start a new sum in the same memory."""
        self._counts.clear()
        self._folded.clear()

    def total(self, like: Mapping[str, torch.Tensor]) -> Weights:
        """Read the sum, as it is stored: in the parameter's dtype, or float32 where that is narrower.

        Args:
            like: the parameters.

        Returns:
            Name -> CPU tensor, in the order of `like`; zero for a parameter that had no gradient.
        """
        stream = self.stream(like)
        return {name: _joined(stream.blocks(name)).reshape(shape) for name, (shape, _) in stream.places.items()}

    def stream(self, like: Mapping[str, torch.Tensor]) -> Stream:
        """Read the sum in blocks, as long as it is not changed.

        Args:
            like: the parameters.

        Returns:
            What `total` returns, for a file.
        """
        dtypes = {name: torch.float32 if one.dtype.itemsize < 4 else one.dtype for name, one in like.items()}
        places = {name: (tuple(one.shape), dtypes[name]) for name, one in like.items()}
        return Stream(places, lambda name: self._blocks(name, *places[name]))

    @torch.no_grad()
    def _blocks(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        size = math.prod(shape)
        for start in range(0, max(size, 1), BLOCK):  # one block of an empty tensor
            part = slice(start, min(start + BLOCK, size))
            if name not in self._counts:
                yield torch.zeros(part.stop - start, dtype=dtype)
                continue
            near = self._near[name].reshape(-1)[part]
            total = _wide_sum(self._far[name].reshape(-1)[part], near) if name in self._folded else near
            yield total.to("cpu", dtype)

    def _start(self, name: str, gradient: torch.Tensor) -> None:
        wide = self._summed_in(gradient)
        held = self._near.get(name)
        if held is None or held.shape != gradient.shape or held.dtype != wide or held.device != gradient.device:
            self._near[name] = torch.empty_like(gradient, dtype=wide, requires_grad=False)
        self._near[name].copy_(gradient)

    def _summed_in(self, gradient: torch.Tensor) -> torch.dtype:
        """The dtype in which the next gradients are added."""
        narrow = gradient.dtype.itemsize < 4
        if self._folding and gradient.device.type in FOLDING:
            return torch.float32 if narrow else gradient.dtype
        return torch.float32 if narrow and not self._folding else torch.float64

    def _fold(self, name: str) -> None:
        if name in self._folded:
            add_in_blocks(self._far[name], self._near[name])
        else:
            if not self._folded:
                self._settle()
            held = self._far.get(name)
            if held is None or held.shape != self._near[name].shape:
                self._far[name] = self._near[name].to("cpu", torch.float64, copy=True)
            else:
                held.copy_(self._near[name])
            self._folded.add(name)
        self._counts[name] = 0


def _joined(blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    parts = list(blocks)
    # Numpy copies, for the reason below.
    return parts[0] if len(parts) == 1 else torch.from_numpy(np.concatenate([part.numpy() for part in parts]))


def _wide_sum(far: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    # Numpy adds (in float64, rounded to near's dtype), because this runs beside the training: torch would open a second
    # team of OpenMP threads, and from then on the teams of a process that has more threads than cores sleep between two
    # operations, the script's too.
    total = np.empty(near.shape, dtype=np.float32)
    np.add(far.numpy(), near.cpu().numpy(), out=total, dtype=np.float64, casting="same_kind")
    return torch.from_numpy(total)
