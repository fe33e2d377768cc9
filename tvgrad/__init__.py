"""tvgrad: task vectors and gradients, recorded, verified, explained and merged.

The public names below are loaded when they are first used, so that `import tvgrad` is quick and a notebook that only
computes a bound does not wait for what it does not need.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    # what to fine-tune, and the full-batch loss of it
    "Recipe": "tvgrad.problem.recipe",
    "Objective": "tvgrad.problem.objective",
    "SpreadObjective": "tvgrad.problem.spread_objective",
    "gathered": "tvgrad.problem.fully_sharded",
    # recording while weights move, and reading it back
    "Recorder": "tvgrad.record.recorder",
    "Run": "tvgrad.store.run",
    # what the records say
    "gram": "tvgrad.streaming.run_vectors",
    "sketch": "tvgrad.sketching.sketches",
    "check_one_epoch": "tvgrad.theory.equivalence",
    # what is predicted before training, and explained after it
    "predict": "tvgrad.theory.second_order",
    "plan": "tvgrad.theory.merge_plan",
    "multitask_gap": "tvgrad.theory.multitask",
    "error_budget": "tvgrad.theory.error_budget",
    "attribution": "tvgrad.theory.attribution",
    "relate_tasks": "tvgrad.theory.task_pairs",
    # errors
    "TvgradError": "tvgrad.errors",
    "UnsupportedModel": "tvgrad.errors",
    "DamagedRun": "tvgrad.errors",
}
_MODULES = ("bounds", "merging", "update_rules")

__all__ = ["__version__", *_PUBLIC, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    __version__: str
    from tvgrad import bounds, merging, update_rules
    from tvgrad.errors import DamagedRun, TvgradError, UnsupportedModel
    from tvgrad.problem.fully_sharded import gathered
    from tvgrad.problem.objective import Objective
    from tvgrad.problem.recipe import Recipe
    from tvgrad.problem.spread_objective import SpreadObjective
    from tvgrad.record.recorder import Recorder
    from tvgrad.sketching.sketches import sketch
    from tvgrad.store.run import Run
    from tvgrad.streaming.run_vectors import gram
    from tvgrad.theory.attribution import attribution
    from tvgrad.theory.equivalence import check_one_epoch
    from tvgrad.theory.error_budget import error_budget
    from tvgrad.theory.merge_plan import plan
    from tvgrad.theory.multitask import multitask_gap
    from tvgrad.theory.second_order import predict
    from tvgrad.theory.task_pairs import relate_tasks


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name == "__version__":
        value = importlib.metadata.version("tvgrad")
    elif name in _MODULES:
        value = importlib.import_module(f"tvgrad.{name}")
    else:
        raise AttributeError(f"module 'tvgrad' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
