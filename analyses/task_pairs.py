"""Told from gradients at theta_0: how well the relation of real tasks is known before any of them is trained.

Every pair of tasks of several recipes with real data is predicted from one gradient and one Hessian-vector product a
task, tuned by three optimizers, and measured. Two baselines stand beside: the cosine of the gradients alone, which
needs no product, and guesses that look at no data (a cosine of 0; that every other task vector harms).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import load_recipes

from .analysis_result import AnalysisResult, outcome_of
from .concept_figures import panels
from .concept_verdicts import overall
from .intervals import Interval
from .jackknife import jackknife
from .pair_study import EPOCHS, RULES, pair_rows
from .resumable_cache import ResumableCache, Rows
from .task_training import FEWEST

FAMILIES = "digits,suite,suite-vit,coloured-digits"
RATES = {"digits": 0.05, "suite": 2e-3, "suite-vit": 2e-3, "coloured-digits": 5e-3}
"""Recipe -> the rate of gd and sgd; another recipe's own."""
COSINES = {"one product": "own_cosine", "gradients": "cos_gradients"}
SIGNS = {"one product": "own", "with --cross": "cross", "gradients": "first_order", "always harms": "harm"}
SAME = 1e-6  # a difference that is rounding
WIDTH, HEIGHT = 9.0, 3.0
COLOURS = {"gd": "C0", "sgd": "C1", "adam": "C2"}


def analyse(
    target: str = FAMILIES,
    seeds: int = 1,
    samples: int = 200,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Predict and measure all pairs.

    Args:
        target: recipes, separated by commas.
        seeds: training samples and their orders; rows of one pair are averaged over them.
        samples: at most so many a task.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with the cells done and their number.

    Returns:
        The result.

    Raises:
        TvgradError: no seed, too few samples, no recipe, or one of fewer than three tasks.
    """
    if seeds < 1:
        raise TvgradError(f"seeds must be at least 1, not {seeds}")
    if samples < FEWEST:
        raise TvgradError(f"samples must be at least {FEWEST}, not {samples}")
    store = ResumableCache(cells, {"samples": samples})
    names = list(dict.fromkeys(name.strip() for name in target.split(",") if name.strip()))
    if not names:
        raise TvgradError(f"{target!r} names no recipe: give some, with commas between them, as in {FAMILIES}")
    families = {name: load_recipes(name) for name in names}  # all at first: a wrong name is told before long work
    rows: Rows = []
    for name, recipes in families.items():
        if len(recipes) < 3:
            raise TvgradError(f"{name} has {len(recipes)} of the three tasks or more that make pairs: give another one")
    for place, (name, recipes) in enumerate(families.items()):
        rate = RATES.get(name, recipes[0].lr)
        for seed in range(seeds):
            key = {"target": name.replace("/", "_"), "rate": rate, "seed": seed}
            found = store.rows(key, partial(pair_rows, recipes, rate, seed, samples))[0]
            rows += [{"family": name, "seed": seed, **row} for row in found]
            if progress is not None:
                progress(place * seeds + seed + 1, len(names) * seeds)
    return _result(pd.DataFrame(rows))


def groups_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Group tasks: families that share a task's name share its data, and are one group.

    Args:
        table: columns family, task_a and task_b.

    Returns:
        Names of families -> their tasks.
    """
    tasks = {
        str(family): sorted({*part["task_a"], *part["task_b"]}) for family, part in table.groupby("family", sort=False)
    }
    found: dict[str, list[str]] = {}
    for family, own in tasks.items():
        known = next((name for name, others in found.items() if set(others) & set(own)), None)
        if known is None:
            found[family] = own
        else:
            found[known] = sorted({*found[known], *own})
    return found


def correlation(table: pd.DataFrame, column: str) -> float:
    """Spearman's correlation of a prediction with the measured cosine, a mean over families and seeds.

    Args:
        table: columns family, seed, cos_task_vectors and the prediction's.
        column: the prediction.

    Returns:
        The mean; NaN where a family is left with too few pairs.
    """
    found = [
        float(stats.spearmanr(part[column], part["cos_task_vectors"]).statistic)
        for _, part in table.groupby(["family", "seed"])
    ]
    return sum(found) / len(found)


def error(table: pd.DataFrame, column: str | None) -> float:
    """The mean distance of a predicted cosine from the measured one.

    Args:
        table: columns cos_task_vectors and the prediction's.
        column: the prediction; None is the guess 0.

    Returns:
        The mean over pairs.
    """
    guess = 0.0 if column is None else table[column]
    return float((table["cos_task_vectors"] - guess).abs().mean())


def signs_right(table: pd.DataFrame, way: str) -> float:
    """How often the sign of interference was right, on both tasks of every pair.

    Args:
        table: columns change_of_a, change_of_b and the predictions'.
        way: own, cross, first_order (the sign of minus the cosine of the gradients) or harm (always above 0).

    Returns:
        The share.
    """
    right = 0.0
    for end in ("change_of_a", "change_of_b"):
        if way == "harm":
            harms = pd.Series(True, index=table.index)
        elif way == "first_order":
            harms = table["cos_gradients"] < 0
        else:
            harms = table[f"{way}_{end}"] > 0
        right += float((harms == (table[end] > 0)).mean()) / 2
    return right


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for rule in RULES:
        for epochs in EPOCHS:
            part = table[(table["rule"] == rule) & (table["epochs"] == epochs)]
            groups = groups_of(part)
            pairs = len(part) // part["seed"].nunique()
            row: dict[str, object] = {"rule": rule, "epochs": epochs, "pairs": pairs}
            of_share = partial(jackknife, part, groups=groups, of_one_pair=1 / pairs)
            for name, column in COSINES.items():
                row |= _columns(f"rank, {name}", jackknife(part, partial(correlation, column=column), groups, -1, 1))
            row |= _columns("rank gained", jackknife(part, _rank_gained, groups))
            for name, guess in {**COSINES, "guess 0": None}.items():
                row[f"error, {name}"] = error(part, guess)
            row |= _columns("error saved", jackknife(part, _error_saved, groups))
            for name, way in SIGNS.items():
                row |= _columns(f"signs, {name}", of_share(partial(signs_right, way=way), least=0, most=1))
            row |= _columns("signs gained", of_share(partial(_signs_gained, way="own")))
            row |= _columns("signs gained, --cross", of_share(partial(_signs_gained, way="cross")))
            rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, interval: Interval) -> dict[str, object]:
    return {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}


