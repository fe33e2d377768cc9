"""The training loop of `tvgrad trace`: fine-tunes a recipe by PyTorch's own optimizers and records it."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.batch_loss import BatchLoss, target_of
from tvgrad.problem.crew import Crew
from tvgrad.problem.metric import metric_value
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import MOST_SAMPLES, Recipe, positive_integer
from tvgrad.problem.samples import Samples, map_tensors
from tvgrad.record.batch_order import batches_of, epoch_seed
from tvgrad.record.options import DTYPES, TraceOptions
from tvgrad.record.planned_rule import optimizer_of, planned_rule, require_representable, rule_of_groups
from tvgrad.record.recorder import Recorder
from tvgrad.record.running_cosine import RunningCosine
from tvgrad.store.layout import MANIFEST, require_free
from tvgrad.store.manifest import read_manifest
from tvgrad.store.overwrite import require_replaceable
from tvgrad.store.run import Run
from tvgrad.store.space import require_space
from tvgrad.store.storable import require_storable
from tvgrad.update_rules.base import UpdateRule
from tvgrad.vectors.parameters import trainable_parameters
from tvgrad.wording import near


@dataclass(frozen=True)
class Progress:
    """What a progress display can show after each epoch.

    Attributes:
        epoch: epochs done.
        epochs: epochs planned.
        loss: full-batch loss, NaN where it was not computed.
        cosine: cosine of the task vector to minus the first gradient, NaN where there is none.
        seconds: since the loop began.
    """

    epoch: int
    epochs: int
    loss: float
    cosine: float
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready to train: checked before any file is written."""

    recipe: Recipe
    model: nn.Module
    samples: Samples
    objective: Objective
    rule: UpdateRule
    epochs: int
    batch_size: int | None
    options: TraceOptions


def prepare(recipe: Recipe, options: TraceOptions, crew: Crew | None = None) -> Prepared:
    """Copy a recipe's model, cast it, move it, and check every option against it.

    Args:
        recipe: the task; its model is left as it is.
        options: how to train.
        crew: processes that share the passes over the data.

    Returns:
        All that `trace` needs.

    Raises:
        TvgradError: an option is out of range or does not go with another.
    """
    epochs = recipe.epochs if options.epochs is None else positive_integer(options.epochs, "--epochs")
    batch_size = recipe.batch_size if options.batch_size is None else options.batch_size
    if (options.optimizer or recipe.optimizer) == "gd":
        if options.batch_size is not None:
            raise TvgradError("gd is full-batch gradient descent: leave --batch-size out, or use --optimizer sgd")
        batch_size = None
    if batch_size is not None and positive_integer(batch_size, "--batch-size", MOST_SAMPLES) >= len(recipe.train):
        batch_size = None
    rule = planned_rule(recipe, options, epochs, batch_size)
    if "batches" in options.record and batch_size is None:
        raise TvgradError("--record batches is for mini-batches: give --batch-size, or leave batches out")
    if not options.resume:
        steps = math.ceil(len(recipe.train) / (batch_size or len(recipe.train)))
        options.record_at.require_reachable(epochs, steps)
    if options.dtype is not None and options.dtype not in DTYPES:
        raise TvgradError(
            f"unknown dtype {options.dtype!r}: choose from {', '.join(DTYPES)}{near(options.dtype, DTYPES)}"
        )
    require_storable(recipe.model)
    objective = recipe.objective(
        None if options.dtype is None else DTYPES[options.dtype],
        options.device,
        chunk_size=options.chunk_size,
        allow={*recipe.allow, *options.allow},
        group=crew,
        shared=True,
    )
    require_representable(rule, trainable_parameters(objective.model))
    return Prepared(recipe, objective.model, objective.samples, objective, rule, epochs, batch_size, options)


def check_directory(directory: Path, resume: bool, overwrite: bool = False) -> None:
    """Refuse a run directory that is taken, before any long work starts.

    Args:
        directory: where a run is to go.
        resume: go on with a run that is there.
        overwrite: replace a run that is there, when its successor begins.

    Raises:
        TvgradError: it is a file, or holds other files, or a run that is neither to be resumed nor replaced.
    """  # noqa: DOC502 - raised by require_free
    if overwrite:
        require_replaceable(directory)
    elif not (resume and (directory / MANIFEST).is_file()):
        require_free(directory)


def check_space(places: Sequence[tuple[Prepared, Path]]) -> None:
    """Refuse to start where the runs together do not fit on the disk.

    Args:
        places: what is to be traced, and where to.

    Raises:
        TvgradError: there is too little room.
    """  # noqa: DOC502 - raised by require_space
    if places:
        require_space(places[0][1], sum(_estimated_bytes(*place) for place in places))


