"""RunHeader: what run.json says of a run before its first point, and the start of its directory."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping
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
from tvgrad.store.keep_policy import KeepPolicy
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.writer import RunWriter, cpu_copies
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import rule_from_optimizer
from tvgrad.vectors.parameters import frozen_state, tied_names, trainable_parameters

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
        optimizer: the optimizer, where there is one.
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
    optimizer: torch.optim.Optimizer | None = None
    objective: Objective | None = None
    rule: UpdateRule | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Describe how the run is made."""
        first = next(iter(self.parameters.values()))
        facts = {
            "name": self.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **read_rule(self.optimizer, self.rule),
            "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
            "fused": any(group.get("fused") for group in self.optimizer.param_groups) if self.optimizer else False,
            "dtype": str(first.dtype).removeprefix("torch."),
            "device": str(first.device),
            "threads": torch.get_num_threads(),
            "record": [kind for kind in RECORDABLE if kind in self.record],
            "keep": self.keep,
            "modules": sorted({type(module).__name__ for module in self.model.modules()}),
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

    def creation(self, directory: Path, overwrite: bool = False) -> Callable[[], RunWriter]:
        """Prepare to start the run directory.

        Args:
            directory: where.
            overwrite: whether a run that is there is replaced.

        Returns:
            A function that makes the directory and its writer, and may be called in a thread.
        """
        parameters = {
            name: Parameter(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self.groups[name])
            for name, tensor in self.parameters.items()
        }
        manifest = Manifest(self.facts(), self.unit, parameters, tied_names(self.model))
        others = {name: p.detach() for name, p in trainable_parameters(self.model).items() if name not in parameters}
        static = cpu_copies(frozen_state(self.model) | others)
        return lambda: RunWriter.create(directory, manifest, static, overwrite=overwrite)


def read_rule(optimizer: torch.optim.Optimizer | None, rule: UpdateRule | None = None) -> dict[str, Any]:
    """Read the update rule from an optimizer.

    Args:
        optimizer: the optimizer, where there is one.
        rule: a rule that is known already.

    Returns:
        rule: the rule as plain values, or None; rule_reason: why there is none.
    """
    reason = None
    if rule is None and optimizer is None:
        reason = "no optimizer was given"
    elif rule is None and optimizer is not None:
        try:
            rule = rule_from_optimizer(optimizer)
        except TvgradError as error:
            reason = str(error)
    return {"rule": None if rule is None else rule.to_dict(), "rule_reason": reason}


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