def _tidy(summary: pd.DataFrame) -> pd.DataFrame:
    """One row for each number: rule, epochs, quantity, value, and its interval where there is one."""
    rows = []
    for _, row in summary.iterrows():
        for name in summary.columns.drop(["rule", "epochs"]):
            if not name.endswith((" low", " high")):
                ends = (row.get(f"{name} {end}", float("nan")) for end in ("low", "high"))
                rows.append([row["rule"], row["epochs"], name, row[name], *ends])
    return pd.DataFrame(rows, columns=["rule", "epochs", "quantity", "value", "low", "high"])


def _rank_gained(table: pd.DataFrame) -> float:
    return correlation(table, "own_cosine") - correlation(table, "cos_gradients")


def _error_saved(table: pd.DataFrame) -> float:
    return error(table, "cos_gradients") - error(table, "own_cosine")


def _signs_gained(table: pd.DataFrame, way: str) -> float:
    return signs_right(table, way) - signs_right(table, "first_order")


def _result(table: pd.DataFrame) -> AnalysisResult:
    summary = _summary(table)
    last = max(EPOCHS)
    descent = summary[(summary["rule"] == "gd") & (summary["epochs"] == last)].iloc[0]
    outcomes = [_better(descent, name) for name in ("error saved", "signs gained")]
    return AnalysisResult(
        claim=(
            f"After {last} epochs of gradient descent one Hessian-vector product a task tells the cosine of task "
            "vectors and the sign of interference better than the gradients alone."
        ),
        outcome=overall(outcomes),
        evidence=(
            f"{int(descent['pairs'])} pairs of {', '.join(table['family'].unique())}: error of the cosine "
            f"{descent['error, one product']:.3f} against {descent['error, gradients']:.3f}, signs right "
            f"{descent['signs, one product']:.0%} against {descent['signs, gradients']:.0%}"
        ),
        table=_tidy(summary),
        draw=partial(_draw, table, summary),
        verdicts=(*(_verdict(row) for _, row in summary.iterrows()), *_lambda_verdict(table)),
    )