def trace(
    prepared: Prepared,
    directory: Path,
    on_epoch: Callable[[Progress], None] | None = None,
    *,
    overwrite: bool = False,
) -> Run:
    """Fine-tune and record.

    Full-batch training steps with the very tensor that is recorded as the gradient. Mini-batches are cut from an order
    that depends on the seed and the epoch alone, so that a resumed run sees the same batches.

    Args:
        prepared: what `prepare` made.
        directory: the run directory to make, or to go on with.
        on_epoch: called after each epoch.
        overwrite: replace a run that is there.

    Returns:
        The finished run.

    Raises:
        TvgradError: the directory is taken or does not fit, the disk has no room, or the loss stops being finite.
    """
    earlier = Run.open(directory) if prepared.options.resume and (directory / MANIFEST).exists() else None
    if earlier is not None:
        prepared = _as_recorded(prepared, earlier)
    options, model = prepared.options, prepared.model
    parameters = trainable_parameters(model)
    rule = rule_of_groups(prepared.recipe, prepared.rule, parameters)
    optimizer = optimizer_of(rule, parameters)
    check_space([(prepared, directory)])
    fresh = earlier is None or not earlier.points
    recorder = Recorder(
        directory,
        model,
        optimizer,
        prepared.objective,
        record_at=options.record_at,
        record=options.record,
        keep=options.keep,
        keep_gradients=options.keep_gradients,
        groups=options.groups,
        name=prepared.recipe.name,
        rule=rule,
        info=_facts(prepared),
        resume=options.resume,
        overwrite=overwrite,
        finite=True,
        first_metrics=_test_metric(prepared, prepared.recipe.batch_loss(model)) if fresh else None,
    )
    with recorder:
        if earlier is not None:
            recorder.add_info(epochs=max(prepared.epochs, recorder.epoch))
        _train(prepared, optimizer, recorder, on_epoch)
    return Run.open(directory)


def _as_recorded(prepared: Prepared, run: Run) -> Prepared:
    """What is resumed: the recipe must give the model that was recorded, and what was not said is as it was."""
    if run.points:
        recorded = run.static() | run.weights(0)
        present = prepared.model.state_dict()
        for name, tensor in recorded.items():
            mine = present[name].cpu() if name in present else None
            if mine is None or mine.dtype != tensor.dtype or not torch.equal(mine, tensor):
                raise TvgradError(
                    f"{run.root} records another model ({name} differs): --resume needs the one it was started with "
                    "(a recipe that draws its weights at random has to seed them)"
                )
    if prepared.options.chunk_size is None:
        # The chunk size decides the last bit of a sum: go on with the one that was measured then.
        prepared.objective.use_chunk_size(run.info.get("chunk_size"))
    planned = run.info.get("epochs")
    if prepared.options.epochs is not None or not planned:
        return prepared
    rule = planned_rule(prepared.recipe, prepared.options, planned, prepared.batch_size)
    return replace(prepared, epochs=planned, rule=rule)


def _train(
    prepared: Prepared,
    optimizer: torch.optim.Optimizer,
    recorder: Recorder,
    on_epoch: Callable[[Progress], None] | None,
) -> None:
    options, model = prepared.options, prepared.model
    parameters = trainable_parameters(model)
    loss_of = prepared.recipe.batch_loss(model)
    followed = None if on_epoch is None else RunningCosine(Run.open(recorder.directory), parameters)
    began = time.perf_counter()
    while recorder.epoch < prepared.epochs:
        epoch_began = time.perf_counter()
        done = recorder.steps_in_epoch  # above 0 where a run that was recorded by step is resumed inside an epoch
        if done == 0:
            _seed_everything(epoch_seed(options.seed, recorder.epoch))
        if prepared.batch_size is None:
            if done == 0:
                _full_step(prepared, optimizer, recorder)
                recorder.end_step(_test_metric(prepared, loss_of) if recorder.due else None)
        else:
            batches = batches_of(len(prepared.samples), prepared.batch_size, options.seed, recorder.epoch)
            for indices in itertools.islice(batches, done, None):
                recorder.note_batch(indices)
                _step(loss_of, prepared, optimizer, indices, recorder.steps)
                recorder.note_step(batch_size=len(indices))
                recorder.end_step(_test_metric(prepared, loss_of) if recorder.due else None)
        metrics = _test_metric(prepared, loss_of) if options.record_at == "epochs" else {}
        recorder.end_epoch({**metrics, "seconds": time.perf_counter() - epoch_began})
        if on_epoch is not None and followed is not None:
            on_epoch(
                Progress(
                    recorder.epoch,
                    prepared.epochs,
                    math.nan if recorder.loss is None else recorder.loss,
                    followed.value(),
                    time.perf_counter() - began,
                )
            )


