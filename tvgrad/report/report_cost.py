"""What a report on runs takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from tvgrad.cost import Cost, held_bytes, seconds_to_hash
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile, TensorSource
from tvgrad.report.wanted_products import Extent, wanted_products
from tvgrad.store.run import Run
from tvgrad.streaming.block_pass import cores, sums_of_groups
from tvgrad.streaming.rows import MatrixPlan, Vector, plan_matrix
from tvgrad.streaming.run_vectors import RunVectors, vectors_of

SAMPLE = 64 << 20
"""Bytes, of all files together, of the part of the pass that is timed."""


def report_cost(runs: Sequence[Run], groups: str | None, extent: Extent) -> Cost:
    """Tell what the pass over the files of runs of one model takes.

    Time: that of a pass over some of the tensors now, by the bytes, and that of checksums, which takes a processor from
    the pass. Memory: what the process holds after that; no more is needed for the rest. The drawing of figures is not
    counted.

    Args:
        runs: the runs.
        groups: a regular expression for groups of parameters.
        extent: whether there are figures.

    Returns:
        The cost of a first report.

    Raises:
        TvgradError: the runs have no vectors.
    """
    with ExitStack() as stack:
        found = [vectors_of(run, stack, str(place)) for place, run in enumerate(runs)]
        if not any(one.vectors for one in found):
            raise TvgradError(
                "every training ended in its first epoch, so there are no vectors and a report is at once"
            )
        whole = _plan(found, runs[0].groups(groups), extent, None)
        names: list[str] = []
        for name in sorted(whole.sizes, key=lambda one: whole.sizes[one]):
            names.append(name)
            if sum(whole.sizes[one] for one in names) * _width(whole) >= SAMPLE:
                break
        plain: dict[TensorSource, TensorFile] = {
            file: stack.enter_context(TensorFile(file.path)) for file in whole.files
        }  # without checksums, which would read all of each file
        part = _plan(found, runs[0].groups(groups), extent, names, plain)
        begin = time.perf_counter()
        sums_of_groups(part, cores())
        taken = time.perf_counter() - begin
    size, timed = (sum(map(plan.bytes_of, plan.blocks)) for plan in (whole, part))
    seconds = taken * size / max(timed, 1) + seconds_to_hash(size) / cores()
    what = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return Cost(
        f"{what}, {size:,} bytes to read",
        seconds,
        held_bytes(),
        0,
        "tables and figures, and at most 64 MiB of products in the cache folder, with which the next report reads less",
    )


def _width(plan: MatrixPlan) -> int:
    """Bytes of one coordinate in all files."""
    return sum(file.places[next(iter(plan.sizes))].dtype.itemsize for file in plan.files)


def _plan(
    found: Sequence[RunVectors],
    groups: dict[str, str],
    extent: Extent,
    names: Sequence[str] | None,
    instead: dict[TensorSource, TensorFile] | None = None,
) -> MatrixPlan:
    vectors = [vector for one in found for vector in one.vectors]
    if instead is not None:
        vectors = [
            Vector(one.key, instead[one.file], None if one.minus is None else instead[one.minus]) for one in vectors
        ]
    return plan_matrix(
        vectors,
        groups,
        projections=[pair for one in found for pair in one.projections],
        signs=[],
        names=names,
        pairs=wanted_products(found, extent),
    )
