"""Crew: processes of which the first runs a program, and the others share its objectives' passes over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed

from tvgrad.errors import TvgradError
from tvgrad.problem.ranks import Alone, LostRank, Ranks, connected
from tvgrad.vectors.parameters import Weights

BEGIN, END, FAILED = "begin", "end", "failure"

Made = TypeVar("Made")


class Shared(Protocol):
    """What a process must be able to do that serves: an objective."""

    device: torch.device

    @property
    def initial(self) -> Weights:
        """The weights at construction."""

    def use_chunk_size(self, size: int | None) -> None:
        """Fix the chunk size."""

    def value(self, at: Weights) -> float:
        """Compute the loss."""

    def gradient(self, at: Weights) -> Weights:
        """Compute the gradient."""

    def hvps(self, vectors: Sequence[Weights], at: Weights) -> list[Weights]:
        """Multiply the Hessian with vectors."""


class Crew:
    """A group whose first process leads.

    Every process builds the same objectives in the same order. Then the others `serve`, and whatever the first one asks
    of its objectives they are told, until it says `end`: nothing else of the program has to keep step.

    Attributes:
        group: the process group.
        rank: of this process.
        count: of processes.
        leads: whether this process is the first.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        """Join.

        Args:
            group: an initialised process group.
        """
        self.group = group
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)
        self.leads = self.rank == 0
        self._joined = 0

    def join(self, device: torch.device) -> LedRanks:
        """Give the next objective its place.

        Args:
            device: where it computes.

        Returns:
            Its processes.
        """
        self._joined += 1
        return LedRanks(self, device, self._joined - 1)

    def tell(self, message: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """Send a message from the first process to the others.

        Args:
            message: of the first process.

        Returns:
            The same in every process.
        """
        told = [message]
        with connected():
            distributed.broadcast_object_list(told, distributed.get_global_rank(self.group, 0), group=self.group)
        (found,) = told
        assert found is not None
        return found

    def send(self, vector: Weights) -> Weights:
        """Send a vector from the first process to the others.

        Args:
            vector: name -> tensor; in the others it is written over.

        Returns:
            The same in every process.
        """
        whole = {name: tensor.contiguous() for name, tensor in vector.items()}
        with connected():
            for tensor in whole.values():
                distributed.broadcast(tensor, distributed.get_global_rank(self.group, 0), group=self.group)
        return whole

    def same(self, make: Callable[[], Made], describe: Callable[[Made], Mapping[str, str]]) -> Made:
        """Let every process make something, and compare what it made; of every process.

        Args:
            make: what each process makes, from files of its own.
            describe: what all must have in common: name -> description.

        Returns:
            What this process made.

        Raises:
            TvgradError: a process failed to make it, or made another; the same sentence in every process that made it.
        """
        failed: Exception | None = None
        try:
            made = make()
            own: dict[str, str] = {"version of tvgrad": metadata.version("tvgrad"), **describe(made)}
        except Exception as error:  # noqa: BLE001 - raised again when the others know of it
            failed, own = error, {FAILED: str(error) or type(error).__name__}
        first, *others = self.gathered(own)
        if failed is not None:
            raise failed
        for rank, found in enumerate([first, *others]):
            if FAILED in found:
                raise TvgradError(f"process {rank} failed: {found[FAILED]}")
            name = next((name for name in first if found[name] != first[name]), None)
            if name is not None:
                raise TvgradError(
                    f"process {rank} has another {name} than process 0 ({found[name]} and {first[name]}): start all "
                    "processes with the same files and the same installation"
                )
        return made

    def gathered(self, own: Any) -> list[Any]:
        """Collect what every process has; of every process.

        Args:
            own: a value that can be pickled; what the others send is of the same program.

        Returns:
            Those of all, by rank.
        """
        found: list[Any] = [None] * distributed.get_world_size(self.group)
        with connected():
            distributed.all_gather_object(found, own, group=self.group)
        return found

    def begin(self) -> bool:
        """Wait until the first process has checked what it alone can check; of every process, before any objective.

        Returns:
            Whether the program goes on.
        """
        return self.tell((BEGIN,) if self.leads else None) == (BEGIN,)

    def end(self) -> None:
        """Let the others go; of the first process, once and last."""
        try:
            self.tell((END,))
        except LostRank:
            return  # whoever is gone need not be told

    def serve(self, objectives: Sequence[Shared]) -> None:
        """Do what the first process asks for, until it ends.

        Args:
            objectives: all that were made, in order.

        Raises:
            LostRank: the first process is gone.
        """
        while True:
            method, *rest = self.tell()
            if method == END:
                return
            place, size, count = rest
            objective = objectives[place]
            objective.use_chunk_size(size)
            empty = [
                {
                    name: torch.empty(tensor.shape, dtype=tensor.dtype, device=objective.device)
                    for name, tensor in objective.initial.items()
                }
                for _ in range(1 + count)
            ]
            weights, *vectors = [self.send(one) for one in empty]
            try:
                if method == "hvps":
                    objective.hvps(vectors, weights)
                else:
                    getattr(objective, method)(weights)
            except LostRank:
                raise
            except Exception:  # noqa: BLE001, S112 - every process knows of it, and the first one says it
                continue


class LedRanks(Ranks):
    """The processes of one objective of a crew."""

    def __init__(self, crew: Crew, device: torch.device, place: int) -> None:
        """Join.

        Args:
            crew: of the program.
            device: where this process computes.
            place: of the objective among the program's.
        """
        super().__init__(crew.group, device)
        self._crew, self._place = crew, place

    def _tell(self, method: str, chunk_size: int, weights: Weights | None, vectors: Sequence[Weights]) -> None:
        """Tell the others what is computed; of the first process."""
        if method and self._crew.leads:
            assert weights is not None
            self._crew.tell((method, self._place, chunk_size, len(vectors)))
            for vector in (weights, *vectors):
                self._crew.send(vector)


def ranks_of(group: distributed.ProcessGroup | Crew | None, device: torch.device) -> Alone:
    """Find who shares the work.

    Args:
        group: a process group or crew; None is this process alone.
        device: where this process computes.

    Returns:
        The processes.
    """
    if group is None:
        return Alone()
    return group.join(device) if isinstance(group, Crew) else Ranks(group, device)
