"""Unlearning: does the negated task vector of a text take the text out of a language model, and leave others in?

A model is first taught all texts of a target. From there each text alone is trained on: the change is its task vector
tau. The statement put to the test, as Li et al. (arXiv 2504.10957) and task arithmetic (arXiv 2212.04089) have it:
`theta_0 - s tau` forgets the text and keeps an unrelated one, and forgets an alike text more than an unrelated one. A
text is forgotten from the first s on at which its loss is FORGOTTEN nats a token above theta_0's; what the others lose
is told at that s, between two values of s by a straight line. Beside the dense vector stand its cuts to low rank, LoRA,
its largest entries, gradient ascent on the text, and training on the others, whose strength is epochs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.vectors.parameters import Weights

from .analysis_result import FAILS, HOLDS, UNDECIDED, AnalysisResult, outcome_of
from .concept_figures import panels
from .concept_verdicts import overall
from .intervals import seed_mean
from .resumable_cache import ResumableCache, Rows
from .unlearning_methods import ASCENT_RATE, Lesson, load, lora_vector, low_rank, sparse, taken, train
from .unlearning_scores import TextProbe, probe_of, scores

FORGOTTEN = 1.0
"""Nats a token that a loss rises until its text counts as forgotten."""
KEPT = 0.1
"""Nats a token that the loss of a text that is kept may rise until then."""
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
WIDTH, HEIGHT = 8.0, 3.6


@dataclass(frozen=True)
class Study:
    """What is trained and measured.

    Attributes:
        learning: epochs over all texts before.
        epochs: of a task vector.
        against: epochs of gradient ascent, and of training on the others.
        prompts: of each text.
        strengths: multiples of the task vector that are subtracted.
        ranks: of the cuts.
        shares: of entries that are kept.
        lora: rank of an adapter; 0 trains none.
        rate: of all training, in rates of the recipe.
    """

    learning: int
    epochs: int
    against: int
    prompts: int
    strengths: tuple[float, ...]
    ranks: tuple[int, ...]
    shares: tuple[float, ...]
    lora: int
    rate: float = field(default=1.0, repr=False)


def analyse(
    target: str = "words",
    seeds: int = 3,
    learning: int = 60,
    epochs: int = 5,
    against: int = 4,
    prompts: int = 8,
    strengths: Sequence[float] = STRENGTHS,
    ranks: Sequence[int] = (1, 4),
    shares: Sequence[float] = (0.1, 0.01),
    lora: int = 4,
    unrelated: str = "licence",
    texts: Sequence[str] = ("",),
    blocks: int = 0,
    rate: float = 1.0,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Teach texts to a language model, and make it forget each.

    Args:
        target: recipes of language, one a text.
        seeds: how many orders of mini-batches.
        learning: epochs over all texts before.
        epochs: of a task vector.
        against: epochs of gradient ascent, and of training on the others.
        prompts: of each text, for Rouge-L.
        strengths: multiples of the task vector that are subtracted.
        ranks: of cut task vectors.
        shares: of entries that are kept.
        lora: rank of an adapter; 0 trains none.
        unrelated: the text that is like no other.
        texts: which texts are forgotten in turn; all if empty.
        blocks: of each text at the most, from its beginning: a large model takes seconds for each; 0 takes all.
        rate: of all training, in rates of the recipe.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with what is done and how much there is.

    Returns:
        The result.

    Raises:
        TvgradError: the target has no task of language, fewer than two alike ones, or an option is out of range.
    """
    study = Study(learning, epochs, against, prompts, tuple(strengths), tuple(ranks), tuple(shares), lora, rate)
    _check(study, seeds, blocks)
    recipes = {recipe.name: _shortened(recipe, blocks) for recipe in load_recipes(target)}
    probes = {name: probe_of(recipe, prompts) for name, recipe in recipes.items()}
    wanted = list(dict.fromkeys(name for name in texts if name)) or list(recipes)
    missing = [name for name in (*wanted, unrelated) if name not in recipes]
    if missing or len(recipes) < 3:
        raise TvgradError(
            f"{target} has the texts {', '.join(recipes)}"
            + (f" and none called {missing[0]!r}" if missing else ": a study takes two alike ones and another")
        )
    if wanted == [unrelated]:
        raise TvgradError(f"{unrelated!r} is the unrelated text, which is like no other: give another one to forget")
    amount = f", {blocks} blocks of each text at the most" if blocks else ""
    amount += f", {rate:g} times its rate" if rate != 1 else ""
    said = f"{target}{amount}, {seeds} seed{'s' if seeds > 1 else ''}, {study}"
    store = ResumableCache(cells, {"target": target + amount, "study": str(study)})
    rows: Rows = []
    for seed in range(seeds):
        taught = cache(partial(_taught, recipes, probes, study, seed))  # once for all texts, where one is left to do
        for text in wanted:
            key = {"text": text, "seed": seed}
            rows += store.rows(
                key, lambda key=key, taught=taught: (_of_text(*taught(), recipes, probes, study, **key),)
            )[0]
            if progress is not None:
                progress(len({(row["seed"], row["text"]) for row in rows}), seeds * len(wanted))
    measured = pd.DataFrame(rows)
    found = forgetting(measured, list(recipes))
    return _result(measured, found, unrelated=unrelated, texts=list(recipes), said=said)


