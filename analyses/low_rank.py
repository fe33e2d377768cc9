"""How little of a task vector keeps the effect of adding and of negating it: ranks and shares of entries.

The statement as reproduced here (Li et al., arXiv 2504.10957): low-rank and pruned task vectors keep the effect, and
rank 1 is enough. Both task vectors of a pair are cut alike, in the attention matrix W, in the value matrix V, or in
both: to the largest singular values, to the largest entries, or to the longest rows. Adding keeps its effect where both
tasks have a hinge loss of at most 0.1 at lambda = 1, negating where task 1 has one of at most 0.1 and task 2 one of at
least 0.9 at lambda = -1; pairs are irrelevant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError

from .analysis_result import VACUOUS, AnalysisResult, outcome_of
from .concept_figures import panels
from .concept_grid import FEWEST, pair_tasks
from .concept_training import (
    CONCEPTUAL,
    MIX,
    STEPS,
    ConceptSetting,
    ConceptTask,
    Progress,
    margins,
    mean_hinge,
    setting_of,
    trained_concepts,
)
from .concept_verdicts import TOLERANCE
from .model_stack import ModelStack, Stack, added, chosen
from .resumable_cache import ResumableCache, Rows
from .seed_blocks import rows_of_seeds

RANKS = (1, 2, 3, 4)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
MATRICES = {"W": ("attention",), "V": ("value",), "W and V": ("attention", "value")}
WIDTH, HEIGHT = 7.2, 2.7
ADDED, NEGATED = 1.0, -1.0
EFFECTS = {"added": "adding", "negated": "negating"}


def cut_rank(matrices: torch.Tensor, rank: float) -> torch.Tensor:
    """Keep the largest singular values.

    Args:
        matrices: shape (L, rows, columns).
        rank: how many.

    Returns:
        The nearest matrices of that rank.
    """
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    kept = int(rank)
    return (left[..., :kept] * values[..., None, :kept]) @ right[..., :kept, :]


def cut_entries(matrices: torch.Tensor, share: float) -> torch.Tensor:
    """Keep the entries of largest size.

    Args:
        matrices: shape (L, rows, columns).
        share: of the entries that stay, rounded up.

    Returns:
        The matrices with the other entries at 0.
    """
    flat = matrices.flatten(1)
    kept = flat.abs().topk(math.ceil(share * flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(matrices)


def cut_rows(matrices: torch.Tensor, share: float) -> torch.Tensor:
    """Keep the longest rows: of V, the neurons that training changed most.

    Args:
        matrices: shape (L, rows, columns).
        share: of the rows that stay, rounded up.

    Returns:
        The matrices with the other rows at 0.
    """
    lengths = matrices.norm(dim=-1)
    kept = lengths.topk(math.ceil(share * lengths.shape[1]), dim=1).indices
    return matrices * torch.zeros_like(lengths).scatter(1, kept, 1.0)[..., None]


CUTS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], Sequence[float]]] = {
    "rank": (cut_rank, RANKS),
    "share of entries": (cut_entries, SHARES),
    "share of rows": (cut_rows, SHARES),
}
"""Way to cut -> its function and what it is tried with."""


def analyse(
    target: str = CONCEPTUAL,
    seeds: int = 10,
    mix: Sequence[int] = MIX,
    steps: int = STEPS,
    cells: str = "",
    progress: Progress | None = None,
) -> AnalysisResult:
    """Train irrelevant pairs, cut their task vectors, and add and negate what is left.

    Args:
        target: nothing but `conceptual`: the tasks are the study's own.
        seeds: how many, at least two.
        mix: label-relevant, confusing and irrelevant tokens of a sample, irrelevant patterns, dimension.
        steps: of training.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with the steps done and their number.

    Returns:
        The result.

    Raises:
        TvgradError: there are fewer than two seeds.
    """
    setting = setting_of(target, mix, steps)
    if seeds < FEWEST:
        raise TvgradError(f"seeds must be at least {FEWEST}, not {seeds}")
    store = ResumableCache(cells, {"setting": str(setting)})
    grid = pd.DataFrame(rows_of_seeds(store, "cuts", seeds, partial(_measured, setting), progress))
    table = _summary(grid)
    shown = [effect for effect in EFFECTS if _whole(table, effect)]
    first = {name: all(_kept(table, "rank", name, 1.0, effect) for effect in shown) for name in MATRICES}
    needed = [
        f"{way}, {name}: adding {_least(table, way, name, 'added')}, negating {_least(table, way, name, 'negated')}"
        for way in CUTS
        for name in MATRICES
    ]
    return AnalysisResult(
        claim="Task vectors whose matrices are cut to rank 1 keep the effect of adding and of negating.",
        outcome=outcome_of(all(first.values())) if shown else VACUOUS,
        evidence=(
            f"whole task vectors show for all seeds: {' and '.join(EFFECTS[one] for one in shown) or 'nothing'}; rank "
            "1 keeps this in "
            + ("; ".join(f"{name}: {'yes' if kept else 'no'}" for name, kept in first.items()))
            + f"; smallest rank of both matrices: adding {_least(table, 'rank', 'W and V', 'added')}, negating "
            f"{_least(table, 'rank', 'W and V', 'negated')}; conditions: {setting}, {seeds} seeds"
        ),
        table=table,
        draw=partial(_draw, grid),
        verdicts=tuple(f"smallest {line}" for line in needed),
    )


def _measured(setting: ConceptSetting, seeds: range, progress: Progress) -> tuple[Rows]:
    tasks = [task for seed in seeds for task in pair_tasks(setting, [0.0], seed)]
    stack, vectors = trained_concepts(setting, tasks, progress)
    rows: Rows = []
    for way, (cut, values) in CUTS.items():
        for name, tensors in MATRICES.items():
            for value in values:
                less = {key: cut(tensor, value) if key in tensors else tensor for key, tensor in vectors.items()}
                found = effects(setting, stack, less, tasks)
                rows += [{"way": way, "matrix": name, "value": value, **row} for row in found]
    dense = effects(setting, stack, vectors, tasks)
    return (rows + [{"way": "dense", "matrix": "none", "value": 1.0, **row} for row in dense],)


def effects(setting: ConceptSetting, stack: ModelStack, vectors: Stack, tasks: Sequence[ConceptTask]) -> Rows:
    """Measure what adding and negating the second of each pair of task vectors does.

    Args:
        setting: the conditions.
        stack: the models before training.
        vectors: first and second task vector of each seed, in turn.
        tasks: in the same order.

    Returns:
        Of each seed, the losses on tasks 1 and 2 after adding and after negating.
    """
    rows: Rows = []
    for place in range(0, len(tasks), 2):
        base, one, two = (
            chosen(tensors, slice(i, i + 1))
            for tensors, i in ((stack.start, place), (vectors, place), (vectors, place + 1))
        )
        weights = added(base, (torch.ones(2), one), (torch.tensor([ADDED, NEGATED]), two))
        losses = [
            mean_hinge(margins(stack, weights, setting, task.table)).tolist() for task in tasks[place : place + 2]
        ]
        rows.append({
            "seed": tasks[place].seed, "added_1": losses[0][0], "added_2": losses[1][0],
            "negated_1": losses[0][1], "negated_2": losses[1][1],
        })  # fmt: skip
    return rows


def _summary(grid: pd.DataFrame) -> pd.DataFrame:
    judged = grid.assign(
        added=(grid[["added_1", "added_2"]] <= TOLERANCE).all(axis=1),
        negated=(grid["negated_1"] <= TOLERANCE) & (grid["negated_2"] >= 1 - TOLERANCE),
    )
    means = {name: (name, "mean") for name in ("added_1", "added_2", "negated_1", "negated_2")}
    counts = {name: (name, "sum") for name in ("added", "negated")}
    found = judged.groupby(["way", "matrix", "value"], sort=False).agg(**means, **counts, seeds=("seed", "count"))
    return found.reset_index()


def _rows(table: pd.DataFrame, way: str, matrix: str) -> pd.DataFrame:
    return table[(table["way"] == way) & (table["matrix"] == matrix)].sort_values("value")


def _whole(table: pd.DataFrame, effect: str) -> bool:
    return _kept(table, "dense", "none", 1.0, effect)


def _kept(table: pd.DataFrame, way: str, matrix: str, value: float, effect: str) -> bool:
    rows = _rows(table, way, matrix)
    one = rows[rows["value"] == value].iloc[0]
    return bool(one[effect] == one["seeds"])


def _least(table: pd.DataFrame, way: str, matrix: str, effect: str) -> str:
    """The smallest value from which on every seed keeps the effect."""
    if not _whole(table, effect):
        return "not even whole"
    rows = _rows(table, way, matrix)
    whole = rows[effect] == rows["seeds"]
    # from the largest value down, as long as all seeds keep it
    lasting = whole[::-1].cummin()[::-1]
    return f"{rows['value'][lasting].min():g}" if lasting.any() else f"more than {rows['value'].max():g}"


SIZES = (11, 7.5, 3.5)
"""Of marks, from the first drawn to the last: where cuts agree, each shows as a rim round the next."""


def _draw(grid: pd.DataFrame, ax: Axes) -> None:
    axes = panels(ax, 3, WIDTH, HEIGHT)
    shortfall = grid.assign(
        worst=pd.concat([grid["added_1"], grid["added_2"], grid["negated_1"], 1 - grid["negated_2"]], axis=1).max(
            axis=1
        )
    )
    for panel, way in zip(axes, CUTS, strict=True):
        sns.lineplot(
            shortfall[shortfall["way"] == way], x="value", y="worst", hue="matrix", style="matrix",
            palette="colorblind", markers=True, dashes=False, errorbar=("pi", 100), linewidth=1.2, markersize=5,
            ax=panel,
        )  # fmt: skip
        handles, names = panel.get_legend_handles_labels()
        drawn = panel.get_lines()[: len(names)]
        for line, size in [*zip(drawn, SIZES, strict=False), *zip(handles, SIZES, strict=False)]:
            line.set(markersize=size, linewidth=size / 3)
        panel.axhline(TOLERANCE, color="0.3", linewidth=0.8, linestyle=":")
        panel.set(xlabel=f"{way} that stay" if "share" in way else way, ylabel="largest of the four shortfalls")
        panel.get_legend().remove()
    axes[0].set_xticks(RANKS)
    axes[0].figure.legend(
        handles, [f"cut in {name}" for name in names], loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