def _better(row: pd.Series, name: str) -> str:
    if abs(row[name]) < SAME:
        return "as good"
    return outcome_of(row[f"{name} low"] > 0, row[f"{name} high"] < 0)


def _verdict(row: pd.Series) -> str:
    def interval(name: str) -> str:
        return str(Interval(row[name], row[f"{name} low"], row[f"{name} high"]))

    ranks = "; ".join(f"{name} {interval(f'rank, {name}')}" for name in COSINES)
    signs = "; ".join(f"{name} {interval(f'signs, {name}')}" for name in SIGNS)
    return (
        f"{row['rule']}, {row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}: rank correlation of the cosine "
        f"{ranks}; mean error {row['error, one product']:.3f}, of gradients {row['error, gradients']:.3f}, of the "
        f"guess 0 {row['error, guess 0']:.3f}; signs right {signs}; better than gradients: cosine "
        f"{_better(row, 'error saved')}, signs {_better(row, 'signs gained')}, with --cross "
        f"{_better(row, 'signs gained, --cross')}"
    )


def _lambda_verdict(table: pd.DataFrame) -> list[str]:
    """How far the ends of the interval of lambda are off, where both are inside the range that was looked at."""
    said = []
    known = table[(table["rule"] == "gd") & (table["epochs"] == max(EPOCHS)) & (table["seed"] == 0)]
    for way, name in (("own", "one product"), ("cross", "--cross")):
        parts = []
        for end in ("lambda_low", "lambda_high"):
            off = (known[f"{way}_{end}"] - known[end]).abs().dropna()
            parts.append(
                f"{end.removeprefix('lambda_')} end off by {off.median():.2g} in the median, {off.max():.2g} at most"
            )
        both = int((known["lambda_low"].isna() == known[f"{way}_lambda_low"].isna()).sum())
        said.append(
            f"interval of lambda, {name}: whether there is one is right for {both} of {len(known)} pairs; "
            f"{'; '.join(parts)}"
        )
    return said


def _draw(table: pd.DataFrame, summary: pd.DataFrame, ax: Axes) -> None:
    axes = panels(ax, 3, WIDTH, HEIGHT, share=False)
    last = table[(table["epochs"] == max(EPOCHS)) & (table["seed"] == 0)]
    for panel, (name, column) in zip(axes, COSINES.items(), strict=False):
        for rule, part in last.groupby("rule"):
            panel.plot(part[column], part["cos_task_vectors"], ".", color=COLOURS[str(rule)], markersize=4, label=rule)
        panel.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        panel.set(xlabel=f"cosine, {name}", ylabel=f"cosine of task vectors, {max(EPOCHS)} epochs")
    for place, name in enumerate(SIGNS):
        values, low, high = (summary[f"signs, {name}{end}"] for end in ("", " low", " high"))
        axes[2].errorbar(
            [row + 0.18 * place - 0.27 for row in range(len(summary))], values, yerr=[values - low, high - values],
            fmt="o", markersize=4, linewidth=1, label=name,
        )  # fmt: skip
    axes[2].set_xticks(range(len(summary)), [f"{row.rule}\n{row.epochs}" for row in summary.itertuples()], fontsize=7)
    axes[2].set(ylabel="signs of interference right", ylim=(0, 1.05), xlabel="optimizer, epochs")
    for panel, place in ((axes[0], "outside lower left"), (axes[2], "outside lower right")):
        panel.figure.legend(*panel.get_legend_handles_labels(), loc=place, ncols=4, fontsize=7, markerscale=1.5)