def _check(study: Study, seeds: int, blocks: int) -> None:
    """Refuse an option that is out of range, before anything is loaded."""
    counts = {"seeds": seeds, "learning": study.learning, "epochs": study.epochs, "against": study.against}
    above = [*counts.items(), ("prompts", study.prompts), ("rate", study.rate)]
    above += [("strengths", value) for value in study.strengths] + [("ranks", value) for value in study.ranks]
    for name, value in above:
        if not 0 < value < math.inf:
            raise TvgradError(f"{name} must be a finite number above 0, not {value:g}")
    for share in study.shares:
        if not 0 < share <= 1:
            raise TvgradError(f"shares are of all entries and lie above 0 and up to 1: {share:g} does not")
    for name, value in (("lora", study.lora), ("blocks", blocks)):
        if value < 0:
            raise TvgradError(f"{name} must be at least 0, not {value}: give 0 to do without")


def _shortened(recipe: Recipe, blocks: int) -> Recipe:
    """The recipe with the first blocks of its text alone."""
    if not 0 < blocks < len(recipe.train):
        return recipe
    shorter = copy.copy(recipe)
    shorter.train = recipe.train.subset(range(blocks))
    return shorter


def _taught(
    recipes: Mapping[str, Recipe], probes: Mapping[str, TextProbe], study: Study, seed: int
) -> tuple[nn.Module, Weights, dict[str, float]]:
    """A model that has learned all texts, its weights, and how well it knows them."""
    model = copy.deepcopy(next(iter(recipes.values())).model)
    for _ in train(model, list(recipes.values()), Lesson(study.learning, study.rate, seed)):
        pass
    return model, taken(model), scores(model, probes)


def _of_text(
    model: nn.Module,
    start: Weights,
    known: Mapping[str, float],
    recipes: Mapping[str, Recipe],
    probes: Mapping[str, TextProbe],
    study: Study,
    *,
    text: str,
    seed: int,
) -> Rows:
    """Everything that is measured while one text is forgotten."""
    told = {"seed": seed, "text": text}
    rows: Rows = [told | {"method": "none", "strength": 0.0} | dict(known)]
    for method, strength in _forgotten(model, start, recipes, text, study, seed):
        rows.append(told | {"method": method, "strength": strength} | scores(model, probes))
    return rows


def _forgotten(
    model: nn.Module, start: Weights, recipes: Mapping[str, Recipe], text: str, study: Study, seed: int
) -> Iterator[tuple[str, float]]:
    """Put the weights of each method and strength into the model, one after another."""
    own, others = recipes[text], [recipe for name, recipe in recipes.items() if name != text]
    for method, vector in _vectors(model, start, own, study, seed):
        for strength in study.strengths:
            load(model, {name: tensor - strength * vector[name] for name, tensor in start.items()})
            yield method, strength
    load(model, start)
    for epoch in train(model, [own], Lesson(study.against, ASCENT_RATE * study.rate, seed, sign=-1.0)):
        yield "ascent", float(epoch)
    load(model, start)
    for epoch in train(model, others, Lesson(study.against, study.rate, seed)):
        yield "others", float(epoch)


