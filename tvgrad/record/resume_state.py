"""What a resume needs beyond the weights, and what it may not change.

The state is tensors and plain values, so that it is kept without pickle: the generators of random numbers, the
optimizer's buffers, and the scheduler. Functions (a schedule's, say) come from the user's code again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.regular import reason_of
from tvgrad.store.manifest import Manifest
from tvgrad.store.run import Run
from tvgrad.store.storable import storable
from tvgrad.vectors.parameters import Weights

UNCHANGED = {
    "rule": "update rule",
    "fingerprint": "data",
    "dtype": "dtype",
    "batch_size": "batch size",
    "seed": "seed",
    "record": "choice of what to record",
    "keep_gradients": "choice of how gradients are kept",
}
"""Facts of run.json that a resume may not change -> their names in the refusal."""


def refuse_changes(manifest: Manifest, directory: Path, unit: str, facts: Mapping[str, Any]) -> None:
    """Refuse to resume a run with different options.

    Args:
        manifest: what the run says of itself.
        directory: the run directory, for the message.
        unit: what the points would count, epoch or step.
        facts: what run.json would say of a run that was started now.

    Raises:
        TvgradError: one of the facts of `UNCHANGED` differs.
    """
    for what, mine, theirs in (
        ("unit of recording", unit, manifest.unit),
        *((words, facts.get(key), manifest.info.get(key)) for key, words in UNCHANGED.items()),
    ):
        # Full-batch training has no batch size, and who keeps whole gradients does not say so: there None is a value.
        known = (mine is not None and theirs is not None) or what in {"batch size", UNCHANGED["keep_gradients"]}
        if known and _plain(mine) != _plain(theirs):
            raise TvgradError(
                f"{directory} was recorded with another {what} ({_words(theirs)}, now {_words(mine)}): "
                "resume with the options it was started with"
            )


def restore_weights(run: Run, model: nn.Module) -> None:
    """Put a model's weights, frozen parameters and buffers back to a run's last point.

    Args:
        run: the run.
        model: the model it was recorded of.

    Raises:
        TvgradError: the model is another one.
    """
    last = run.points[-1].number
    present = dict(model.named_parameters()) | dict(model.named_buffers())
    recorded = run.static() | run.buffers(last) | run.weights(last)
    # What a module keeps as extra state is its own affair.
    recorded = {name: tensor for name, tensor in recorded.items() if not name.endswith("_extra_state")}
    for name, tensor in recorded.items():
        if name not in present or present[name].shape != tensor.shape:
            raise TvgradError(
                f"{run.root} records another model ({name} differs): resume with the one it was started with"
            )
    with torch.no_grad():
        for name, tensor in recorded.items():
            present[name].copy_(tensor)


def state_of(optimizers: Sequence[torch.optim.Optimizer], scheduler: Any) -> tuple[Weights, dict[str, Any]]:
    """Collect the generators of random numbers and the state of optimizer and scheduler.

    Args:
        optimizers: the optimizer, where there is one; the state of several is not kept.
        scheduler: anything with a `state_dict`, or None.

    Returns:
        Tensors, which the next step changes, and values that JSON can hold.
    """
    tensors: Weights = {"rng.torch": torch.get_rng_state()}
    version, internal, gauss = random.getstate()
    values: dict[str, Any] = {"rng.python": [version, list(internal), gauss]}
    # The global numpy generator is the one that user code and augmentations draw from.
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    tensors["rng.numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    values["rng.numpy"] = [str(kind), int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"rng.cuda.{index}"] = state
    if len(optimizers) > 1:
        values["unsaved"] = f"it has {len(optimizers)}, and the state of one can be kept"
    elif optimizers:
        (optimizer,) = optimizers
        content = optimizer.state_dict()
        values["groups"] = [_plain_state(group) for group in content["param_groups"]]
        plain: dict[str, dict[str, Any]] = {}
        for index, entries in content["state"].items():
            for key, value in entries.items():
                if isinstance(value, torch.Tensor) and storable(value):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif _storable(value) is _NOT:
                    values["unsaved"] = f"{type(optimizer).__name__} keeps {key}, a {type(value).__name__}"
                else:
                    plain.setdefault(str(index), {})[key] = _storable(value)
        values["optimizer"] = plain
    if scheduler is not None:
        values["scheduler"] = _plain_state(scheduler.state_dict())
    return tensors, values


def restore_state(
    directory: Path,
    tensors: Weights,
    values: dict[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    scheduler: Any,
) -> None:
    """Put generators, optimizer and scheduler back to where `state_of` found them.

    Args:
        directory: the run directory, for messages.
        tensors: what `state_of` returned.
        values: likewise.
        optimizers: of the resumed loop.
        scheduler: its scheduler.

    Raises:
        TvgradError: the optimizer is another one, or its state could not be kept.
        DamagedRun: the state holds no random-number generators.
    """
    try:
        _restore_generators(tensors, values)
    except _UNFIT as error:
        raise DamagedRun(
            f"the state in {directory} holds no random-number generators ({reason_of(error)}): trace the run again"
        ) from None
    if "unsaved" in values:
        raise TvgradError(
            f"{directory} cannot be resumed, because its optimizer's state could not be kept "
            f"({values['unsaved']}): trace the run again"
        )
    try:
        if len(optimizers) == 1 and "groups" in values:
            _restore_optimizer(tensors, values, optimizers[0])
        if scheduler is not None and "scheduler" in values:
            own = scheduler.state_dict()
            # A scheduler takes whatever it is given for its attributes.
            scheduler.load_state_dict({name: one for name, one in values["scheduler"].items() if name in own})
    except _UNFIT as error:
        raise TvgradError(
            f"{directory} was recorded with another optimizer or scheduler ({reason_of(error)}): resume with the one "
            "it had"
        ) from None


def _restore_optimizer(tensors: Weights, values: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["optimizer"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})


_UNFIT = (KeyError, IndexError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError)
"""What PyTorch, numpy and Python raise where a state is not theirs."""


def _restore_generators(tensors: Weights, values: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["rng.torch"])
    version, internal, gauss = values["rng.python"]
    random.setstate((version, tuple(internal), gauss))
    kind, position, has_gauss, cached = values["rng.numpy"]
    keys = tensors["rng.numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))  # noqa: NPY002
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(devices):
        if f"rng.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{index}"], index)


def _words(value: Any) -> str:
    """A fact of run.json for a sentence."""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _plain(value: Any) -> Any:
    """Tuples as lists, as a JSON round trip leaves them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state that JSON can hold (functions come from the user's code again)."""
    stored = {str(key): _storable(value) for key, value in state.items()}
    return {key: value for key, value in stored.items() if value is not _NOT}


_NOT: Any = object()


def _storable(value: Any) -> Any:
    """A value as JSON gives it back, or `_NOT`; of nested states (a chain of schedulers) what can be kept of each."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, Mapping):
        # JSON would turn other keys into words (MultiStepLR counts its milestones by number).
        return _plain_state(value) if all(isinstance(key, str) for key in value) else _NOT
    if isinstance(value, (list, tuple)):
        stored = [_storable(one) for one in value]
        return _NOT if any(one is _NOT for one in stored) else stored
    return _NOT
