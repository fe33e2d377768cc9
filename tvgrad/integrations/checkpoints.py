"""Checkpoints: full-batch gradients at weights that exist already, in files or in a run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.record.recorder import Recorder
from tvgrad.record.run_header import RECORDABLE, objective_facts
from tvgrad.record.training_loop import Prepared
from tvgrad.store.run import Run
from tvgrad.store.writer import RunWriter, cpu_copies
from tvgrad.vectors.parameters import Weights, tied_names, trainable_parameters

IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.pt",
    "checkpoint.pt",
)
NESTED = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("_orig_mod.", "module.")


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
) -> Run:
    """Record checkpoints, in the order given, as the epochs of a run, with the full-batch gradient at each.

    Args:
        paths: checkpoints; the first is the pretrained one.
        prepared: the recipe, as `tvgrad.record.training_loop.prepare` makes it ready.
        directory: the run directory to make.
        target: the recipe's TARGET, for the record.

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
        keep=prepared.options.keep,
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


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """Find the file of a checkpoint.

    Args:
        path: a file, or a folder that holds one under a usual name.

    Returns:
        The file; the index where the checkpoint is sharded.

    Raises:
        TvgradError: there is none.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in IN_FOLDERS if (file / name).is_file()]
        if not found:
            raise TvgradError(f"{file} holds no checkpoint that is known ({', '.join(IN_FOLDERS)}): give a file")
        return found[0]
    if not file.is_file():
        raise TvgradError(f"{file} does not exist: give a checkpoint's file or folder")
    return file


def read_checkpoint(path: str | os.PathLike[str]) -> Weights:
    """Read a `state_dict` from a file or a folder. Code in a file is never run.

    Args:
        path: safetensors (or the index of its shards), a file of `torch.save` that holds tensors only, or a folder with
            one of them under a usual name.

    Returns:
        Name -> CPU tensor.

    Raises:
        TvgradError: it is none of these.
    """
    file = checkpoint_file(path)
    if file.name.endswith((".safetensors", ".safetensors.index.json")):
        with TensorFile(file) as tensors:
            return _plain_names(tensors.read_all())
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError):
        raise TvgradError(
            f"{file} holds more than tensors, or is no file of torch.save: write model.state_dict() alone, "
            "or as safetensors"
        ) from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors_of = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if hasattr(content, "items") else {}
    )
    if not tensors_of:
        raise TvgradError(f"{file} holds no state_dict: write model.state_dict() with torch.save, or as safetensors")
    return _plain_names(tensors_of)


def _plain_names(content: Weights) -> Weights:
    """Names without what torch's wrappers put before them."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


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
