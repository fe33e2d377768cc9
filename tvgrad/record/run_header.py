"""RunHeader: what run.json says of a run before its first point, and the start of its directory."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvgrad.checkpoints.adapter_config import adapter_of
from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.record.optimizer_options import OptimizerOptions
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.store.kept_gradients import ALL_GRADIENTS, KeptGradients
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.storable import require_storable
from tvgrad.store.writer import RunWriter, cpu_copies
from tvgrad.update_rules.from_optimizer import rule_of_parameters
from tvgrad.update_rules.grouped import AnyRule
from tvgrad.vectors.parameters import frozen_state, tied_names, trainable_parameters
from tvgrad.vectors.spread import is_spread, whole_tensor

RECORDABLE = ("gradients", "epoch-gradients", "batches")


@dataclass(frozen=True)
class RunHeader:
    """A run that is about to be recorded.

    Attributes:
        name: the task's name.
        model: the module that is tuned.
        parameters: name -> parameter, those that are recorded.
        groups: name -> group.
        unit: what the numbers of points count, epoch or step.
        record: kinds of tensors that are recorded besides weights.
        keep: which points keep their tensors.
        keep_gradients: whether gradients are kept whole, or as sketches.
        optimizers: those that move the parameters; none where that is not known.
        objective: the full-batch objective, where there is one.
        rule: the update rule; by default read from the optimizer.
        info: facts of the caller's, which come before those found here.
    """

    name: str
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    groups: Mapping[str, str]
    unit: str
    record: Collection[str]
    keep: KeepPolicy
    keep_gradients: KeptGradients = ALL_GRADIENTS
    optimizers: Sequence[torch.optim.Optimizer] = ()
    objective: Objective | None = None
    rule: AnyRule | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_storable(self.model)

    def facts(self) -> dict[str, Any]:
        """Describe how the run is made."""
        first = next(iter(self.parameters.values()))
        facts = {
            "name": self.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **read_rule(self.optimizers, self.parameters, self.rule),
            "optimizer": " and ".join(dict.fromkeys(type(one).__name__ for one in self.optimizers)) or None,
            "optimizer_groups": OptimizerOptions(self.optimizers).first,
            "fused": any(group.get("fused") for one in self.optimizers for group in one.param_groups),
            "dtype": str(first.dtype).removeprefix("torch."),
            "device": str(first.device),
            "threads": torch.get_num_threads(),
            "record": [kind for kind in RECORDABLE if kind in self.record],
            "keep": self.keep,
            **({} if self.keep_gradients.width is None else {"keep_gradients": self.keep_gradients}),
            "modules": sorted({type(module).__name__.removeprefix("FSDP") for module in self.model.modules()}),
            "versions": {
                "tvgrad": metadata.version("tvgrad"),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        adapter = adapter_of(self.model)
        if adapter is not None:
            facts["adapter"] = adapter
        return facts | ({} if self.objective is None else objective_facts(self.objective)) | dict(self.info)

    def creation(self, directory: Path, overwrite: bool = False, background: bool = True) -> Callable[[], RunWriter]:
        """Prepare to start the run directory.

        Args:
            directory: where.
            overwrite: whether a run that is there is replaced.
            background: whether training goes on meanwhile, so that what it may change is copied.

        Returns:
            A function that makes the directory and its writer; with `background` it may be called in a thread.
        """
        parameters = {
            name: Parameter(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self.groups[name])
            for name, tensor in self.parameters.items()
        }
        manifest = Manifest(self.facts(), self.unit, parameters, tied_names(self.model))
        spread = any(map(is_spread, self.parameters.values()))
        trainable = trainable_parameters(self.model, spread)
        others = {name: p.detach() for name, p in trainable.items() if name not in parameters}
        static = frozen_state(self.model, spread) | others
        if spread:  # every process helps, and the first one writes them
            static = {name: whole_tensor(tensor) for name, tensor in static.items()}
        static = cpu_copies(static) if background else static
        return lambda: RunWriter.create(directory, manifest, static, overwrite=overwrite)


def read_rule(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter], rule: AnyRule | None = None
) -> dict[str, Any]:
    """Read the update rule from the optimizers of a model.

    Args:
        optimizers: they; none where they are not known.
        parameters: name -> parameter, those that are recorded.
        rule: a rule that is known already.

    Returns:
        rule: the rule as plain values, or None; rule_reason: why there is none.
    """
    reason: str | None = None
    found: AnyRule | None = rule
    if rule is None and not optimizers:
        reason = "no optimizer was given"
    elif rule is None:
        try:
            found = rule_of_parameters(optimizers, {id(tensor): name for name, tensor in parameters.items()})
        except TvgradError as error:
            reason = str(error)
    return {"rule": None if found is None else found.to_dict(), "rule_reason": reason}


def objective_facts(objective: Objective) -> dict[str, Any]:
    """Describe the full-batch objective whose gradients are recorded.

    Args:
        objective: the objective.

    Returns:
        Facts for run.json.
    """
    return {
        "samples": len(objective.samples),
        "fingerprint": objective.samples.fingerprint(),
        "chunk_size": objective.chunk_size,
        "allowed": list(objective.allowed),
    }
