"""Checkpoints: full-batch gradients at weights that exist already, in files or in a run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from tvgrad.checkpoints.opening import read_checkpoint
from tvgrad.errors import TvgradError
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.record.recorder import Recorder
from tvgrad.record.run_header import RECORDABLE, objective_facts
from tvgrad.record.training_loop import Prepared
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter, cpu_copies
from tvgrad.vectors.parameters import Weights, tied_names, trainable_parameters


def add_gradients(directory: str | os.PathLike[str], target: str, device: str = "auto") -> Run:
    """Compute the full-batch gradient at every recorded point of a run and add it there.

    Args:
        directory: the run.
        target: TARGET of a recipe whose model has the run's parameters.
        device: where to compute.

    Returns:
        The run.

    Raises:
        TvgradError: the recipe does not fit the run.
    """  # noqa: DOC502 - raised by recipe_of and objective_of
    run = Run.open(directory)
    recipe = recipe_of(run, target)
    objective = objective_of(run, recipe, device=device)
    writer = RunWriter.resume(run.root)
    try:
        for number in run.epochs:
            objective.model.load_state_dict(run.complete(number))  # the buffers of that moment
            loss, gradient = objective.value_and_gradient(run.weights(number))
            writer.amend(number, {"gradient": cpu_copies(gradient)}, {"loss": loss})
        record = {*run.info.get("record", ()), "gradients"}
        writer.update_info(
            recipe={"target": target, "task": recipe.name, "about": recipe.about},
            record=[kind for kind in RECORDABLE if kind in record],
            **objective_facts(objective),
        )
    finally:
        writer.close()
    return Run.open(run.root)


def trace_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    prepared: Prepared,
    directory: str | os.PathLike[str],
    target: str | None = None,
    *,
    overwrite: bool = False,
) -> Run:
    """Record checkpoints, in the order given, as the epochs of a run, with the full-batch gradient at each.

    Args:
        paths: checkpoints; the first is the pretrained one.
        prepared: the recipe, as `tvgrad.record.training_loop.prepare` makes it ready.
        directory: the run directory to make.
        target: the recipe's TARGET, for the record.
        overwrite: replace a run that is there.

    Returns:
        The run.

    Raises:
        TvgradError: a checkpoint cannot be read or does not fit the recipe's model, or the directory is taken.
    """
    if not paths:
        raise TvgradError("there are no checkpoints to record: give their files, the pretrained one first")
    contents = (read_checkpoint(path) for path in paths)
    model, frozen = prepared.model, None
    first = next(contents)
    _load(model, first, paths[0])
    recorder = Recorder(
        directory,
        model,
        objective=prepared.objective,
        overwrite=overwrite,
        keep=prepared.options.keep,
        keep_gradients=prepared.options.keep_gradients,
        groups=prepared.options.groups,
        name=prepared.recipe.name,
        info={
            "recipe": {"target": target, "task": prepared.recipe.name, "about": prepared.recipe.about},
            "checkpoints": [str(path) for path in paths],
            "rule_reason": "the weights came from checkpoints",
        },
    )
    with recorder:
        frozen = _frozen(model)
        for path, content in zip(paths[1:], contents, strict=True):
            _load(model, content, path)
            for name, tensor in _frozen(model).items():
                if not torch.equal(tensor, frozen[name]):
                    raise TvgradError(f"{path} has another {name} than {paths[0]}, and the recipe freezes it")
            recorder.end_epoch()
    return Run.open(directory)


def _load(model: nn.Module, content: Weights, path: str | os.PathLike[str]) -> None:
    try:
        outcome = model.load_state_dict(content, strict=False)
    except RuntimeError as error:
        raise TvgradError(f"{path} does not fit the recipe's model: {str(error).splitlines()[-1].strip()}") from None
    tied = tied_names(model)
    missing = [name for name in outcome.missing_keys if name not in tied]
    strange = [*(f"it has no {name}" for name in missing), *(f"it has {name}" for name in outcome.unexpected_keys)]
    if strange:
        raise TvgradError(f"{path} does not fit the recipe's model: {strange[0]} (of {len(strange)} differences)")


def _frozen(model: nn.Module) -> Weights:
    moving = trainable_parameters(model)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if name not in moving}
