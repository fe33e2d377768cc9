"""SharedPass: one pass over the blocks of files by several processes, each with the blocks of some groups.

The first process plans. All see the same files, over a shared file system where they are on several machines. A group's
blocks are all one process's, so that its sums have the bits that they have in a pass of one process. Checksums are
shared too: each process computes those of some files, which the first one compares with what it expects of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from tvgrad.errors import NotFinite, TvgradError
from tvgrad.files.checksums import State, checksum_of, recall, settled_state, state_of
from tvgrad.files.tensors import TensorFile
from tvgrad.problem.crew import END, Crew
from tvgrad.streaming.accumulate import Sums
from tvgrad.streaming.block_pass import cores, sums_of_groups
from tvgrad.streaming.rows import MatrixPlan
from tvgrad.vectors.spread import owners

BLOCKS = "blocks"

Told: TypeAlias = tuple[int, int, int, int]
"""A file's state without its device."""


@dataclass(frozen=True)
class Place:
    """Where a file of a plan lies.

    Attributes:
        path: absolute.
        under: the folder below which nothing may be a link; None follows links.
        shards: of the files that hold its tensors those whose checksums are wanted, and not known yet.
    """

    path: Path
    under: Path | None
    shards: tuple[Path, ...]


@dataclass(frozen=True)
class Share:
    """What one process has done of a pass.

    Attributes:
        sums: group -> sums, of its own groups.
        failure: why it has done nothing.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    failure: TvgradError | None = None


class SharedPass:
    """Passes over blocks that the first process of a crew asks for and all do."""

    def __init__(self, crew: Crew) -> None:
        """Join.

        Args:
            crew: the processes.
        """
        self._crew = crew

    def __call__(
        self, plan: MatrixPlan, workers: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Sums]:
        """Read all blocks and add up their sums; of the first process.

        Args:
            plan: what is read and computed.
            workers: number of threads on one machine.
            progress: called now and then with the bytes done and the bytes in all, of this process.

        Returns:
            Group -> sums, with the bits of `sums_of_groups`.

        Raises:
            TvgradError: a value is infinite or NaN, or a process failed.
            LostRank: a process has ended.
        """  # noqa: DOC501, DOC502 - failures of others are raised here
        files = [file for file in plan.files if isinstance(file, TensorFile)]
        if len(files) < len(plan.files):  # files of other kinds, which are converted as they are read
            return sums_of_groups(plan, workers, progress)
        places = [_place(file) for file in files]
        self._crew.tell((BLOCKS, replace(plan, files=[]), places))
        _recall(self._crew.gathered(_checksums(places, 0, self._crew.count)))
        shares = self._crew.gathered(_share(plan, 0, self._crew.count, workers, progress))
        for rank, share in enumerate(shares):
            if isinstance(share.failure, NotFinite) or (share.failure is not None and rank == 0):
                raise share.failure
            if share.failure is not None:
                raise TvgradError(f"process {rank} failed: {share.failure}")
        found = {group: sums for share in shares for group, sums in share.sums.items()}
        return {group: found[group] for group in dict.fromkeys(plan.groups.values())}

    def serve(self) -> None:
        """Do what the first process asks for, until it ends.

        Raises:
            LostRank: the first process is gone.
        """  # noqa: DOC502 - raised by the crew
        while True:
            method, *rest = self._crew.tell()
            if method == END:
                return
            plan, places = rest
            self._crew.gathered(_checksums(places, self._crew.rank, self._crew.count))
            self._crew.gathered(self._own_share(plan, places))

    def _own_share(self, plan: MatrixPlan, places: list[Place]) -> Share:
        try:
            files = [TensorFile(place.path, place.under) for place in places]
        except TvgradError as error:
            return Share(failure=error)
        try:
            return _share(replace(plan, files=list(files)), self._crew.rank, self._crew.count, cores())
        finally:
            for file in files:
                file.close()


def _place(file: TensorFile) -> Place:
    """Where all processes find a file, whatever folder they are in."""
    under = None if file.under is None else _absolute(file.under)
    wanted = () if file.digests is None else file.shards
    shards = tuple(_absolute(shard) for shard in wanted if settled_state(shard) is None)
    return Place(_absolute(file.path), under, shards)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # no link is followed


def _share(
    plan: MatrixPlan, rank: int, count: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> Share:
    """One process's groups."""
    sizes: Counter[str] = Counter()
    for name, size in plan.sizes.items():
        sizes[plan.groups[name]] += size
    owner = owners(sizes, count)
    blocks = [block for block in plan.blocks if owner[block.group] == rank]
    here = max(1, workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        sums = sums_of_groups(replace(plan, blocks=blocks), here, progress)
    except TvgradError as error:
        return Share(failure=error)
    except OSError as error:
        return Share(failure=TvgradError(str(error)))
    return Share({group: one for group, one in sums.items() if owner[group] == rank})


def _checksums(places: list[Place], rank: int, count: int) -> dict[Path, tuple[str, Told]]:
    """Checksums of one process's files, those that could be read and had not changed just now."""
    under = {path: place.under for place in places for path in place.shards}
    found = {}
    for path in list(under)[rank::count]:
        folder = under[path]
        if folder is None:
            continue
        try:
            checksum_of(path, folder)
            known = settled_state(path)
        except (OSError, TvgradError):
            continue  # whoever reads it says so
        if known is not None:
            state, digest = known
            found[path] = digest, _told(state)
    return found


def _recall(shares: list[dict[Path, tuple[str, Told]]]) -> None:
    """Take over what other processes found, of files that are here what they are there."""
    for share in shares:
        for path, (digest, told) in share.items():
            state = state_of(path)
            if state is not None and _told(state) == told:
                recall({state: digest})


def _told(state: State) -> Told:
    """What a file has in common on several machines, which count devices in ways of their own."""
    return state[1:]
