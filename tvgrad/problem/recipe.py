"""Recipe: what to fine-tune (model, loss, data) and how (optimizer, rate, epochs), for one task."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import distributed, nn

from tvgrad.errors import TvgradError, UnsupportedModel
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.checks import check_problem, fitted
from tvgrad.problem.crew import Crew
from tvgrad.problem.objective import Objective
from tvgrad.problem.rate_schedule import RateSchedule
from tvgrad.problem.samples import Batch, Samples
from tvgrad.vectors.parameters import same_names_and_shapes, trainable_parameters
from tvgrad.wording import near

_REAL: type = numbers.Real  # numpy's numbers count too
_INTEGRAL: type = numbers.Integral
MOST = 10_000_000
"""Epochs, rounds or repetitions of which no more can be done."""
MOST_SAMPLES = 2**62
"""Samples of which a batch may be asked for; those that there are count."""
OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw")  # the names of tvgrad.update_rules, on this floor


class Recipe:
    """One fine-tuning task: a pretrained model, its data, and how it is tuned by default.

    Attributes:
        model: the pretrained module, in the mode (train or eval) in which it is tuned; its trainable parameters are
            those that require a gradient.
        train: the samples that the loss is a mean over.
        test: samples for `metric`, or None.
        name: the task's name, used for its run directory.
        about: one line on where the task comes from.

    Examples:
        >>> import torch, tvgrad
        >>> inputs, targets = torch.randn(12, 4), torch.arange(12) % 3
        >>> model = torch.nn.Linear(4, 3)
        >>> recipe = tvgrad.Recipe(model, torch.nn.CrossEntropyLoss(), (inputs, targets), name="mine", lr=0.1, epochs=2)
        >>> len(recipe.train), recipe.optimizer
        (12, 'gd')
        >>> sorted(recipe.objective(torch.float64).gradient())
        ['bias', 'weight']
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        train: Any,
        *,
        test: Any = None,
        name: str | None = None,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        collate: Callable[[list[Any]], Batch] | None = None,
        count: Callable[[Batch], float | torch.Tensor] | None = None,
        metric: Callable[[Any, Any], torch.Tensor | float] | None = None,
        optimizer: str = "gd",
        lr: float = 0.01,
        epochs: int = 5,
        batch_size: int | None = None,
        weight_decay: float | None = None,
        decay_vectors: bool = True,
        schedule: RateSchedule | None = None,
        allow: Collection[str] = (),
        about: str = "",
    ) -> None:
        """Put a task together and check it on a few samples.

        Args:
            model: the pretrained module.
            loss: callable(output, target) -> mean loss over a batch; None when `forward` returns the loss.
            train: Dataset or (inputs, targets).
            test: Dataset or (inputs, targets), for `metric`.
            name: the task's name; by default the model's class name in lower case.
            forward: callable(model, batch) -> output (or loss), for batches that are not (inputs, target).
            collate: makes a batch of a list of samples.
            count: callable(batch) -> weight of the batch in the mean; by default its number of samples.
            metric: callable(output, target) -> mean over the batch, higher is better (default: `accuracy`).
            optimizer: gd (full-batch gradient descent), sgd, momentum, nesterov, adam or adamw.
            lr: learning rate.
            epochs: passes over the data.
            batch_size: samples in a mini-batch for every optimizer but gd; None is the full batch.
            weight_decay: coupled for all but adamw; by default the optimizer's own.
            decay_vectors: False leaves parameters with fewer than two dimensions (biases, norms) without decay.
            schedule: how the rate goes over the whole training; None is constant.
            allow: checks to switch off: dropout, batchnorm, augmentation, count; reports repeat them.
            about: one line on where the task comes from.

        Raises:
            TvgradError: the parts do not fit together; the sentence says which and what to do.
        """
        _check_parts(model, loss, optimizer)
        if not (schedule is None or isinstance(schedule, RateSchedule)):
            raise TvgradError(
                f"a recipe's schedule must be a tvgrad.problem.rate_schedule.RateSchedule, not {schedule!r}"
            )
        self.model = model
        self.loss = loss
        self.train = fitted(train if isinstance(train, Samples) else Samples(train, collate), model, forward)
        self.test = test if test is None or isinstance(test, Samples) else Samples(test, collate)
        self.name = _checked_name(name or type(model).__name__.lower())
        self.forward = forward
        self.count = count
        self.metric = metric
        self.optimizer = optimizer
        self.lr = positive(lr, "lr")
        self.epochs = positive_integer(epochs, "epochs")
        self.batch_size = None if batch_size is None else positive_integer(batch_size, "batch_size", MOST_SAMPLES)
        self.weight_decay, self.decay_vectors, self.schedule = weight_decay, decay_vectors, schedule
        self.allow = tuple(allow)
        self.about = about
        device = next(iter(model.parameters())).device
        check_problem(self.batch_loss(), self.train, device, self.allow)

    def batch_loss(self, model: nn.Module | None = None) -> BatchLoss:
        """Bind the loss to a model.

        Args:
            model: a copy of the recipe's model; by default the recipe's own.

        Returns:
            A module that maps a batch to its mean loss.
        """
        return BatchLoss(self.model if model is None else model, self.loss, self.forward, self.count)

    def objective(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "auto",
        *,
        samples: Samples | None = None,
        model: nn.Module | None = None,
        chunk_size: int | None = None,
        allow: Collection[str] | None = None,
        group: distributed.ProcessGroup | Crew | None = None,
        shared: bool = False,
    ) -> Objective:
        """Build the full-batch loss of the task on a copy of its model.

        Args:
            dtype: of the model, and of floating-point data; by default they stay as they are.
            device: a torch device; `auto` stays where the model is, or takes a GPU where there is one.
            samples: the data; by default `train`.
            model: used, and cast, in the place of the copy.
            chunk_size: samples evaluated at once; None measures a few sizes at the first evaluation.
            allow: checks to switch off; by default the recipe's own.
            group: processes that share the passes over the data.
            shared: hold no copy of the initial weights beside the recipe's, which nobody is going to train.

        Returns:
            The objective; training its model leaves the recipe's as it is.

        Raises:
            TvgradError: the device is not available, or the objective refuses a part.
            UnsupportedModel: the model does not run in `dtype`, because its code names another.
            RuntimeError: of the model's own code, as it came.
        """
        model = copy.deepcopy(self.model) if model is None else model
        formats = {parameter.dtype for parameter in self.model.parameters()}
        try:
            return Objective(
                model.to(dtype=dtype),
                self.loss,
                (self.train if samples is None else samples).with_dtype(dtype),
                chunk_size=chunk_size,
                device=device,
                count=self.count,
                forward=self.forward,
                allow=self.allow if allow is None else allow,
                group=group,
                initial=trainable_parameters(self.model) if shared else None,
            )
        except RuntimeError as error:
            if dtype is None or formats == {dtype} or "dtype" not in str(error):
                raise
            name, said = str(dtype).removeprefix("torch."), str(error).splitlines()[0]
            raise UnsupportedModel(
                f"the model of {self.name} does not run in {name} ({said}): where its code casts to a format that it "
                "names, let it cast to that of a weight, as in x.to(self.weight.dtype), or give another --dtype"
            ) from error


