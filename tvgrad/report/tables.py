"""The tables of a report, each a DataFrame whose columns scripts rely on.

Norms, directions and the comparison of tasks come from one Gram matrix of all vectors of all runs. Group `all` is the
whole model; every other group is a block of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tvgrad.errors import TvgradError
from tvgrad.files.regular import real_path
from tvgrad.report.columns import COLUMNS
from tvgrad.report.lora_relation import weight_change_norms
from tvgrad.report.shown_tables import ShownTables
from tvgrad.report.wanted_products import Extent, wanted_products
from tvgrad.results import Result, frame_of
from tvgrad.store.batch_norms import BatchNorms, batch_norms
from tvgrad.store.lora import is_lora
from tvgrad.store.measured import error_bar, is_measurable
from tvgrad.store.run import Run
from tvgrad.streaming.block_pass import PassOver, sums_of_groups
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.kept_products import KeptProducts
from tvgrad.streaming.rows import Vector
from tvgrad.streaming.run_vectors import RunVectors, vectors_of
from tvgrad.streaming.vector_key import VectorKey
from tvgrad.theory.explain import read_results
from tvgrad.theory.explainable import why_not_explained
from tvgrad.theory.sketched import sketched_norms, sketched_rows
from tvgrad.theory.verdicts import verdict_rows
from tvgrad.vectors.parameters import ALL, same_names_and_shapes
from tvgrad.wording import printable

COMPARED = ("task_vector", "gradient")
"""Kinds of vectors that tasks are compared by."""


@dataclass(frozen=True, repr=False)
class RunTables(ShownTables):
    """The tables of some runs, and the Gram matrix that most of them were read from.

    Attributes:
        tables: name -> table, with the columns of `COLUMNS`.
        gram: the inner products, NaN where one was not computed.
        tasks: name of a run -> its task: runs of one task differ in seed, rule or format.
        refused: name of a run that was not explained -> why it cannot be.
        scripts: names of the runs that were traced from scripts.
    """

    tables: dict[str, pd.DataFrame]
    gram: GramResult
    tasks: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()


def distinct_runs(runs: Sequence[Run]) -> list[Run]:
    """Leave out runs that were given twice, once by name and once in their folder, say.

    Args:
        runs: the runs.

    Returns:
        Each run once, in the order given.
    """
    first: dict[Path, Run] = {}
    for run in runs:
        first.setdefault(real_path(run.root), run)
    return list(first.values())


def run_names(runs: Sequence[Run]) -> list[str]:
    """Name runs so that no two share a name: the task's, with as much of the path as it takes.

    Args:
        runs: the runs.

    Returns:
        One name a run.
    """
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    parents = [printable(f"{real_path(run.root).parent.name}/{run.root.name}") for run in runs]
    if len(set(parents)) == len(parents):
        return parents
    return [printable(str(run.root)) for run in runs]


def run_tables(
    runs: Sequence[Run],
    groups: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    extent: Extent = "all",
    kept: KeptProducts | None = None,
    over: PassOver = sums_of_groups,
) -> RunTables:
    """Make the tables of runs of one model.

    Args:
        runs: recorded runs whose trainable parameters have the same names and shapes.
        groups: a regular expression for groups of parameters; by default those of the first run.
        progress: called with the bytes done and the bytes in all.
        extent: which inner products are computed: those of the `tables`, those of `figures` too, or `all`. The numbers
            of the tables are the same.
        kept: products of earlier reports (`tvgrad.report.wanted_products.kept_products`); none by default.
        over: goes over the files, as that of `gram_of`.

    Returns:
        norms, directions, equivalence and cross_task, and the Gram matrix; second_order and error_budget, empty for
        runs that `tvgrad explain` has not been through.

    Raises:
        TvgradError: there are no runs, or they are of different models.
    """
    runs = distinct_runs(runs)
    if not runs:
        raise TvgradError("there is no run to report on")
    _same_model(runs)
    names = run_names(runs)
    with ExitStack() as stack:
        found = [vectors_of(run, stack, name) for run, name in zip(runs, names, strict=True)]
        vectors: list[Vector] = [vector for one in found for vector in one.vectors]
        gram = (
            gram_of(
                vectors,
                runs[0].groups(groups),
                projections=[pair for one in found for pair in one.projections],
                signs=_task_pairs(found),
                pairs=wanted_products(found, extent),
                kept=kept,
                progress=progress,
                over=over,
            )
            if vectors
            else GramResult((), np.zeros((0, 0)), {}, {}, {})  # every training ended in its first epoch
        )
    gram_groups = runs[0].groups(groups)
    # From input to output, as the model has them: files list their tensors by name.
    depth = dict.fromkeys(gram_groups.values())
    gram = replace(gram, groups={group: gram.groups[group] for group in depth if group in gram.groups})
    frames = {
        "norms": [row for run, one in zip(runs, found, strict=True) for row in _norms(run, one, gram, gram_groups)],
        "directions": [row for one in found for row in _directions(one, gram)],
        "cross_task": _cross_task(found, gram),
    }
    tables = {name: pd.DataFrame(rows, columns=list(COLUMNS[name])) for name, rows in frames.items()}
    estimates = sketched_rows(runs, names, gram_groups, kept)
    if any(is_lora(run) for run in runs):
        tables["norms"] = tables["norms"].assign(
            weight_change_norm=weight_change_norms(dict(zip(names, runs, strict=True)), tables["norms"], gram_groups)
        )
    verdicts = [row for run, name in zip(runs, names, strict=True) for row in verdict_rows(run, name, kept)]
    explained = [(name, *read_results(run)) for run, name in zip(runs, names, strict=True)]
    results: dict[str, Sequence[Result]] = {
        "equivalence": verdicts,
        "second_order": [replace(row, run=name) for name, errors, _ in explained for row in errors],
        "error_budget": [replace(row, run=name) for name, _, terms in explained for row in terms],
        **({"sketches": estimates} if estimates else {}),
    }
    made = {**tables, **{name: frame_of(rows, COLUMNS[name]) for name, rows in results.items()}}
    without = [(run, name) for run, (name, *found_in) in zip(runs, explained, strict=True) if not any(found_in)]
    refused = {name: why for run, name in without if (why := why_not_explained(run)) is not None}
    scripts = tuple(name for run, name in zip(runs, names, strict=True) if is_measurable(run))
    return RunTables(made, gram, {name: run.name for run, name in zip(runs, names, strict=True)}, refused, scripts)


def runs_of_each_model(runs: Sequence[Run]) -> list[list[Run]]:
    """Sort runs by their model, that is by names and shapes of the trainable parameters.

    Args:
        runs: the runs.

    Returns:
        Runs that one report can be made of, the first run's model first.
    """
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Run]] = {}
    for run in distinct_runs(runs):
        shapes = tuple(sorted((name, one.shape) for name, one in run.parameters.items()))
        found.setdefault(shapes, []).append(run)
    return list(found.values())


def _same_model(runs: Sequence[Run]) -> None:
    shapes = [{name: torch.empty(one.shape, device="meta") for name, one in run.parameters.items()} for run in runs]
    for run, other in zip(runs[1:], shapes[1:], strict=True):
        difference = same_names_and_shapes(shapes[0], other)
        if difference is not None:
            raise TvgradError(
                f"{runs[0].root} and {run.root} are runs of different models ({difference}): report on each by itself"
            )


def _groups(gram: GramResult) -> list[str]:
    return [ALL, *gram.groups]


def _batch_norms(run: Run) -> dict[int, BatchNorms]:
    """Epoch e -> mean norms of the batch gradients of the epoch that begins there, where recorded."""
    if run.unit != "epoch":
        return {}
    return {epoch - 1: batch_norms(run, epoch) for epoch in run.having("steps")}


def _norms(run: Run, found: RunVectors, gram: GramResult, groups: Mapping[str, str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    batch = _batch_norms(run)
    nothing = BatchNorms(math.nan, math.nan)
    batch_total = math.fsum(norms.before_clipping for norms in batch.values())
    bars = {epoch: bar for epoch in run.having("gradient") if (bar := error_bar(run, epoch)) is not None}
    sketches = sketched_norms(run, groups)
    told = {*found.keys, *sketches}
    epochs = sorted(
        {epoch for kind, epoch in told if kind != "epoch_gradient"}
        | {0, *found.epoch_gradients, *(at for _, at in sketches)}
    )
    # A share is one of the sum over all epochs before the last: a sum with gaps is another quantity.
    counted = range(epochs[-1])
    complete = all(("gradient", epoch) in told for epoch in counted)
    for group in _groups(gram):
        size = {place: gram.norm(key, group) for place, key in found.keys.items()}
        size |= {place: norms[group] for place, norms in sketches.items() if place[0] == "gradient"}
        total = math.fsum(size["gradient", epoch] for epoch in counted) if complete else 0.0
        summed = {epoch: gram.norm(key, group) for epoch, key in found.epoch_gradients.items()}
        summed |= {epoch: norms[group] for (kind, epoch), norms in sketches.items() if kind == "epoch_gradient"}
        sum_total = math.fsum(summed.values())
        for epoch in epochs:
            share = size["gradient", epoch] / total if epoch in counted and total else math.nan
            present = batch.get(epoch, nothing) if group == ALL else nothing
            rows.append({
                "run": found.name,
                "epoch": epoch,
                "group": group,
                "gradient_norm": size.get(("gradient", epoch), math.nan),
                "task_vector_norm": size.get(("task_vector", epoch), 0.0 if epoch == 0 else math.nan),
                "displacement_norm": size.get(("displacement", epoch), math.nan),
                "gradient_norm_share": share,
                "epoch_gradient_norm": summed.get(epoch, math.nan),
                "epoch_gradient_norm_share": (summed[epoch] / sum_total if epoch in summed and sum_total else math.nan),
                "mean_batch_gradient_norm": present.before_clipping,
                "mean_batch_gradient_norm_share": present.before_clipping / batch_total if batch_total else math.nan,
                "mean_consumed_gradient_norm": present.consumed,
                "gradient_error_bar": bars.get(epoch, math.nan),
            })
    return rows


def _directions(found: RunVectors, gram: GramResult) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    keys = found.keys
    first_gradient = keys.get(("gradient", 0))
    first_vector = keys.get(("task_vector", 1))
    first_sum = found.epoch_gradients.get(0)
    epochs = sorted({epoch for kind, epoch in keys if kind in COMPARED} | set(found.epoch_gradients))
    for group in _groups(gram):
        for epoch in epochs:
            vector = keys.get(("task_vector", epoch))
            moved = keys.get(("displacement", epoch))
            before = keys.get(("displacement", found.before.get(epoch, 0)))
            rows.append({
                "run": found.name,
                "epoch": epoch,
                "group": group,
                "cos_task_vector_descent": -_cosine(gram, vector, first_gradient, group),
                "cos_epoch_gradient_first": _cosine(gram, found.epoch_gradients.get(epoch), first_sum, group),
                "cos_task_vector_epoch_descent": -_cosine(gram, vector, first_sum, group),
                "cos_gradient_first": _cosine(gram, keys.get(("gradient", epoch)), first_gradient, group),
                "cos_task_vector_first": _cosine(gram, vector, first_vector, group),
                "cos_successive_displacements": _cosine(gram, moved, before, group),
                "relative_residual": _relative_residual(gram, vector, first_gradient, group),
            })
    return rows


def _relative_residual(gram: GramResult, vector: VectorKey | None, gradient: VectorKey | None, group: str) -> float:
    """Share of a task vector that does not lie along the first gradient."""
    if vector is None or gradient is None:
        return math.nan
    length = gram.norm(vector, group)
    return gram.residuals[gram.index(vector), gram.index(gradient)][group] / length if length else math.nan


def _task_pairs(found: Sequence[RunVectors]) -> list[tuple[VectorKey, VectorKey]]:
    """Keys of the task vectors of two runs after the same number of epochs."""
    return [
        (left.keys["task_vector", epoch], right.keys["task_vector", epoch])
        for left, right in combinations(found, 2)
        for kind, epoch in left.keys
        if kind == "task_vector" and ("task_vector", epoch) in right.keys
    ]


def _cross_task(found: Sequence[RunVectors], gram: GramResult) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for left, right in combinations(found, 2):
        shared = {epoch for kind, epoch in left.keys if kind in COMPARED} & {
            epoch for kind, epoch in right.keys if kind in COMPARED
        }
        for group in _groups(gram):
            for epoch in sorted(shared):
                tau = left.keys.get(("task_vector", epoch)), right.keys.get(("task_vector", epoch))
                gradients = left.keys.get(("gradient", epoch)), right.keys.get(("gradient", epoch))
                both = None if tau[0] is None or tau[1] is None else (gram.index(tau[0]), gram.index(tau[1]))
                rows.append({
                    "run_a": left.name,
                    "run_b": right.name,
                    "epoch": epoch,
                    "group": group,
                    "cos_task_vectors": _cosine(gram, *tau, group),
                    "cos_gradients": _cosine(gram, *gradients, group),
                    "sign_agreement": math.nan if both is None else gram.sign_agreement[both][group],
                })
    return rows


def _cosine(gram: GramResult, left: VectorKey | None, right: VectorKey | None, group: str) -> float:
    return math.nan if left is None or right is None else gram.cosine(left, right, group)
