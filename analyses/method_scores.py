"""One seed of the comparison of merging methods: tasks are tuned, merged by every method, and scored.

Every method has the same search: its vector is stretched to the length of the sum of the task vectors, and steps
between nothing and once that length are tried on validation samples; while the last one is the best, up to twice, four,
eight and sixteen times that. So a method that makes a short vector, as a mean does, is not held back by it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.merging import METHODS, AdaMerging, FedNova, Measurements, Method, measure, merge_vectors
from tvgrad.merging.ada_merging import mean_entropy
from tvgrad.merging.evaluation import search_alpha, shifted
from tvgrad.merging.exact_gradient_matching import ExactGradientMatching
from tvgrad.merging.measured_functions import MEASURED_METHODS
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.theory.merge_plan import plan
from tvgrad.update_rules.base import UpdateRule
from tvgrad.vectors.algebra import add_scaled, combination, difference
from tvgrad.vectors.parameters import Weights, inner_product, norm

from .resumable_cache import Rows
from .task_training import Task, tasks_of, train_alone
from .tensor_memory import peak_bytes

PRETRAINED, SINGLE, SUM = "pretrained", "single", "task_arithmetic"
NO_MERGE = ("negation", "analogy")
"""Methods for something else than one model that does all tasks."""
DOUBLINGS = 4
ADA_RATE = 5e-3
PLANE_STEPS = 12
PLANE_EDGE = 0.15
"""How far a plane reaches beyond its points, in its own widths."""

Score = Callable[[Weights], float]
Make = Callable[[bool], tuple[Method, float]]
"""Gives a method and the seconds that measuring took for it; told to, it measures anew."""


@dataclass(frozen=True)
class MethodStudy:
    """How tasks are tuned and merged.

    Attributes:
        rule: the update rule.
        keep: numbers of epochs after which tasks are merged.
        batch_size: samples in a mini-batch; None is the full batch.
        images: training samples of a task.
        test_images: test samples of a task, all pools together.
        alphas: steps of the search.
        ada_steps: of AdaMerging.
        methods: names; none takes all that are defined for so many tasks.
    """

    rule: UpdateRule
    keep: tuple[int, ...]
    batch_size: int | None
    images: int
    test_images: int
    alphas: int
    ada_steps: int
    methods: tuple[str, ...] = ()


def rows_of_seed(recipes: Sequence[Recipe], study: MethodStudy, seed: int, first: bool) -> tuple[Rows, Rows, Rows]:
    """Tune, merge and score.

    Args:
        recipes: tasks that share one pretrained model.
        study: how.
        seed: of training samples and their order.
        first: whether to watch the memory, and to measure a plane through the models, after the last epoch.

    Returns:
        One row for each method, number of epochs and task; points of the plane; and what methods refused.
    """
    tasks = tasks_of(recipes, seed, study.images, study.test_images)
    start = tasks[0].objective.initial
    courses = [train_alone(task, study.rule, start, study.keep, study.batch_size, seed).weights for task in tasks]
    rows: Rows = []
    refused: Rows = []
    points: Rows = []
    for epochs in study.keep:
        vectors = [difference(course[epochs], start) for course in courses]
        whole = combination(*((1.0, vector) for vector in vectors))
        score = _mean_score(tasks)
        moved: dict[str, Weights] = {}
        for place, (task, course) in enumerate(zip(tasks, courses, strict=True)):
            rows.append({"method": PRETRAINED, "epochs": epochs} | _scored(task, start))
            rows.append({"method": SINGLE, "epochs": epochs} | _scored(tasks[place], course[epochs]))
        for name, make in _methods(recipes, tasks, vectors, study, epochs):
            try:
                vector, cost = _timed(make, vectors, first and epochs == max(study.keep))
            except TvgradError as error:
                refused.append({"method": name, "epochs": epochs, "why": str(error)})
                continue
            alpha, at_edge = _searched(score, start, vector, norm(whole), study.alphas)
            moved[name] = {key: alpha * tensor for key, tensor in vector.items()}
            made = shifted(start, vector, alpha)
            rows += [
                {"method": name, "epochs": epochs, "alpha": alpha, "at_edge": at_edge} | cost | _scored(task, made)
                for task in tasks
            ]
        if first and epochs == max(study.keep):
            points = plane_rows(score, start, whole, vectors, moved)
    return rows, points, refused


def _scored(task: Task, weights: Weights) -> dict[str, object]:
    return {"task": task.name, "sample_scores": task.scorer.sample_scores(weights)}


def _mean_score(tasks: Sequence[Task]) -> Score:
    return lambda weights: sum(task.scorer.score(weights, task.for_alpha) for task in tasks) / len(tasks)


def _methods(
    recipes: Sequence[Recipe], tasks: Sequence[Task], vectors: Sequence[Weights], study: MethodStudy, epochs: int
) -> Iterator[tuple[str, Make]]:
    """Name and maker of every method that was asked for; those that need measurements share them."""
    objectives = tuple(task.objective for task in tasks)
    start = objectives[0].initial
    steps = tuple(epochs * (-(-len(task.train) // study.batch_size) if study.batch_size else 1) for task in tasks)

    def take() -> tuple[Measurements, float]:
        begun = time.process_time()
        tuned = [combination((1.0, start), (1.0, vector)) for vector in vectors]
        told = plan(objectives, task_vectors=vectors, pairs=True)
        names = [task.name for task in tasks]
        found = measure(names, objectives, tuned, slopes=told.slopes, pairs=told.pairs)
        return found, time.process_time() - begun

    once = functools.cache(take)

    def measured(kind: Callable[..., Method]) -> Make:
        def make(anew: bool) -> tuple[Method, float]:
            measurements, seconds = take() if anew else once()
            return kind(measurements), seconds

        return make

    def plain(kind: Callable[[], Method]) -> Make:
        return lambda anew: (kind(), 0.0)

    def entropies() -> tuple[Objective, ...]:
        return tuple(
            Objective(task.objective.model, mean_entropy, task.for_rates, forward=recipe.forward, allow=recipe.allow)
            for recipe, task in zip(recipes, tasks, strict=True)
        )

    made = {name: plain(kind) for name, kind in METHODS.items()} | {"fed_nova": plain(lambda: FedNova(steps))}
    made |= {name: measured(kind) for name, kind in MEASURED_METHODS.items()}
    made |= {
        "ada_merging": plain(lambda: AdaMerging(entropies(), steps=study.ada_steps, rate=ADA_RATE)),
        "exact_gradient_matching": plain(lambda: ExactGradientMatching(objectives)),
    }
    for name in study.methods:
        if name not in made or name in NO_MERGE:
            raise TvgradError(f"there is no method {name!r} to compare: choose of {', '.join(made.keys() - NO_MERGE)}")
    for name, make in made.items():
        if name not in NO_MERGE and (not study.methods or name in study.methods):
            yield name, make


def _timed(make: Make, vectors: Sequence[Weights], watch: bool) -> tuple[Weights, dict[str, float]]:
    """Merge for the processor time; and once more for the memory, which takes time to watch. Measuring is a part."""
    method, seconds = make(False)
    begun = time.process_time()
    vector = merge_vectors(method, vectors)
    cost = {"seconds": seconds + time.process_time() - begun}
    if not norm(vector) > 0:
        raise TvgradError("the merged vector is 0")
    if watch:
        cost["megabytes"] = peak_bytes(lambda: merge_vectors(make(True)[0], vectors)) / 1e6
    return vector, cost


def _searched(score: Score, start: Weights, vector: Weights, length: float, alphas: int) -> tuple[float, bool]:
    """The best coefficient, and whether it is the last that was tried."""
    furthest = length / norm(vector)
    for _ in range(DOUBLINGS + 1):
        tried = [furthest * step / alphas for step in range(alphas + 1)]
        alpha, _ = search_alpha(lambda a: score(shifted(start, vector, a)), tried)
        if alpha < tried[-1]:
            return alpha, False
        furthest *= 2
    return alpha, True


def plane_rows(
    score: Score, start: Weights, whole: Weights, vectors: Sequence[Weights], moved: Mapping[str, Weights]
) -> Rows:
    """Measure validation scores on the plane of the sum of task vectors that has most of all models in it.

    Args:
        score: of weights.
        start: the pretrained weights.
        whole: the sum of the task vectors, which is the first axis.
        vectors: the task vectors.
        moved: of every method the merged vector, times its coefficient.

    Returns:
        Rows with x and y, in lengths of the sum: a grid with `score`, and the models with `method`, their `own` score
        and `outside`, the share of the squared length that is not in the plane.
    """
    models = {**{f"task {place + 1}": vector for place, vector in enumerate(vectors)}, **moved}
    length = norm(whole)
    first = {name: tensor / length for name, tensor in whole.items()}
    rest = {}
    for name, vector in models.items():
        rest[name] = combination((1.0, vector))
        add_scaled(rest[name], first, -inner_product(first, vector))
    names = list(rest)
    gram = np.array([[inner_product(rest[one], rest[two]) for two in names] for one in names])
    weights = np.linalg.eigh(gram)[1][:, -1]
    second = combination(*((float(part), rest[name]) for part, name in zip(weights, names, strict=True)))
    size = norm(second)
    second = {name: tensor / size for name, tensor in second.items()} if size > 0 else second
    rows: Rows = [{"method": PRETRAINED, "x": 0.0, "y": 0.0, "outside": 0.0, "own": score(start)}]
    for name, vector in models.items():
        x, y = inner_product(first, vector), inner_product(second, vector)
        square = inner_product(vector, vector)
        outside = max(0.0, 1 - (x * x + y * y) / square) if square > 0 else 0.0
        own = score(shifted(start, vector, 1.0))
        rows.append({"method": name, "x": x / length, "y": y / length, "outside": outside, "own": own})
    across, along = (_steps([float(row[axis]) for row in rows]) for axis in ("x", "y"))
    for x in across:
        for y in along:
            at = combination((1.0, start))
            add_scaled(at, first, x * length)
            add_scaled(at, second, y * length)
            rows.append({"x": float(x), "y": float(y), "score": score(at)})
    return rows


def _steps(places: Sequence[float]) -> NDArray[np.float64]:
    edge = PLANE_EDGE * (max(places) - min(places) or 1.0)
    return np.linspace(min(places) - edge, max(places) + edge, PLANE_STEPS + 1)
