"""Is one epoch enough? Merging after k = 1, 2, 4 .. epochs, by several methods, against single-task and joint training.

For every optimizer and seed each task is tuned alone and all are tuned jointly; after k epochs the task vectors are
merged and every task's test accuracy is measured with its own head. Alpha and rates are searched on samples of their
own, which are neither trained on nor tested on; `mean` and `atm` have no alpha. A seed decides the training samples,
where there are too many, and their order; 95 % confidence intervals are over seeds and test samples together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.merging import METHODS, merge_vectors, tune_and_merge
from tvgrad.merging.evaluation import ALPHAS, search_alpha, shifted
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import make_rule
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, cosine, norm

from .analysis_result import AnalysisResult
from .intervals import Interval, crossed_mean, crossed_ratio
from .merge_claims import POINTS, claim_verdicts, overall_outcome, sample_arrays
from .merge_figures import draw_accuracy, draw_direction, draw_prediction
from .merge_rates import RATES, SEARCH, FoundRate, best_rate, rate_score, read_optimizer
from .resumable_cache import ResumableCache, Rows
from .task_training import FEWEST, FEWEST_TEST, MOST_TRAIN, Course, Task, tasks_of, train_alone, train_jointly

SEARCHED = ("task_arithmetic", "ties", "dare", "median", "tsv_m")
LEAST = {"seeds": 2, "epochs": 2, "batch_size": 1, "images": FEWEST, "test_images": FEWEST_TEST, "alphas": 1}


def analyse(
    target: str = "digits",
    optimizers: Sequence[str] = ("gd",),
    seeds: int = 5,
    epochs: int = 8,
    batch_size: int = 64,
    images: int = MOST_TRAIN,
    test_images: int = MOST_TRAIN,
    alphas: int = len(ALPHAS) - 1,
    tasks: str = "",
    points: float = POINTS,
    cells: str = "",
) -> AnalysisResult:
    """Run the study.

    Args:
        target: a recipe whose tasks share one pretrained model.
        optimizers: names, each alone (the study's own learning rate), with a learning rate (`adam:1e-3`), or with
            `search`: the rate whose single-task models are the best (`merge_rates`). The rate of joint training is
            always searched, round that rate.
        seeds: how many.
        epochs: the last number of epochs; those before it are the powers of two.
        batch_size: for every optimizer but gd.
        images: training samples of a task that are used.
        test_images: test samples of a task that are used: a quarter to search rates on, a quarter to search alpha on,
            and a half to test on.
        alphas: steps between 0 and 1 of the grid that alpha is searched on.
        tasks: names of tasks with a plus sign between them; empty takes all.
        points: what "as good" means, in points of accuracy.
        cells: a folder that keeps what is finished, for a study that may be stopped; empty keeps nothing.

    Returns:
        The result: the main claim's verdict, those of all others, the table, and the figures.

    Raises:
        TvgradError: there are fewer than two tasks, or an option is out of range.
    """
    sizes = {"epochs": epochs, "batch_size": batch_size, "images": images, "test_images": test_images, "alphas": alphas}
    _check_sizes({"seeds": seeds, **sizes})
    wanted = [read_optimizer(text) for text in optimizers]
    if len({name for name, _ in wanted}) < len(wanted) or not wanted:
        raise TvgradError("optimizers must name at least one optimizer, and each once")
    recipes = load_recipes(target, tasks.split("+") if tasks else ())
    if len(recipes) < 2:
        raise TvgradError(f"{target} has one task: merging needs at least two that share a pretrained model")
    keep = sorted({2**power for power in range(epochs.bit_length())} | {epochs})
    tried = tuple(step / alphas for step in range(alphas + 1))
    store = ResumableCache(cells, {"target": target, "tasks": tasks, **sizes})
    cut = partial(tasks_of, recipes, most=images, most_test=test_images)
    scores: Rows = []
    courses: Rows = []
    notes: list[str] = []
    for name, given in wanted:
        size = None if name == "gd" else batch_size
        score = partial(rate_score, name, cut(seeds), epochs, size, seeds)  # of a seed that is not reported
        rules, said = _rates(store, {"optimizer": name, "seed": seeds}, given, score)
        notes += said
        for seed in range(seeds):
            label = {"optimizer": name, "lr": rules.lr, "joint_lr": rules.joint_lr, "seed": seed}
            cell = store.rows(label, partial(_cell, cut, rules, size, keep, seed, tried))
            scores += [{**label, **row} for row in cell[0]]
            courses += [{**label, **row} for row in cell[1]]
    return _result(pd.DataFrame(scores), pd.DataFrame(courses), target, points, notes)


def _check_sizes(sizes: Mapping[str, object]) -> None:
    for name, least in LEAST.items():
        value = sizes[name]
        if not isinstance(value, int) or value < least:
            raise TvgradError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _rates(
    store: ResumableCache,
    key: Mapping[str, object],
    given: float | None,
    score: Callable[..., Callable[[float], float]],
) -> tuple[_Rules, list[str]]:
    """The rate that is given, or the best for single tasks, and the best for joint training; what to say of them."""

    def searched(purpose: str, center: float) -> FoundRate:
        def make() -> tuple[Rows]:
            return ([asdict(best_rate(score(joint=purpose == "joint"), center))],)

        ((row,),) = store.rows({**key, "for": purpose, "lr": f"{SEARCH}-{center:g}"}, make)
        return FoundRate(**row)

    name = str(key["optimizer"])
    alone = searched("alone", RATES[name]) if given is None else FoundRate(given, False)
    joint = searched("joint", alone.rate)
    notes = [
        f"{name}: the rate {found.rate:g} of {whose} is at the edge of the widest grid"
        for found, whose in ((alone, "single tasks"), (joint, "joint training"))
        if found.at_edge
    ]
    return _Rules(name, alone.rate, joint.rate), notes


def _result(
    scores: pd.DataFrame, courses: pd.DataFrame, target: str, points: float, notes: Sequence[str]
) -> AnalysisResult:
    norms = courses.drop_duplicates(["optimizer", "seed", "task"]).merge(
        courses[courses["epochs"] == courses["epochs"].max()][["optimizer", "seed", "task", "cosine"]].rename(
            columns={"cosine": "cos_last"}
        ),
        on=["optimizer", "seed", "task"],
    )
    found = claim_verdicts(scores, norms.rename(columns={"cosine": "cos_first"}), points)
    main = [verdict for verdict in found if verdict.claim.endswith("in accuracy")]
    table = summary(scores)
    return AnalysisResult(
        claim=f"On {target}, merging after one epoch is within {points:g} points of merging after the last.",
        outcome=overall_outcome(main),
        evidence="; ".join(f"{verdict.optimizer}: {verdict.outcome}, {verdict.numbers}" for verdict in main),
        table=table,
        draw=partial(draw_accuracy, table),
        others={"direction": partial(draw_direction, courses), "prediction": partial(draw_prediction, scores)},
        verdicts=(*map(str, found), *notes),
    )


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over tasks, seeds and test samples with confidence intervals: one row an optimizer, method and epoch.

    Args:
        scores: the long table.

    Returns:
        Columns optimizer, method, epochs, lr, alpha, accuracy, accuracy_low, accuracy_high, normalised, normalised_low,
        normalised_high; normalised is the accuracy relative to single-task models of the same epoch.
    """
    rows = []
    for optimizer, part in scores.groupby("optimizer", sort=False):
        samples = sample_arrays(part)
        used_by = part.groupby(["method", "epochs"]).agg({"lr": "first", "joint_lr": "first", "alpha": "mean"})
        for (method, epochs), values in samples.items():
            row = {"optimizer": optimizer, "method": method, "epochs": epochs}
            used = used_by.loc[method, epochs]
            row |= {"lr": used["joint_lr" if method == "joint" else "lr"], "alpha": used["alpha"]}
            single = samples["single", epochs]
            relative = Interval(1.0, 1.0, 1.0)  # by definition
            if not all(task.any() for task in single):
                relative = Interval(math.nan, math.nan, math.nan)
            elif method != "single":
                relative = crossed_mean(*crossed_ratio(values, single)).interval(0)
            for column, found in (("accuracy", crossed_mean(values).interval(0, 1)), ("normalised", relative)):
                row |= {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Rules:
    """One optimizer with a rate for single tasks and one for joint training."""

    name: str
    lr: float
    joint_lr: float

    @property
    def alone(self) -> UpdateRule:
        return make_rule(self.name, self.lr)

    @property
    def joint(self) -> UpdateRule:
        return make_rule(self.name, self.joint_lr)


def _cell(
    cut: Callable[[int], list[Task]],
    rules: _Rules,
    batch_size: int | None,
    keep: Sequence[int],
    seed: int,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[Rows, Rows]:
    """One optimizer and seed: rows of scores, and rows about norms and directions."""
    tasks, rule = cut(seed), rules.alone
    start = tasks[0].objective.initial
    alone = [train_alone(task, rule, start, keep, batch_size, seed) for task in tasks]
    joint = train_jointly(tasks, rules.joint, start, keep, batch_size, seed)
    rounds = dict(enumerate(_iterated(tasks, rule, start, batch_size, seed, max(keep)), start=1))
    first = [task.objective.gradient(start) for task in tasks]
    errors = [_predicted(task, rule, gradient, batch_size, keep) for task, gradient in zip(tasks, first, strict=True)]
    scores = []
    for epochs in keep:
        vectors = [difference(course.weights[epochs], start) for course in alone]
        models = {"pretrained": (start, 0.0), "joint": (joint.weights[epochs], math.nan), "atm": (rounds[epochs], 1.0)}
        models |= _merged(tasks, start, vectors, alphas)
        for place, task in enumerate(tasks):
            common = {"epochs": epochs, "task": task.name, "predicted_error": errors[place][epochs]}
            models_of_task = {"single": (alone[place].weights[epochs], math.nan), **models}
            for method, (weights, alpha) in models_of_task.items():
                found = task.scorer.sample_scores(weights)
                row = {"method": method, "alpha": alpha, "accuracy": sum(found) / len(found), "sample_scores": found}
                scores.append({**common, **row})
    return scores, [
        row
        for task, course, gradient in zip(tasks, alone, first, strict=True)
        for row in _course_rows(task, course, gradient, start, keep)
    ]


def _merged(
    tasks: Sequence[Task], start: Weights, vectors: Sequence[Weights], alphas: Sequence[float]
) -> dict[str, tuple[Weights, float]]:
    """Method -> merged weights and alpha, searched on samples of its own where the method has one."""
    models = {"mean": (merge_vectors(METHODS["mean"](), vectors, base=start), 1.0)}
    for name in SEARCHED:
        vector = merge_vectors(METHODS[name](), vectors)

        def score(alpha: float, vector: Weights = vector) -> float:
            weights = shifted(start, vector, alpha)
            return sum(task.scorer.score(weights, task.for_alpha) for task in tasks) / len(tasks)

        alpha, _ = search_alpha(score, alphas)
        models[name] = shifted(start, vector, alpha), alpha
    return models


def _iterated(
    tasks: Sequence[Task], rule: UpdateRule, start: Weights, batch_size: int | None, seed: int, rounds: int
) -> Iterator[Weights]:
    """ATM with one epoch a round and the mean: as many passes over the data as merging once after so many epochs."""

    def tuner(task: Task) -> Callable[[Weights, int], Weights]:
        return lambda weights, number: train_alone(
            task, rule, weights, [1], batch_size, seed + 104_729 * number
        ).weights[1]

    return tune_and_merge(start, [tuner(task) for task in tasks], rounds)


def _predicted(
    task: Task, rule: UpdateRule, gradient: Weights, batch_size: int | None, keep: Sequence[int]
) -> dict[int, float]:
    """The second-order error relative to the first-order task vector, from one gradient and one product."""
    if not isinstance(rule, LinearRule):
        return dict.fromkeys(keep, math.nan)
    steps = 1 if batch_size is None else math.ceil(len(task.train) / batch_size)
    ratio = norm(task.objective.hvp(gradient)) / norm(gradient)
    first, second = (weights(steps * max(keep)) for weights in (rule.first_order_weights, rule.second_order_weights))
    return {epochs: float(second[steps * epochs] / first[steps * epochs]) * ratio for epochs in keep}


def _course_rows(task: Task, course: Course, gradient: Weights, start: Weights, keep: Sequence[int]) -> Rows:
    norms = course.gradient_norms
    descent = {name: -tensor for name, tensor in gradient.items()}
    common = {
        "task": task.name,
        "first_share": norms[0] / sum(norms),
        "first_largest": max(norms) == norms[0],
        "epochs_run": len(norms),
    }
    return [
        {
            **common,
            "epochs": epochs,
            "gradient_norm": norms[epochs - 1] / norms[0],
            "cosine": cosine(difference(course.weights[epochs], start), descent),
        }
        for epochs in keep
    ]
