"""The recipe and the objective of a recorded run."""

from __future__ import annotations

import copy

import torch

from tvgrad.errors import TvgradError
from tvgrad.numerics.device import resolve_device
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import same_names_and_shapes


def recipe_of(run: Run, target: str) -> Recipe:
    """Find the recipe of a run's task.

    Args:
        run: the run.
        target: a TARGET, as on the command line.

    Returns:
        The recipe, checked against the run's parameters.

    Raises:
        TvgradError: the target has no such task, or its model or data is not what was recorded.
    """
    recipes = load_recipes(target)
    task = (run.info.get("recipe") or {}).get("task", run.name)
    found = recipes[0] if len(recipes) == 1 else next((one for one in recipes if one.name == task), None)
    if found is None:
        raise TvgradError(f"{target} has no task called {task!r}, which {run.root} records")
    shapes = {name: tuple(p.shape) for name, p in found.model.named_parameters() if p.requires_grad}
    if shapes != {name: parameter.shape for name, parameter in run.parameters.items()}:
        raise TvgradError(f"the model of {target} has other parameters than {run.root}: give the recipe that made it")
    return found


def objective_of(
    run: Run, recipe: Recipe, dtype: torch.dtype | None = None, *, device: str = "auto", chunk_size: int | None = None
) -> Objective:
    """Build the objective whose gradients a run recorded.

    Args:
        run: the run.
        recipe: its recipe.
        dtype: by default the run's own.
        device: where to compute; `auto` is the device that the run was made on, whose kernels round as it did, where
            there is one here.
        chunk_size: samples evaluated at once; by default the run's own.

    Returns:
        The objective, at the run's pretrained weights.

    Raises:
        TvgradError: the recipe's data is not what the run was recorded on.
    """
    own = getattr(torch, str(run.info.get("dtype", "float32")))
    recorded = run.info.get("fingerprint")
    samples = recipe.train if _fits(recipe.train.fingerprint(), recorded) else recipe.train.with_dtype(own)
    if not _fits(samples.fingerprint(), recorded):
        raise TvgradError(f"the recipe's training data is not what {run.root} was recorded on: its fingerprint differs")
    # layers of several formats stay in theirs: a cast of all was recorded as one format
    mixed = len({one.dtype for one in run.parameters.values()}) > 1
    model = copy.deepcopy(recipe.model) if mixed else copy.deepcopy(recipe.model).to(own)
    try:
        model.load_state_dict(run.complete(0))
    except RuntimeError:
        raise TvgradError(
            f"the recipe's model holds other frozen parameters or buffers than {run.root}: give the recipe that made it"
        ) from None
    return recipe.objective(
        dtype or (None if mixed else own),
        _device_of(run) if device == "auto" else device,
        samples=samples if mixed else samples.as_rounded_to(own),
        model=model,
        chunk_size=chunk_size or run.info.get("chunk_size"),
        allow=run.info.get("allowed", ()),
    )


def _device_of(run: Run) -> str:
    try:
        return str(resolve_device(str(run.info.get("device", "auto"))))
    except TvgradError:
        return "auto"


def _fits(found: str, recorded: str | None) -> bool:
    return recorded is None or found == recorded


def check_data(run: Run, objective: Objective) -> None:
    """Compare data and parameters with what the run says of them.

    Args:
        run: the run.
        objective: in any dtype: data that was cast after the recording is compared as it was before.

    Raises:
        TvgradError: they differ.
    """
    shapes = {name: torch.empty(one.shape, device="meta") for name, one in run.parameters.items()}
    misfit = same_names_and_shapes(shapes, objective.initial)
    if misfit is not None:
        raise TvgradError(f"the objective's model has other parameters than {run.root}: {misfit}")
    recorded = run.info.get("fingerprint")
    if recorded is None:
        return
    own = getattr(torch, str(run.info.get("dtype", "float32")))
    if any(samples.fingerprint() == recorded for samples in objective.samples.as_it_may_have_been(own)):
        return
    raise TvgradError(
        f"the data is not what {run.root} was recorded on (its fingerprint differs): give the recipe that made it"
    )
