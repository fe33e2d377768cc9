"""Seeds in blocks: the models of a block are trained in one call, and a finished block is kept.

What a seed gives does not depend on its block. Where nothing is kept, blocks are large, because one call is fastest;
where something is, they are small, so that a stopped study has little to do again. Blocks of two seeds take about a
tenth longer than one of ten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .concept_training import Progress
from .resumable_cache import ResumableCache, Rows

AT_ONCE, KEPT = 10, 2
"""Seeds in a block, where nothing is kept and where something is."""


def rows_of_seeds(
    store: ResumableCache,
    kind: str,
    seeds: int,
    measure: Callable[[range, Progress], tuple[Rows]],
    progress: Progress | None = None,
) -> Rows:
    """Measure all seeds, or read what is kept of them.

    Args:
        store: where finished blocks are kept.
        kind: what is measured: the first word of the files' names.
        seeds: how many.
        measure: from the seeds of a block to its rows; it tells the function that it is given what is done of the
            block, and how much there is.
        progress: called with what is done of all blocks and how much there is.

    Returns:
        The rows of all seeds.
    """
    size = KEPT if store.keeps else AT_ONCE
    blocks = [range(first, min(first + size, seeds)) for first in range(0, seeds, size)]
    rows: Rows = []
    for number, block in enumerate(blocks):

        def told(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(blocks) * total)

        key = {"kind": kind, "seeds": f"{block.start}to{block.stop - 1}"}
        rows += store.rows(key, partial(measure, block, told))[0]
    return rows
