"""Which merging method is best? All that are built in, on the same tuned models, each with its own coefficient.

Every task is tuned alone; after some epochs the task vectors are merged by every method that is defined for so many
tasks. Coefficients are searched on validation samples (`method_scores`), AdaMerging sees the inputs of a third pool,
and what is reported is measured on test samples that decided nothing. Intervals (95 %) are over seeds and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.update_rules.rules import make_rule
from tvgrad.wording import counted

from .analysis_result import FAILS, HOLDS, UNDECIDED, VACUOUS, AnalysisResult
from .intervals import CONFIDENCE, CrossedMean, crossed_mean, crossed_ratio, holm
from .merge_rates import read_optimizer
from .method_figures import draw_gains, draw_plane
from .method_scores import PRETRAINED, SINGLE, SUM, MethodStudy, rows_of_seed
from .resumable_cache import ResumableCache, Rows
from .task_training import FEWEST, FEWEST_TEST

Samples = list[NDArray[np.float64]]
LEAST = {"seeds": 2, "batch_size": 1, "images": FEWEST, "test_images": FEWEST_TEST, "alphas": 1, "ada_steps": 1}


def analyse(
    target: str = "suite-means",
    optimizer: str = "gd",
    epochs: Sequence[int] = (1, 8),
    seeds: int = 5,
    batch_size: int = 64,
    images: int = 500,
    test_images: int = 1000,
    alphas: int = 20,
    ada_steps: int = 100,
    methods: str = "",
    points: float = 2.0,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Compare merging methods.

    Args:
        target: a recipe whose tasks share one pretrained model.
        optimizer: a name, with the study's own rate, or a name and a rate as in adam:1e-3.
        epochs: numbers of epochs after which tasks are merged.
        seeds: how many, at least two.
        batch_size: for every optimizer but gd.
        images: training samples of a task that are used.
        test_images: test samples of a task that are used, all pools together.
        alphas: steps of the search for a coefficient.
        ada_steps: of AdaMerging, at a rate of 5e-3.
        methods: names with plus signs between them; empty takes all.
        points: of accuracy, that one method is to be better by.
        cells: a folder that keeps finished seeds, for a study that may be stopped; empty keeps nothing.
        progress: called with how many seeds are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: there are fewer than two tasks, or an option is out of range.
    """
    sizes = {"batch_size": batch_size, "images": images, "test_images": test_images, "alphas": alphas}
    _check({"seeds": seeds, **sizes, "ada_steps": ada_steps}, epochs)
    name, rate = read_optimizer(optimizer)
    if rate is None:
        raise TvgradError(f"{optimizer!r} is to be searched: give a rate, as in adam:1e-3")
    recipes = load_recipes(target)
    if len(recipes) < 2:
        raise TvgradError(f"{target} has one task: merging needs at least two that share a pretrained model")
    chosen = tuple(part.strip().replace("-", "_") for part in methods.split("+") if part.strip())
    if chosen and SUM not in chosen:
        chosen = (SUM, *chosen)  # all others are compared with it
    study = MethodStudy(
        make_rule(name, rate), tuple(sorted({*epochs})), None if name == "gd" else batch_size, images, test_images,
        alphas, ada_steps, chosen,
    )  # fmt: skip
    kept = {"target": target, "optimizer": name, "lr": rate, "epochs": "+".join(map(str, study.keep)), **sizes}
    store = ResumableCache(cells, {**kept, "ada_steps": ada_steps, "methods": "+".join(chosen)})
    scores, plane, refused = list[dict[str, object]](), Rows(), Rows()
    for seed in range(seeds):
        found = store.rows({"seed": seed}, partial(rows_of_seed, recipes, study, seed, seed == 0))
        scores += [{"seed": seed, **row} for row in found[0]]
        plane, refused = plane + found[1], refused + found[2]
        if progress is not None:
            progress(seed + 1, seeds)
    return _result(pd.DataFrame(scores), pd.DataFrame(plane), pd.DataFrame(refused), target, points)


def _check(sizes: dict[str, int], epochs: Sequence[int]) -> None:
    for name, value in sizes.items():
        if value < LEAST[name]:
            raise TvgradError(f"{name} must be a whole number of at least {LEAST[name]}, not {value}")
    if not epochs or min(epochs) < 1:
        raise TvgradError("epochs must be whole numbers of at least 1, with commas between them")


def _result(
    scores: pd.DataFrame, plane: pd.DataFrame, refused: pd.DataFrame, target: str, points: float
) -> AnalysisResult:
    table, tests = compared(scores)
    outcome, evidence = _judged(table, tests, points)
    said = [sentence for epochs in dict.fromkeys(table["epochs"]) for sentence in _of_epoch(table, epochs)]
    for method, part in refused.groupby("method") if len(refused) else ():
        said.append(f"{method} refused {counted(len(part), 'merge')} and is left out there: {part['why'].iloc[0]}")
    at_edge = table[table["at_edge"] > 0]
    if len(at_edge):
        names = ", ".join(f"{row.method} ({row.epochs})" for row in at_edge.itertuples())
        said.append(f"coefficients at the edge of the widest search, by method (and epochs): {names}")
    return AnalysisResult(
        claim=f"On {target}, with a coefficient searched for each, no merging method is better than the plain sum of "
        f"task vectors by more than {points:g} points of accuracy.",
        outcome=outcome,
        evidence=evidence,
        table=table,
        draw=partial(draw_gains, table),
        others={"plane": partial(draw_plane, plane)},
        verdicts=tuple(said),
    )