def _full_step(prepared: Prepared, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    parameters = trainable_parameters(prepared.model)
    gradient = recorder.gradient or prepared.objective.gradient(parameters)
    for name, parameter in parameters.items():
        # Some optimizers change it in place: it has been written, and the recorder forgets it after the step.
        parameter.grad = gradient[name].to(parameter.device)
    del gradient
    prepared.rule.set_rate(optimizer, recorder.steps)
    optimizer.step()
    optimizer.zero_grad()  # its memory is wanted for the next gradient
    recorder.note_step(batch_size=len(prepared.samples))


def _step(
    loss_of: BatchLoss, prepared: Prepared, optimizer: torch.optim.Optimizer, indices: torch.Tensor, step: int
) -> None:
    batch = prepared.samples.subset(indices).batch(0, len(indices))
    batch = map_tensors(batch, lambda tensor: tensor.to(prepared.objective.device))
    loss_of(batch).backward()
    for parameter in prepared.model.parameters():  # most optimizers take no sparse gradients (of embeddings)
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            parameter.grad = parameter.grad.to_dense()
    prepared.rule.set_rate(optimizer, step)
    optimizer.step()
    optimizer.zero_grad()  # now, so that the gradient of all samples finds its memory free


def _seed_everything(seed: int) -> None:
    """Seed every generator that a model or a data set may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is meant


@torch.no_grad()
def _test_metric(prepared: Prepared, loss_of: BatchLoss) -> dict[str, float]:
    """The recipe's metric on its test samples, as a mean weighted by samples, with the model in eval mode."""
    recipe = prepared.recipe
    if recipe.test is None or recipe.metric is None:
        return {}
    modes = {module: module.training for module in prepared.model.modules()}
    prepared.model.eval()  # test samples may neither be dropped out nor enter the statistics of a BatchNorm
    try:
        return {_metric_name(recipe.metric): _test_mean(prepared, loss_of, recipe.test, recipe.metric)}
    finally:
        for module, training in modes.items():
            module.training = training


def _metric_name(metric: Callable[[Any, Any], Any]) -> str:
    return getattr(metric, "__name__", "metric")


def _test_mean(prepared: Prepared, loss_of: BatchLoss, test: Samples, metric: Callable[[Any, Any], Any]) -> float:
    samples = test.with_dtype(prepared.samples.dtype)
    size = max(prepared.objective.chunk_size, 1)
    total = 0.0
    for start in range(0, len(samples), size):
        batch = map_tensors(samples.batch(start, start + size), lambda tensor: tensor.to(prepared.objective.device))
        count = min(size, len(samples) - start)
        total += metric_value(metric, loss_of.output(batch), target_of(batch)) * count
    return total / len(samples)


def _estimated_bytes(prepared: Prepared, directory: Path) -> int:
    """Bytes that the run will still take: weights and what is recorded beside them for each kept point, and state."""
    options = prepared.options
    taken = 0
    if options.resume and (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        taken = sum(entry.nbytes for point in manifest.points for entry in point.files.values())
    weights = sum(int(tensor.nbytes) for tensor in prepared.objective.initial.values())
    static = sum(int(tensor.nbytes) for tensor in prepared.model.state_dict().values()) - weights
    # Sums of gradients that are narrower than float32 are kept in float32.
    sums = sum(tensor.numel() * max(4, tensor.dtype.itemsize) for tensor in prepared.objective.initial.values())
    width = options.keep_gradients.width
    gradient, summed = (weights, sums) if width is None else (8 * width, 8 * width)
    point = weights + gradient * ("gradients" in options.record) + summed * ("epoch-gradients" in options.record)
    numbers = sorted({0, *options.record_at.steps}) if options.record_at.steps else range(prepared.epochs + 1)
    points = len(options.keep.kept(numbers))
    # While one point replaces another, both are on the disk; optimizer state is at most two copies of the weights.
    return max(0, max(static, 0) + point * (points + 1) + 4 * weights - taken)


def _facts(prepared: Prepared) -> dict[str, Any]:
    options, recipe = prepared.options, prepared.recipe
    tested = recipe.test is not None and recipe.metric is not None
    return {
        "metric": _metric_name(recipe.metric) if recipe.metric is not None and tested else None,
        "test_samples": len(recipe.test) if recipe.test is not None and tested else None,
        "recipe": {"target": options.target, "task": recipe.name, "about": recipe.about},
        "options": {name: value for name, value in asdict(options).items() if name not in {"resume", "target"}},
        "epochs": prepared.epochs,
        "batch_size": prepared.batch_size,
        "seed": options.seed,
        # With the full batch, the optimizer consumes the very tensors that are recorded as gradients.
        "consumes_recorded_gradient": prepared.batch_size is None and "gradients" in options.record,
        "config": _model_config(prepared.model),
    }


def _model_config(model: nn.Module) -> dict[str, Any] | None:
    """A Hugging Face model's configuration, for exports."""
    describe = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(describe):
        return None
    config = dict(describe())
    # The library fills these in when it saves a model itself: other tools find the class by them.
    known = config.get("architectures") or [type(model).__name__]
    return config | {"architectures": known, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