def _vectors(
    model: nn.Module, start: Weights, recipe: Recipe, study: Study, seed: int
) -> Iterator[tuple[str, Weights]]:
    load(model, start)
    for _ in train(model, [recipe], Lesson(study.epochs, study.rate, seed)):
        pass
    vector = {name: tensor - start[name] for name, tensor in taken(model).items()}
    yield "dense", vector
    for rank in study.ranks:
        yield f"rank {rank}", low_rank(vector, rank)
    for share in study.shares:
        yield f"largest {100 * share:g} %", sparse(vector, share)
    if study.lora:
        load(model, start)
        yield f"LoRA {study.lora}", lora_vector(model, recipe, study.lora, Lesson(study.epochs, study.rate, seed))


def forgetting(measured: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
    """Find where each method forgets its text, and what the other texts lose by then.

    Args:
        measured: seed, text, method, strength, loss_<text> and rouge_<text>; the method `none` is theta_0.
        texts: their names.

    Returns:
        Rows of seed, text, method, strength (missing where the text is never forgotten), rise_<text> (of the loss, in
        nats a token) and rouge_<text>.
    """
    rows = []
    for (seed, text), part in measured.groupby(["seed", "text"], sort=False):
        known = part[part["method"] == "none"].iloc[0]
        for method, of_method in part[part["method"] != "none"].groupby("method", sort=False):
            path = pd.concat([known.to_frame().T, of_method]).sort_values("strength")
            values = {
                f"rise_{name}": path[f"loss_{name}"].to_numpy(float) - float(known[f"loss_{name}"]) for name in texts
            } | {f"rouge_{name}": path[f"rouge_{name}"].to_numpy(float) for name in texts}
            where = _first_reached(values[f"rise_{text}"], FORGOTTEN)
            steps = np.arange(len(path))
            told = {"seed": seed, "text": text, "method": method}
            strength = path["strength"].to_numpy(float)
            rows.append(
                told
                | {"strength": np.interp(where, steps, strength)}
                | {name: float(np.interp(where, steps, value)) for name, value in values.items()}
            )
    return pd.DataFrame(rows)


def _first_reached(values: np.ndarray[tuple[int], np.dtype[np.float64]], level: float) -> float:
    """The place, between two entries, at which values first reach a level; NaN where they never do."""
    above = np.flatnonzero(values >= level)
    if not len(above):
        return float("nan")
    place = int(above[0])
    low, high = values[place - 1], values[place]
    return place - 1 + float((level - low) / (high - low)) if np.isfinite(high) else float(place)


def _result(
    measured: pd.DataFrame, found: pd.DataFrame, *, unrelated: str, texts: Sequence[str], said: str
) -> AnalysisResult:
    alike = [name for name in texts if name != unrelated]
    pairs = found[found["text"].isin(alike)].copy()
    pairs["alike"] = [_others(row, [name for name in alike if name != row["text"]]) for _, row in pairs.iterrows()]
    pairs["unrelated"] = pairs[f"rise_{unrelated}"]
    dense = pairs[pairs["method"] == "dense"]
    kept, ordered = dense["unrelated"] <= KEPT, dense["alike"] > dense["unrelated"]
    outcomes = [outcome_of(bool(part.all())) if len(dense) else UNDECIDED for part in (kept, ordered)]
    parts = (
        f"the unrelated text is kept: {outcomes[0]}, {int(kept.sum())} of {len(dense)} models, its loss rises by "
        f"{_mean(dense, 'unrelated')}",
        f"the alike text loses more: {outcomes[1]}, {int(ordered.sum())} of {len(dense)} models, its loss rises by "
        f"{_mean(dense, 'alike')}",
    )
    return AnalysisResult(
        claim=(
            f"Subtracting a text's task vector until its loss is {FORGOTTEN:g} nat a token higher raises that of an "
            f"unrelated text by {KEPT:g} at the most, and that of an alike text by more."
        ),
        outcome=overall(outcomes),
        evidence=f"{'; '.join(parts)}; conditions: {said}",
        table=found,
        draw=partial(_draw, measured, str(pairs["text"].iloc[0]), unrelated),
        others={"methods": partial(_draw_methods, pairs)},
        verdicts=tuple(_verdict(str(method), part, dense) for method, part in pairs.groupby("method", sort=False)),
    )


def _others(row: pd.Series, names: Sequence[str]) -> float:
    return float(np.mean([row[f"rise_{name}"] for name in names]))


def _verdict(method: str, part: pd.DataFrame, dense: pd.DataFrame) -> str:
    reached = part[part["strength"].notna()]
    if not len(reached):
        return f"{method}: fails, forgets none of {len(part)} texts at the strengths tried"
    outcome = HOLDS if len(reached) == len(part) and bool((reached["unrelated"] <= KEPT).all()) else FAILS
    return (
        f"{method}: {outcome}, forgets {len(reached)} of {len(part)} texts, at strength {_mean(reached, 'strength')}; "
        f"then the unrelated text's loss is higher by {_mean(reached, 'unrelated')}, the alike one's by "
        f"{_mean(reached, 'alike')}" + ("" if method == "dense" else _beside(reached, dense))
    )


def _beside(part: pd.DataFrame, dense: pd.DataFrame) -> str:
    """How much more a method harms the unrelated text than the whole task vector does, model by model."""
    both = part.merge(dense, on=["seed", "text"], suffixes=("", "_dense"))
    more = both.assign(more=both["unrelated"] - both["unrelated_dense"])
    return f"; the unrelated one's by {_mean(more, 'more')} more than with the dense vector"


def _mean(part: pd.DataFrame, name: str) -> str:
    """The mean over models, with an interval over seeds where there are several."""
    of_seeds = part.groupby("seed")[name].mean().dropna().to_numpy()
    return str(seed_mean(of_seeds)) if len(of_seeds) > 1 else f"{of_seeds.mean():.3f}" if len(of_seeds) else "nothing"


def _draw(measured: pd.DataFrame, text: str, unrelated: str, ax: Axes) -> None:
    """Loss and Rouge-L of every text against the multiple of one text's task vector, and what each method costs."""
    part = measured[(measured["text"] == text) & measured["method"].isin(["none", "dense"])]
    names = [column.removeprefix("loss_") for column in measured if column.startswith("loss_")]
    axes = panels(ax, 2, WIDTH, HEIGHT, share=False)
    of_strength = part.groupby("strength")
    for name in names:
        label = (
            f"{name} (negated)" if name == text else f"{name} (unrelated)" if name == unrelated else f"{name} (alike)"
        )
        for panel, kind in zip(axes, ("loss", "rouge"), strict=True):
            column = of_strength[f"{kind}_{name}"]
            panel.plot(column.mean().index, column.mean(), marker="o", markersize=3, label=label)
            panel.fill_between(column.min().index, column.min(), column.max(), alpha=0.2)
    axes[0].axhline(part[part["method"] == "none"][f"loss_{text}"].mean() + FORGOTTEN, color="0.5", linestyle=":")
    axes[0].set_ylabel("loss, nats a token")
    axes[1].set_ylabel("Rouge-L")
    for panel in axes:
        panel.set_xlabel(f"task vectors of {text!r} subtracted")
    axes[0].legend(fontsize=8)


def _draw_methods(pairs: pd.DataFrame, ax: Axes) -> None:
    """What the other texts lose when a text is forgotten, method by method; dots are single models."""
    names, side = list(pairs["method"].unique()), ax.get_yaxis_transform()
    for shift, (column, label) in zip((-0.15, 0.15), (("unrelated",) * 2, ("alike",) * 2), strict=True):
        for place, name in enumerate(names):
            values = pairs.loc[pairs["method"] == name, column].dropna()
            colour = f"C{int(shift > 0)}"
            ax.scatter(values, [place + shift] * len(values), s=14, color=colour, label=None if place else label)
            if not len(values) and shift < 0:
                ax.text(
                    0.02,
                    place,
                    "not forgotten",
                    va="center",
                    fontsize=8,
                    color="0.4",
                    transform=side,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )  # over the dotted line
    ax.axvline(KEPT, color="0.5", linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
    ax.set_xlabel(f"rise of the loss when the text's own is {FORGOTTEN:g} higher, nats a token")
    ax.legend(fontsize=8)
