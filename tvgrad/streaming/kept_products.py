"""Inner products of earlier passes, kept in the user's cache folder, so that a longer run costs what is new in it.

What is believed. The folder is the user's own, never the run's: a run that comes from somebody else carries no products
with it. A product is named by the sha256 of the files that it was formed of, and by all that its bits depend on: names,
sizes, groups, number format, libraries, processor. It is used only after each of these files was found to hold that
sha256, either now or when its products were formed and not changed since (device, inode, size, both times). A file
that is damaged, of another user or not what it should be is not used, and is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from tvgrad.files.checksums import State, recall, settled_state
from tvgrad.files.tensors import TensorFile, TensorSource
from tvgrad.streaming.accumulate import Sums
from tvgrad.streaming.products_file import FORMAT, KINDS, Columns, Names, Products, read_products, write_products
from tvgrad.streaming.rows import MatrixPlan, Pair, Vector, plan_matrix

LEAST_BYTES = 64 << 20  # a pass over less takes less time than writing this

Compute: TypeAlias = Callable[[MatrixPlan], dict[str, Sums]]


class KeptProducts:
    """The products that are kept of some runs; where the folder cannot be used, every pass is a whole one."""

    def __init__(self, folder: Path, runs: Sequence[str], least_bytes: int = LEAST_BYTES) -> None:
        """Say where products are kept, without looking.

        Args:
            folder: the user's own folder for this; it is made when something is kept.
            runs: what tells the runs from others, the sha256 of their first files say: those of the same runs share
                a file.
            least_bytes: a pass over files that are smaller in all is not kept.
        """
        self._folder, self._runs, self._least_bytes = folder, list(runs), least_bytes

    def complete(self, vectors: Sequence[Vector], plan: MatrixPlan, compute: Compute) -> dict[str, Sums]:
        """Take from what is kept, compute the rest, and keep that too.

        Args:
            vectors: the vectors of the plan.
            plan: what is wanted of them.
            compute: makes the sums of a plan.

        Returns:
            Group -> sums, to the bit those of `compute(plan)`.

        Raises:
            DamagedRun: a file does not hold what it was written with.
        """  # noqa: DOC502 - raised by attest
        names = {row: _name(vectors[index]) for index, row in enumerate(plan.row_of)}
        files = [file for file in plan.files if isinstance(file, TensorFile)]
        size = sum(place.nbytes for file in files for place in file.places.values())
        if size < self._least_bytes or len(files) < len(plan.files) or None in names.values():
            return compute(plan)
        wanted = _Wanted(plan, {row: name for row, name in names.items() if name is not None})
        layout = _layout(plan)
        path = self._folder / hashlib.sha256("\n".join([layout, *self._runs]).encode()).hexdigest()
        groups = list(dict.fromkeys(plan.groups.values()))
        kept = read_products(path, layout, groups)
        if kept is None:
            kept = wanted.columns(plan, {row: row for row in range(plan.count)}, compute(plan), groups)
            new = True
        else:
            recall({state: digest for digest, states in kept.states.items() for state in states})
            missing = wanted.without(kept)
            new = not missing.nothing
            if new:
                part, rows = missing.plan(vectors)
                kept = wanted.columns(part, rows, compute(part), groups).joined(kept)
        for file in files:  # of those that were not read, too: what is kept of them must be what they hold
            file.attest()
        states = _states(files)
        if new or states != kept.states:
            kept = Products(kept.columns, states)
            if not write_products(path, layout, groups, kept):
                one, two, three = (
                    have.of(list(dict.fromkeys(names))) for have, names in zip(kept.columns, wanted.all, strict=True)
                )
                write_products(path, layout, groups, Products((one, two, three), states))
        return wanted.sums(kept, groups)

    def numbers(
        self, files: Sequence[TensorFile], about: Sequence[str], compute: Callable[[], Sequence[float]]
    ) -> list[float]:
        """Take numbers that an earlier report computed from files, or compute and keep them.

        Args:
            files: of runs; they are opened, and closed by the caller.
            about: all that the numbers depend on beside the files.
            compute: reads the files and computes.

        Returns:
            The numbers.

        Raises:
            DamagedRun: a file does not hold what it was written with.
        """  # noqa: DOC502 - raised by attest
        digests = [file.digests for file in files]
        size = sum(place.nbytes for file in files for place in file.places.values())
        if size < self._least_bytes or None in digests:
            return list(compute())
        facts = [FORMAT.decode(), digests, list(about), torch.__version__, torch.backends.cpu.get_cpu_capability()]
        layout = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        kept = read_products(self._folder / layout, layout, ["numbers"])
        if kept is not None:
            recall({state: digest for digest, states in kept.states.items() for state in states})
        found = list(compute()) if kept is None else kept.columns[0].arrays[0][0].tolist()
        for file in files:
            file.attest()
        if kept is None:
            names = [(str(place), "") for place in range(len(found))]
            nothing = [Columns([], [np.zeros((1, 0))] * len(KINDS[kind])) for kind in ("projections", "signs")]
            columns = Columns(names, [np.asarray([found], dtype=np.float64)])
            whole = Products((columns, nothing[0], nothing[1]), _states(files))
            write_products(self._folder / layout, layout, ["numbers"], whole)
        return found


class _Wanted:
    """The pairs of a plan, by names that say what their vectors are made of."""

    def __init__(self, plan: MatrixPlan, names: dict[int, str]) -> None:
        self._plan, self._names = plan, names
        self.pairs = [self._of_rows(*pair) for pair in plan.pairs]
        self.projections = [self._of_vectors(*pair) for pair in plan.projections]
        self.signs = [self._of_vectors(*pair) for pair in plan.signs]
        self._needed = [set(self.pairs), set(self.projections), set(self.signs)]

    @property
    def nothing(self) -> bool:
        return not any(self._needed)

    @property
    def all(self) -> list[list[Names]]:
        return [self.pairs, self.projections, self.signs]

    def _of_rows(self, left: int, right: int) -> Names:
        one, two = self._names[left], self._names[right]
        return (one, two) if one <= two else (two, one)

    def _of_vectors(self, left: int, right: int) -> Names:
        return self._names[self._plan.row_of[left]], self._names[self._plan.row_of[right]]

    def without(self, kept: Products) -> _Wanted:
        """The pairs that are not kept."""
        rest = _Wanted(self._plan, self._names)
        rest._needed = [set(all_) - set(have.names) for all_, have in zip(self.all, kept.columns, strict=True)]
        return rest

    def plan(self, vectors: Sequence[Vector]) -> tuple[MatrixPlan, dict[int, int]]:
        """A plan of the needed pairs alone, and its rows for those of the whole plan."""
        plan, first = self._plan, {row: index for index, row in reversed(list(enumerate(self._plan.row_of)))}
        pairs = [
            (first[left], first[right])
            for (left, right), name in zip(plan.pairs, self.pairs, strict=True)
            if name in self._needed[0]
        ]
        projections, signs = (
            [
                (first[plan.row_of[left]], first[plan.row_of[right]])
                for (left, right), name in zip(asked, names, strict=True)
                if name in needed
            ]
            for asked, names, needed in (
                (plan.projections, self.projections, self._needed[1]),
                (plan.signs, self.signs, self._needed[2]),
            )
        )
        used = sorted({index for pair in [*pairs, *projections, *signs] for index in pair})
        place = {index: number for number, index in enumerate(used)}
        part = plan_matrix(
            [vectors[index] for index in used],
            plan.groups,
            projections=[(place[left], place[right]) for left, right in dict.fromkeys(projections)],
            signs=[(place[left], place[right]) for left, right in dict.fromkeys(signs)],
            names=list(plan.sizes),
            pairs=[(place[left], place[right]) for left, right in pairs],
            dtype=plan.dtype,
        )
        return part, {part.row_of[place[index]]: plan.row_of[index] for index in used}

    def columns(self, part: MatrixPlan, rows: dict[int, int], sums: dict[str, Sums], groups: list[str]) -> Products:
        """The sums of a part of the plan, whose rows are rows of the whole, as columns."""

        def of(kind: str, names: list[Names]) -> Columns:
            arrays = [np.stack([getattr(sums[group], one) for group in groups]) for one in KINDS[kind]]
            first = {name: column for column, name in reversed(list(enumerate(names)))}
            return Columns(list(first), [array[:, list(first.values())] for array in arrays])

        def vectors(pairs: list[Pair]) -> list[Names]:
            return [tuple(self._names[rows[part.row_of[index]]] for index in pair) for pair in pairs]  # type: ignore[misc]

        pairs = [self._of_rows(rows[left], rows[right]) for left, right in part.pairs]
        projections, signs = vectors(part.projections), vectors(part.signs)
        return Products((of("pairs", pairs), of("projections", projections), of("signs", signs)), {})

    def sums(self, kept: Products, groups: list[str]) -> dict[str, Sums]:
        """The wanted sums, in the order of the plan."""
        chosen = [columns.of(names) for names, columns in zip(self.all, kept.columns, strict=True)]
        arrays = [array for columns in chosen for array in columns.arrays]
        return {group: Sums(*(array[row].copy() for array in arrays)) for row, group in enumerate(groups)}


def _name(vector: Vector) -> str | None:
    """What a vector is made of: checksums of its files; None where they have none."""
    file, minus = _digest(vector.file), "" if vector.minus is None else _digest(vector.minus)
    return None if file is None or minus is None else f"{file}-{minus}" if minus else file


def _digest(file: TensorSource) -> str | None:
    digests = file.digests if isinstance(file, TensorFile) else None
    return None if digests is None else "+".join(digests)


def _states(files: Sequence[TensorFile]) -> dict[str, list[State]]:
    """The files that were compared with their checksums in this process, and could not have changed unnoticed since."""
    found: dict[str, list[State]] = {}
    for file in files:
        for path in file.shards:
            settled = settled_state(path)
            if settled is not None:
                state, digest = settled
                found.setdefault(digest, []).append(state)
    return found


def _layout(plan: MatrixPlan) -> str:
    """Checksum of all that the bits of a product depend on beside the files."""
    processor = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(line for line in lines if line.startswith("model name")) + processor
    blas = np.show_config(mode="dicts")
    facts = [
        FORMAT.decode(),
        [list(plan.sizes.items()), list(plan.groups.items()), str(plan.dtype)],
        [np.__version__, torch.__version__, torch.backends.cpu.get_cpu_capability()],
        [platform.machine(), processor, os.environ.get("OPENBLAS_CORETYPE"), blas],
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