def _check_parts(model: Any, loss: Any, optimizer: str) -> None:
    if not isinstance(model, nn.Module):
        raise TvgradError(f"a recipe's model must be an nn.Module, not {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TvgradError(f"a recipe's loss must be callable(output, target), not {type(loss).__name__}")
    trainable_parameters(model)
    if optimizer not in OPTIMIZERS:
        raise TvgradError(
            f"unknown optimizer {optimizer!r}: choose from {', '.join(OPTIMIZERS)}{near(optimizer, OPTIMIZERS)}"
        )


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of samples whose largest logit is the target's.

    Args:
        output: logits, shape (n, classes).
        target: class indices, shape (n,).

    Returns:
        A scalar in [0, 1].
    """
    return (output.argmax(dim=-1) == target).double().mean()


def check_recipes(made: Any, target: str) -> list[Recipe]:
    """Check what a target's function returned.

    Args:
        made: a Recipe, or a sequence of them.
        target: the name on the command line, for messages.

    Returns:
        At least one recipe; several share one pretrained model.

    Raises:
        TvgradError: it is something else, names repeat, or the trainable parameters differ.
    """
    recipes = [made] if isinstance(made, Recipe) else made
    if not isinstance(recipes, Sequence) or not recipes or not all(isinstance(one, Recipe) for one in recipes):
        kind = f"an empty {type(made).__name__}" if isinstance(made, Sequence) and not made else type(made).__name__
        raise TvgradError(f"{target} returned {kind}: return a tvgrad.Recipe, or a list of them")
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise TvgradError(f"{target} has two tasks called {name!r}: give each recipe a name of its own")
    first = trainable_parameters(recipes[0].model)
    for recipe in recipes[1:]:
        other = trainable_parameters(recipe.model)
        difference = same_names_and_shapes(first, other)
        if difference is None and any(first[name].dtype != other[name].dtype for name in first):
            difference = "their dtypes differ"
        if difference is None and not all(torch.equal(first[name], other[name]) for name in first):
            difference = "their values differ"
        if difference is not None:
            raise TvgradError(
                f"tasks {names[0]!r} and {recipe.name!r} of {target} do not share one pretrained model: {difference}"
            )
    return list(recipes)


def positive(value: float, name: str) -> float:
    """Check a positive, finite number.

    Args:
        value: the number.
        name: what it is called, for the message.

    Returns:
        It, as a float.

    Raises:
        TvgradError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, _REAL) or not math.isfinite(value) or value <= 0:
        raise TvgradError(f"{name} must be a positive number, not {' '.join(repr(value).split())}")
    return float(value)


def positive_integer(value: int, name: str, most: int = MOST) -> int:
    """Check a positive whole number.

    Args:
        value: the number.
        name: what it is called, for the message.
        most: the largest that it may be.

    Returns:
        It.

    Raises:
        TvgradError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, _INTEGRAL) or value < 1:
        raise TvgradError(f"{name} must be a whole number of at least 1, not {value!r}")
    if value > most:
        raise TvgradError(f"{name} {value} is more than can be done: give at most {most:,}")
    return int(value)


def _checked_name(name: str) -> str:
    if not name or name in {".", ".."} or any(sign in name for sign in "/\\\0\n") or name.startswith("."):
        raise TvgradError(f"a task cannot be called {name!r}: its name becomes a folder's")
    return name
