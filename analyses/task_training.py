"""Training for the merging study, in memory: each task alone, all tasks jointly, and the accuracies of what comes out.

A task's test samples are cut into three pools, the same for every seed: a quarter to search rates on, a quarter to
search alpha on, and a half that is tested on and decides nothing. A seed decides which training samples are taken where
there are too many, and the order of mini-batches. The pools do not come from the training samples, because frozen heads
were fitted to those: on them the pretrained model looks better than it is, and every alpha and rate too large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.merging.evaluation import Scorer
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.problem.samples import Samples
from tvgrad.record.batch_order import batches_of
from tvgrad.update_rules.base import UpdateRule
from tvgrad.vectors.parameters import Weights, norm, trainable_parameters

MOST_TRAIN = 1000
FEWEST = 10
FEWEST_TEST = 4
POOLS_SEED = 20251125
CHUNK = 1000  # one chunk for every task, so that nothing is timed and nothing depends on it


@dataclass(frozen=True)
class Task:
    """One task of one seed.

    Attributes:
        name: the recipe's.
        objective: the full-batch loss of the training part.
        for_rates: samples that rates are searched on.
        for_alpha: samples that alpha is searched on.
        scorer: accuracy at any weights, on the test samples.
    """

    name: str
    objective: Objective
    for_rates: Samples
    for_alpha: Samples
    scorer: Scorer

    @property
    def train(self) -> Samples:
        """The training part."""
        return self.objective.samples


@dataclass(frozen=True)
class Course:
    """What came out of tuning one task.

    Attributes:
        weights: epochs done -> weights.
        gradient_norms: one for each epoch: of the full-batch gradient, or the mean over an epoch's batch gradients.
    """

    weights: dict[int, Weights]
    gradient_norms: tuple[float, ...]


def tasks_of(recipes: Sequence[Recipe], seed: int, most: int = MOST_TRAIN, most_test: int | None = None) -> list[Task]:
    """Take every task's training samples, and cut its test samples into pools for rates, for alpha and for the test.

    Args:
        recipes: tasks that share one pretrained model.
        seed: decides the training samples, and nothing else.
        most: training samples that are used.
        most_test: test samples that are used, all pools together; None is all.

    Returns:
        The tasks.

    Raises:
        TvgradError: a task has too few samples, or no metric.
    """
    tasks = []
    for place, recipe in enumerate(recipes):
        total = min(len(recipe.train), most)
        if total < FEWEST:
            raise TvgradError(f"task {recipe.name!r} has {total} training samples: the study needs {FEWEST}")
        generator = torch.Generator().manual_seed(1_000 * seed + place)
        order = torch.randperm(len(recipe.train), generator=generator)[:total]
        objective = recipe.objective(samples=recipe.train.subset(order), chunk_size=CHUNK)
        scorer = Scorer(recipe, device=objective.device)
        order_test = torch.randperm(len(scorer.test), generator=torch.Generator().manual_seed(POOLS_SEED))[:most_test]
        count = len(order_test)
        if count < FEWEST_TEST:
            raise TvgradError(
                f"task {recipe.name!r} needs {FEWEST_TEST} test samples: one to search rates on, one to search alpha "
                "on and two to test on"
            )
        for_rates, for_alpha, scorer.test = (
            scorer.test.subset(part) for part in order_test.tensor_split([count // 4, count // 2])
        )
        tasks.append(Task(recipe.name, objective, for_rates, for_alpha, scorer))
    return tasks


def train_alone(
    task: Task,
    rule: UpdateRule,
    start: Mapping[str, torch.Tensor],
    keep: Sequence[int],
    batch_size: int | None,
    seed: int,
) -> Course:
    """Tune one task.

    Args:
        task: the task.
        rule: how.
        start: the weights to start from.
        keep: numbers of epochs after which the weights are kept; the largest is the last.
        batch_size: samples in a mini-batch; None is the full batch.
        seed: of the order of the samples.

    Returns:
        Weights and gradient norms.
    """
    return train_jointly([task], rule, start, keep, batch_size, seed)


def train_jointly(
    tasks: Sequence[Task],
    rule: UpdateRule,
    start: Mapping[str, torch.Tensor],
    keep: Sequence[int],
    batch_size: int | None,
    seed: int,
) -> Course:
    """Tune on all tasks at once, by the mean of their losses, for which a step takes one batch of each task.

    An epoch visits every sample of every task once: where a task has no batch left, it adds nothing to the mean.
    With the full batch this is multitask gradient descent on the sum of the losses, with the rate divided by T.

    Args:
        tasks: the tasks.
        rule: how.
        start: the weights to start from.
        keep: numbers of epochs after which the weights are kept.
        batch_size: samples in a mini-batch of each task; None is the full batch.
        seed: of the order of the samples.

    Returns:
        Weights and gradient norms.
    """
    weights = {name: tensor.detach().clone() for name, tensor in start.items()}
    optimizer = rule.make_optimizer(list(weights.values()))
    kept, norms, steps = {}, [], 0
    for epoch in range(max(keep)):
        epoch_norms = []
        for gradient in _gradients(tasks, weights, batch_size, seed, epoch):
            epoch_norms.append(norm(gradient))
            for name, tensor in weights.items():
                tensor.grad = gradient[name]
            rule.set_rate(optimizer, steps)
            optimizer.step()
            steps += 1
        norms.append(sum(epoch_norms) / len(epoch_norms))
        if epoch + 1 in keep:
            kept[epoch + 1] = {name: tensor.detach().clone() for name, tensor in weights.items()}
    return Course(kept, tuple(norms))


def _gradients(
    tasks: Sequence[Task], weights: Weights, batch_size: int | None, seed: int, epoch: int
) -> Iterator[Weights]:
    """The gradients of an epoch's steps, each at the weights as they are when it is asked for."""
    if batch_size is None:
        yield _mean([task.objective.gradient(weights) for task in tasks], len(tasks))
        return
    orders = [
        list(batches_of(len(task.train), batch_size, seed + 7_919 * place, epoch)) for place, task in enumerate(tasks)
    ]
    for step in range(max(map(len, orders))):
        present = [(task, order[step]) for task, order in zip(tasks, orders, strict=True) if step < len(order)]
        yield _mean([_batch_gradient(task, weights, batch) for task, batch in present], len(tasks))


def _batch_gradient(task: Task, weights: Weights, batch: torch.Tensor) -> Weights:
    loss, device, home = task.objective.batch_loss, task.objective.device, task.objective.home
    parameters = trainable_parameters(task.objective.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    value = loss(task.train.subset(batch).batch(0, len(batch), device))
    found = torch.autograd.grad(value, list(parameters.values()))
    return {name: gradient.to(home) for name, gradient in zip(parameters, found, strict=True)}


def _mean(gradients: Sequence[Weights], count: int) -> Weights:
    if count == 1:
        return gradients[0]
    total = {name: tensor.clone() for name, tensor in gradients[0].items()}
    for gradient in gradients[1:]:
        for name, tensor in gradient.items():
            total[name].add_(tensor)
    return {name: tensor.div_(count) for name, tensor in total.items()}
