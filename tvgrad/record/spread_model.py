"""SpreadModel: parameters that several processes hold in parts, put together one by one, each for one of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from tvgrad.errors import TvgradError
from tvgrad.vectors.parameters import Weights
from tvgrad.vectors.spread import is_spread, own_part, owners, require_one_mesh, spread_like, whole_tensor

Result = TypeVar("Result")

PATIENCE = timedelta(seconds=60)
"""How long a process waits for the others at a point that all record."""


class SpreadModel:
    """The parameters of a model that FSDP2 (`fully_shard`) has spread over all processes.

    Whole tensors are gathered one at a time, in the order of their names in the model. Each has one process that keeps
    it: so that what a process holds and writes is its share of the model.

    Attributes:
        rank: of this process.
        count: of processes.
        sizes: name -> how many numbers the whole parameter has.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Look at the parameters.

        Args:
            parameters: name -> parameter, those that are recorded.

        Raises:
            TvgradError: they are spread in a way that is not read.
        """
        require_one_mesh(parameters)
        self._parameters = parameters
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self._owner = owners({name: int(tensor.nbytes) for name, tensor in parameters.items()}, self.count)

    def agree(self, what: str, failure: str | None = None) -> None:
        """Meet the other processes; of every process.

        Args:
            what: is about to be done, or was done.
            failure: why this process cannot go on.

        Raises:
            TvgradError: a process fails, is elsewhere, or does not come.
        """
        for rank, (there, failed) in enumerate(self.gathered((what, failure))):
            if failed is not None:
                raise TvgradError(f"process {rank} failed: {failed}")
            if there != what:
                raise TvgradError(f"process {rank} is at {there} where process {self.rank} is at {what}")

    def tried(self, action: Callable[[], Result]) -> Result:
        """Do something that may fail in some processes, and fail in all of them then; of every process.

        Args:
            action: what is done; the processes do not talk in it.

        Returns:
            What it returned.

        Raises:
            TvgradError: it failed in a process: its own error where this one is among them.
        """
        failure: Exception | None = None
        try:
            done = action()
        except (OSError, TvgradError) as error:
            failure = error
        for rank, failed in enumerate(self.gathered(None if failure is None else str(failure))):
            if failed is not None:
                raise failure or TvgradError(f"process {rank} failed: {failed}")
        return done

    def gathered(self, own: Any) -> list[Any]:
        """Collect what every process has; of every process.

        Args:
            own: a plain value.

        Returns:
            Those of all, by rank.

        Raises:
            TvgradError: a process does not come within a minute, or is gone.
        """
        found: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(found, own, group=own_group())
        except (RuntimeError, ValueError) as error:
            raise TvgradError(_why_alone(str(error))) from None
        return found

    def whole(self, parts: Mapping[str, torch.Tensor] | Callable[[str], torch.Tensor]) -> Weights:
        """Put tensors of the parameters' shapes together; of every process.

        Args:
            parts: name -> this process's part, of any floating-point dtype.

        Returns:
            The tensors that this process keeps, on the CPU.
        """
        part_of = parts if callable(parts) else parts.__getitem__
        kept: Weights = {}
        for name, parameter in self._parameters.items():
            full = whole_tensor(spread_like(part_of(name), parameter))
            if self._owner[name] == self.rank:
                kept[name] = full.detach().to("cpu", copy=True)
        return kept


def _why_alone(words: str) -> str:
    """Why a process is alone at a point, with the first sentence of what PyTorch says, without a place in its code."""
    said = re.sub(r"^\[\S*\] ", "", words.splitlines()[0]).split(". ")[0]
    return (
        f"another process does not come to the point that is recorded, or has ended ({said}); where the processes' "
        "loaders end at different steps, --steps-per-epoch tells the ends of epochs"
    )


@functools.cache
def own_group() -> Any:
    """Make the group by which recorders talk, so that they do not mix with the training; of every process at once."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def norm_of_all(total: torch.Tensor) -> torch.Tensor:
    """Finish the norm that `clip_grad_norm_` returns of gradients that are spread; of every process.

    Args:
        total: what it returned: of spread gradients each process has the norm of its part.

    Returns:
        The norm.
    """
    if not is_spread(total):
        return total
    own, placement = own_part(total).detach().double().cpu(), total.placements[0]  # type: ignore[attr-defined]
    if not placement.is_partial():
        return own
    power = float(getattr(placement, "norm_type", 2.0))
    if power == float("inf"):
        distributed.all_reduce(own, distributed.ReduceOp.MAX, group=own_group())
        return own
    sum_of_powers = own**power
    distributed.all_reduce(sum_of_powers, group=own_group())
    return sum_of_powers ** (1 / power)


def largest_of_all(own: torch.Tensor, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Finish a maximum over what this process holds; of every process.

    Args:
        own: the maximum here.
        tensors: what it was taken over.

    Returns:
        The maximum over all processes where the tensors are spread.
    """
    if any(map(is_spread, tensors)):
        distributed.all_reduce(own, distributed.ReduceOp.MAX, group=own_group())
    return own
