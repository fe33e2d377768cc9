"""What training libraries log, and which of it describes the model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

NOT_OF_THE_MODEL = ("epoch", "runtime", "per_second", "flos", "learning_rate", "step")
"""Parts of the names under which libraries log clocks and options, which are no metrics of the weights."""


WATCHED = "_tvgrad"
"""Marks what was wrapped already: a script may train several times."""


def numbers_of_the_model(logged: Mapping[str, Any]) -> dict[str, float]:
    """Keep the numbers that describe the model.

    Args:
        logged: name -> value.

    Returns:
        Name -> number, without clocks, options and what is no number.
    """
    return {
        str(name): float(value)
        for name, value in logged.items()
        if isinstance(value, (int, float)) and not any(part in str(name) for part in NOT_OF_THE_MODEL)
    }


def watch_trainer_logs(tell: Callable[[dict[str, float]], None]) -> None:
    """Be told what a Trainer of Hugging Face's transformers logs, where the script has imported it.

    Args:
        tell: gets name -> number, of what describes the model.
    """
    handler: Any = getattr(sys.modules.get("transformers.trainer_callback"), "CallbackHandler", None)
    original = getattr(handler, "on_log", None)
    if original is None or hasattr(original, WATCHED):
        return

    @functools.wraps(original)
    def on_log(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        logs = kwargs.get("logs", args[4] if len(args) > 4 else None)
        if isinstance(logs, Mapping):
            tell(numbers_of_the_model(logs))
        return result

    setattr(on_log, WATCHED, True)
    handler.on_log = on_log
