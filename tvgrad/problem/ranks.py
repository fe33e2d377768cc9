"""Ranks: processes that share an objective's passes over the data, each of them a part of the chunks.

Every process has the whole data set and goes over its own chunks; sums and weights are added up in float64 over all of
them, and every process has the same result. A failure of one is a failure of all, so that none waits for ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from tvgrad.errors import TvgradError
from tvgrad.problem.samples import Samples
from tvgrad.problem.weighted_sum import WeightedSum
from tvgrad.vectors.parameters import Weights

SAME_LOSS, NARROW_LOSS = 1e-4, 0.02
"""Losses of the same samples on other devices are not as far apart, relative; in formats narrower than float32."""

AGAIN = (
    "start the command again, with --resume where a run was being recorded, on as many processes as you like: finished "
    "epochs are whole"
)
LOST = f"the connection to another process is lost ({{reason}}): it has ended or was killed; {AGAIN}"
ENDED = f"this process was told to end (SIGTERM), as torchrun does where another one has ended or was killed; {AGAIN}"


CONNECTION = ("gloo", "NCCL", "Connection closed", "Connection reset")
"""In what PyTorch says of a connection."""


class LostRank(TvgradError):
    """Another process of the group cannot be reached any more."""


class Alone:
    """One process does all the work."""

    def part(self, starts: range) -> range:
        """Choose this process's chunks.

        Args:
            starts: first positions of all chunks.

        Returns:
            All of them.
        """
        return starts

    def agreed(
        self,
        chunk_size: int | None,
        weights: Weights,
        samples: Samples,
        measure: Callable[[], int],
        look: Callable[[], tuple[float, float]] | None = None,
    ) -> int | None:
        """Compare what processes must have in common, and let them have one chunk size.

        Args:
            chunk_size: as it was given.
            weights: theta_0.
            samples: the data.
            measure: a chunk size.
            look: computes the loss of a few samples and their weight in the mean; None where that is no comparison.

        Returns:
            The chunk size; None where it is measured later.
        """
        return chunk_size

    @contextmanager
    def together(
        self, method: str = "", chunk_size: int = 0, weights: Weights | None = None, vectors: Sequence[Weights] = ()
    ) -> Generator[None]:
        """Work on this process's part.

        Args:
            method: of the objective that is computed; none where every process knows what is done.
            chunk_size: samples evaluated at once.
            weights: where.
            vectors: that are multiplied.

        Yields:
            Nothing.
        """
        yield

    def add_up(self, sums: Sequence[WeightedSum], *numbers: float) -> list[float]:
        """Add up over all processes.

        Args:
            sums: of this process; in place.
            numbers: of this process.

        Returns:
            The numbers' totals.
        """
        return list(numbers)


class Ranks(Alone):
    """The processes of a group.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
    """

    def __init__(self, group: distributed.ProcessGroup, device: torch.device) -> None:
        """Join.

        Args:
            group: an initialised process group; all its processes make the same calls in the same order.
            device: where this process computes; a backend of GPUs talks from there.
        """
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)
        self._group, self._device = group, device

    def part(self, starts: range) -> range:
        """Choose this process's chunks: every so many, so that a costly stretch of the data is shared too.

        Args:
            starts: first positions of all chunks.

        Returns:
            Those of this process; none where there are more processes than chunks.
        """
        return starts[self.rank :: self.count]

    def agreed(
        self,
        chunk_size: int | None,
        weights: Weights,
        samples: Samples,
        measure: Callable[[], int],
        look: Callable[[], tuple[float, float]] | None = None,
    ) -> int | None:
        """Compare what processes must have in common, and let the first one choose a chunk size for all.

        Args:
            chunk_size: as it was given.
            weights: theta_0.
            samples: the data.
            measure: a chunk size.
            look: computes the loss of a few samples and their weight in the mean; None where that is no comparison.

        Returns:
            The chunk size.

        Raises:
            TvgradError: a process has another model, loss or data than the first; the same sentence in every process.
        """
        first, *others = self.gathered({"chunk size": chunk_size, **facts_of(weights, samples)})
        for rank, found in enumerate(others, start=1):
            for name, value in found.items():
                if value != first[name]:
                    raise TvgradError(
                        f"process {rank} has another {name} than process 0 ({value} and {first[name]}): all processes "
                        "must build the same objective (seed what is drawn at random)"
                    )
        if look is not None:
            with self.together():
                own = look()
            self.require_same_loss(own, weights)
        if chunk_size is None:
            return int(self.gathered(measure() if self.rank == 0 else None)[0])
        return chunk_size

    def require_same_loss(self, own: tuple[float, float], weights: Weights) -> None:
        """Refuse a process with another loss of the same samples; of every process.

        Args:
            own: the loss of a few samples and their weight in the mean.
            weights: where; their formats count.

        Raises:
            TvgradError: there is one; the same sentence in every process.
        """  # noqa: DOC502 - raised by _require_same_loss
        narrow = any(tensor.dtype.itemsize < 4 for tensor in weights.values())
        _require_same_loss(self.gathered(own), NARROW_LOSS if narrow else SAME_LOSS)

    def gathered(self, own: Any) -> list[Any]:
        """Collect what every process has; of every process.

        Args:
            own: a plain value.

        Returns:
            Those of all, by rank.

        Raises:
            LostRank: another process has ended.
        """  # noqa: DOC502 - raised by connected
        found: list[Any] = [None] * self.count
        with connected():
            distributed.all_gather_object(found, own, group=self._group)
        return found

    @contextmanager
    def together(
        self, method: str = "", chunk_size: int = 0, weights: Weights | None = None, vectors: Sequence[Weights] = ()
    ) -> Generator[None]:
        """Work on this process's part; afterwards all know whether all have done theirs.

        Args:
            method: of the objective that is computed; none where every process knows what is done.
            chunk_size: samples evaluated at once.
            weights: where.
            vectors: that are multiplied.

        Yields:
            Nothing.

        Raises:
            TvgradError: another process failed; its sentence.
            LostRank: another process has ended.
        """
        self._tell(method, chunk_size, weights, vectors)
        try:
            yield
        except LostRank:
            raise
        except Exception as error:
            self._failures(str(error) or type(error).__name__)
            raise
        for rank, said in self._failures(None).items():
            raise TvgradError(f"process {rank} failed: {said}")

    def _tell(self, method: str, chunk_size: int, weights: Weights | None, vectors: Sequence[Weights]) -> None:
        """Every process makes the same calls: there is nothing to tell."""

    def _failures(self, own: str | None) -> dict[int, str]:
        """What the processes that failed said; a flag alone goes round where none did."""
        failed = torch.tensor([0.0 if own is None else 1.0], device=self._device)
        with connected():
            distributed.all_reduce(failed, group=self._group)
        if not float(failed):
            return {}
        return {rank: said for rank, said in enumerate(self.gathered(own)) if said is not None}

    def add_up(self, sums: Sequence[WeightedSum], *numbers: float) -> list[float]:
        """Add up over all processes, in float64.

        Args:
            sums: of this process; they become those of all.
            numbers: of this process.

        Returns:
            The numbers' totals.
        """
        packed = torch.tensor([*numbers, *(one.weight for one in sums)], dtype=torch.float64, device=self._device)
        with connected():
            distributed.all_reduce(packed, group=self._group)
            for one in sums:
                for tensor in one.parts():
                    distributed.all_reduce(tensor, group=self._group)
        totals = packed.tolist()
        for one, weight in zip(sums, totals[len(numbers) :], strict=True):
            one.weight = weight
        return totals[: len(numbers)]


def facts_of(weights: Weights, samples: Samples) -> dict[str, str]:
    """Describe what processes that share an objective must have in common.

    Args:
        weights: theta_0.
        samples: the data.

    Returns:
        Name -> description.
    """
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy().data)
    return {
        "version of PyTorch": torch.__version__,
        "data set": samples.fingerprint(),
        "model or draw of its weights": f"sha256:{digest.hexdigest()[:16]}",
    }


def _require_same_loss(found: Sequence[tuple[float, float]], tolerance: float) -> None:
    """Refuse another loss, or another count, of the same samples at the same weights than the first process has."""
    loss, weight = found[0]
    for rank, (other, counted) in enumerate(found):
        if abs(other - loss) > tolerance * max(abs(other), abs(loss)) or counted != weight:
            raise TvgradError(
                f"process {rank} has another loss of the first samples than process 0 ({other:.6g} of weight "
                f"{counted:g} and {loss:.6g} of weight {weight:g}): all processes must build the same model, loss, "
                "forward and count"
            )


@contextmanager
def connected(mixed: bool = False) -> Generator[None]:
    """Say that another process is lost where PyTorch says that a connection is.

    Args:
        mixed: whether there is other work inside, whose errors come as they are.

    Yields:
        Nothing.

    Raises:
        LostRank: it is.
        RuntimeError: another failure of mixed work.
    """
    try:
        yield
    except RuntimeError as error:
        if mixed and not any(sign in str(error) for sign in CONNECTION):
            raise
        raise LostRank(LOST.format(reason=_reason(error))) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of what PyTorch says, without the place in its source."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).splitlines()[0]).split(". ")[0][:120]
