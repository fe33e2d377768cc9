"""Training of models on conceptual tasks, all of a study in one call.

The random numbers of a training (start, order of tokens, labels) depend on its seed and on which task of the pair it
is, and not on the overlap: pairs of one seed differ in nothing else, and a study of fewer overlaps has the same models.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.recipes.conceptual import TokenMix
from tvgrad.recipes.conceptual_transformer import WIDTH, ConceptualTransformer, hinge_loss

from .model_stack import ModelStack, Stack

Progress = Callable[[int, int], None]

CONCEPTUAL = "conceptual"
MIX: tuple[int, ...] = astuple(TokenMix())
STEPS = 150
TEST_STREAM = 0  # random numbers of test samples; the tasks' own streams begin at 1
STREAMS = 1000  # a seed's streams are disjoint from those of the next one


@dataclass(frozen=True)
class ConceptSetting:
    """The conditions of a study, the same for all of its models.

    Attributes:
        mix: what a sample is made of.
        width: neurons.
        lr: the learning rate.
        steps: of mini-batches of new samples.
        batch_size: samples in one.
        test_samples: on which margins and losses are measured.
    """

    mix: TokenMix
    width: int = WIDTH
    lr: float = 1.0
    steps: int = STEPS
    batch_size: int = 32
    test_samples: int = 200

    def __str__(self) -> str:
        mix = self.mix
        return (
            f"{mix.length} tokens a sample ({mix.relevant} label-relevant, {mix.confusing} confusing, {mix.irrelevant} "
            f"irrelevant of {mix.patterns} patterns) in {mix.dimension} dimensions, {self.width} neurons, "
            f"{self.steps} steps of {self.batch_size} new samples at rate {self.lr:g}"
        )

    def tests(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the test samples, the same for all models.

        Returns:
            Rows of a task's table, shape (n, slots), and labels, shape (n,).
        """
        return self.mix.draw(self.test_samples, torch.Generator().manual_seed(TEST_STREAM))


@dataclass(frozen=True)
class ConceptTask:
    """One training.

    Attributes:
        seed: decides the start, and with `stream` the samples.
        stream: which task of the seed it is, from 1.
        table: the task's patterns, shape (2 + patterns, dimension).
    """

    seed: int
    stream: int
    table: torch.Tensor


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch use one thread: its threads wait for each other longer than tensors this small take.

    Yields:
        Nothing; the number of threads is put back afterwards.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def concept_models(setting: ConceptSetting, tasks: Sequence[ConceptTask]) -> ModelStack:
    """Make one start a training, the same for all tasks of a seed.

    Args:
        setting: the conditions.
        tasks: the trainings.

    Returns:
        The models before training.
    """

    def made(seed: int) -> ConceptualTransformer:
        draw = torch.Generator().manual_seed(STREAMS * (seed + 1))
        return ConceptualTransformer(setting.mix.dimension, setting.width, generator=draw)

    return ModelStack([made(task.seed) for task in tasks])


def concept_batches(
    setting: ConceptSetting, tasks: Sequence[ConceptTask], progress: Progress | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw the mini-batches of all trainings.

    Args:
        setting: the conditions.
        tasks: the trainings.
        progress: called with the steps done and their number.

    Yields:
        Of each step, tokens of shape (L, batch, slots, dimension) and labels of shape (L, batch).
    """
    drawn = {}
    for task in tasks:
        if (key := (task.seed, task.stream)) not in drawn:
            generator = torch.Generator().manual_seed(STREAMS * (task.seed + 1) + task.stream)
            drawn[key] = setting.mix.draw(setting.steps * setting.batch_size, generator)
    rows = torch.stack([drawn[task.seed, task.stream][0] for task in tasks])
    labels = torch.stack([drawn[task.seed, task.stream][1] for task in tasks])
    tables = torch.cat([task.table for task in tasks])
    rows += len(tasks[0].table) * torch.arange(len(tasks))[:, None, None]
    for step in range(setting.steps):
        batch = slice(step * setting.batch_size, (step + 1) * setting.batch_size)
        yield nn.functional.embedding(rows[:, batch], tables), labels[:, batch]
        if progress is not None:
            progress(step + 1, setting.steps)


def trained_concepts(
    setting: ConceptSetting, tasks: Sequence[ConceptTask], progress: Progress | None = None
) -> tuple[ModelStack, Stack]:
    """Train a model for every task, all at once.

    Args:
        setting: the conditions.
        tasks: the trainings.
        progress: called with the steps done and their number.

    Returns:
        The models before training, and the task vectors.
    """
    stack = concept_models(setting, tasks)
    batches = concept_batches(setting, tasks, progress)
    with one_thread():
        tuned = stack.trained(batches, hinge_loss, setting.lr, setting.mix.repeats)
    return stack, {name: tensor - stack.start[name] for name, tensor in tuned.items()}


def margins(stack: ModelStack, weights: Stack, setting: ConceptSetting, table: torch.Tensor) -> torch.Tensor:
    """Measure the margins y f of models on the test samples of one task.

    Args:
        stack: the models.
        weights: of these, tensors of shape (L, ...).
        setting: the conditions.
        table: the task's patterns.

    Returns:
        Shape (L, test samples).
    """
    rows, labels = setting.tests()
    with one_thread():
        return stack.outputs(weights, table, setting.mix.repeats, rows, shared=True) * labels


def mean_hinge(values: torch.Tensor) -> torch.Tensor:
    """The hinge loss of margins.

    Args:
        values: shape (L, test samples).

    Returns:
        Shape (L,).
    """
    return torch.relu(1 - values).mean(-1)


def setting_of(target: str, mix: Sequence[int], steps: int) -> ConceptSetting:
    """Read the conditions of a study from its options.

    Args:
        target: the recipe that was asked for: such a study makes its own.
        mix: label-relevant, confusing and irrelevant tokens of a sample, irrelevant patterns, dimension.
        steps: of training.

    Returns:
        The conditions.

    Raises:
        TvgradError: another recipe was asked for, or the options are no conditions.
    """
    if target != CONCEPTUAL:
        raise TvgradError(f"this analysis makes its own conceptual tasks and cannot run on {target}: leave --on out")
    if len(mix) != len(fields(TokenMix)):
        raise TvgradError(
            f"mix is {len(fields(TokenMix))} whole numbers, {', '.join(field.name for field in fields(TokenMix))}, and "
            f"not {len(mix)} of them"
        )
    if steps < 1:
        raise TvgradError(f"steps must be a whole number of at least 1, not {steps}")
    return ConceptSetting(TokenMix(*mix), steps=steps)