def compared(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[CrossedMean]]:
    """Compare every method with the pretrained model, with single-task models, and with the sum of task vectors.

    Args:
        scores: seed, method, epochs, task, sample_scores; of methods also alpha, at_edge, seconds, and megabytes where
            they were watched.

    Returns:
        One row for each number of epochs and method that has all seeds, in points; and beside it the test against the
        sum, where the row is that of another method (`p_against_sum` is corrected by Holm's method).
    """
    rows, tests = [], []
    seeds = scores["seed"].nunique()
    for epochs, part in scores.groupby("epochs"):
        models = {
            name: [np.array(list(task["sample_scores"])) for _, task in mine.groupby("task", sort=False)]
            for name, mine in part.groupby("method", sort=False)
            if mine["seed"].nunique() == seeds
        }
        cost = part.groupby("method").agg({"alpha": "mean", "at_edge": "mean", "seconds": "median", "megabytes": "max"})
        for name, values in models.items():
            gain = crossed_mean(_minus(values, models[PRETRAINED]))
            row = {"epochs": epochs, "method": name, "accuracy": 100 * float(crossed_mean(values).mean)}
            row |= _ends("gain", gain) | _normalised(values, models[SINGLE], name)
            tests.append(crossed_mean(_minus(values, models[SUM])))
            row |= _ends("against_sum", tests[-1])
            row |= cost.loc[name].to_dict()
            row |= {"p_gain": gain.p_value() if name != PRETRAINED else 1.0}
            rows.append(row)
    table = pd.DataFrame(rows)
    others = ~table["method"].isin((PRETRAINED, SINGLE, SUM))
    table["at_edge"] = (seeds * table["at_edge"].astype(float).fillna(0)).round().astype(int)
    table["p_against_sum"] = np.nan
    table.loc[others, "p_against_sum"] = holm([one.p_value() for one, of in zip(tests, others, strict=True) if of])
    table.loc[others, "p_gain"] = holm(list(table.loc[others, "p_gain"]))
    return table, tests


def _minus(first: Samples, second: Samples) -> Samples:
    return [one - two for one, two in zip(first, second, strict=True)]


def _ends(name: str, found: CrossedMean) -> dict[str, float]:
    ends = found.interval(-1.0, 1.0)
    return {name: 100 * ends.mean, f"{name}_low": 100 * ends.low, f"{name}_high": 100 * ends.high}


def _normalised(values: Samples, single: Samples, name: str) -> dict[str, float]:
    if name == SINGLE:
        return {"normalised": 1.0, "normalised_low": 1.0, "normalised_high": 1.0}
    if not all(task.any() for task in single):
        return {"normalised": np.nan, "normalised_low": np.nan, "normalised_high": np.nan}
    found = crossed_mean(*crossed_ratio(values, single)).interval(0)
    return {"normalised": found.mean, "normalised_low": found.low, "normalised_high": found.high}


def _judged(table: pd.DataFrame, tests: Sequence[CrossedMean], points: float) -> tuple[str, str]:
    """Every method of every number of epochs against the sum of the same models, at the margin."""
    margin, level = points / 100, 1 - CONFIDENCE
    others = table.index[~table["method"].isin((PRETRAINED, SINGLE, SUM))]
    if not len(others):
        return UNDECIDED, "no other method was compared"
    found = [tests[place].p_value(margin) for place in others]
    above = [float(tests[place].mean) > margin for place in others]
    best = table.loc[table.loc[others, "against_sum"].idxmax()]
    evidence = (
        f"of {counted(len(others), 'comparison')} the largest difference is that of {best['method']} after "
        f"{counted(int(best['epochs']), 'epoch')}, {_words(best, 'against_sum')} points"
    )
    if any(up and p <= level for up, p in zip(above, holm(found), strict=True)):
        return FAILS, evidence
    if any(above) or max(found) > level:
        return UNDECIDED, evidence
    gains = table[(table["gain"] > 0) & (table["p_gain"] <= level) & ~table["method"].isin((PRETRAINED, SINGLE))]
    return (HOLDS, evidence) if len(gains) else (VACUOUS, f"{evidence}; no method is shown to gain anything")


def _words(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.1f} [{row[f'{name}_low']:+.1f}, {row[f'{name}_high']:+.1f}]"


def _of_epoch(table: pd.DataFrame, epochs: int) -> list[str]:
    part = table[table["epochs"] == epochs]
    rows = part.set_index("method")
    merged = part[~part["method"].isin((PRETRAINED, SINGLE))].sort_values("gain", ascending=False)
    level, start = 1 - CONFIDENCE, f"after {counted(int(epochs), 'epoch')}"
    shown = [f"{row['method']} {_words(row, 'gain')}" for _, row in merged.head(3).iterrows()]
    alone, whole = (_words(rows.loc[name], "gain") for name in (SINGLE, SUM))
    said = [
        f"{start}: pretrained {rows.loc[PRETRAINED, 'accuracy']:.1f}, single-task models {alone} above it, the sum "
        f"{whole}; best of merged: {'; '.join(shown)}"
    ]
    for word, sign in (("better", 1), ("worse", -1)):
        names = merged.loc[(merged["p_against_sum"] <= level) & (sign * merged["against_sum"] > 0), "method"]
        said.append(f"{start}: shown to be {word} than the sum: {', '.join(names) or 'none'}")
    lost = merged.loc[(merged["p_gain"] <= level) & (merged["gain"] < 0), "method"]
    said.append(f"{start}: shown to be worse than the pretrained model: {', '.join(lost) or 'none'}")
    return said
