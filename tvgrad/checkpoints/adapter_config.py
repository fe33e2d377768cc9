"""What an adapter's configuration (adapter_config.json of peft) says of its change of weights, or why it says nothing.

An adapter is read as `dW = s B A`. Kinds of adapters that are something else, and options under which the adapted model
is not the base model plus that, are refused by name: to read them as plain LoRA would give wrong numbers silently.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tvgrad.checkpoints.find import ADAPTER_CONFIG
from tvgrad.errors import TvgradError
from tvgrad.files.regular import read_json, reason_of

OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of initialisations that change the base weights, so that the base on disk is not the one adapted."""

MOST_TRIES = 1e8
"""Ways of comparing a pattern with a name: some seconds at most."""

NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Options under which the adapted weights are not `W + s B A`."""


def read_adapter_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the configuration of an adapter and check that it is plain LoRA.

    Args:
        folder: the adapter's folder.

    Returns:
        The configuration.

    Raises:
        TvgradError: it cannot be read, or is of another kind.
    """
    path = Path(folder) / ADAPTER_CONFIG
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise TvgradError(
            f"{path} cannot be read ({reason_of(error)}): save the adapter again by save_pretrained"
        ) from None
    if not isinstance(config, dict):
        raise TvgradError(f"{path} is no configuration of an adapter: save the adapter again by save_pretrained")
    check_plain_lora(config, str(folder))
    return config


def check_plain_lora(config: Mapping[str, Any], label: str) -> None:
    """Refuse adapters that are not `W + s B A`.

    Args:
        config: the adapter's configuration.
        label: what to call it in the message.

    Raises:
        TvgradError: it is of another kind.
    """
    merged = "merge it by peft's merge_and_unload and give the merged checkpoint"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise TvgradError(f"{label} is an adapter of the kind {kind}, and LORA alone is read here: {merged}")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(OTHER_BASE):
        raise TvgradError(f"{label} was begun by {start}, which changes the base weights too: {merged}")
    for option in NOT_PLAIN:
        if config.get(option):
            raise TvgradError(f"{label} is no plain LoRA ({option} is set): {merged}")


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Find the factor s of `dW = s B A`, as peft computes it.

    Args:
        config: the adapter's configuration.
        module: name of the adapted module.
        rank: number of rows of A.

    Returns:
        alpha / rank, or alpha / sqrt(rank) where `use_rslora` is set.

    Raises:
        TvgradError: alpha is no number, or a pattern is no regular expression.
    """
    alpha = config.get("lora_alpha", 8)
    try:
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if _tries(pattern, len(module)) > MOST_TRIES:
                raise TvgradError(
                    f"alpha_pattern of the adapter has {pattern!r}, which may take too long to compare with a name of "
                    f"{len(module)} letters: write names of modules"
                )
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
    except (re.error, AttributeError, OverflowError, RecursionError) as error:
        raise TvgradError(
            f"alpha_pattern of the adapter cannot be read ({reason_of(error)}): save the adapter again"
        ) from None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise TvgradError(f"lora_alpha of the adapter is {alpha!r} and no number: save the adapter again")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def adapter_of(model: nn.Module) -> dict[str, Any] | None:
    """Describe the adapter that a module of peft trains, for the record.

    Args:
        model: any module.

    Returns:
        name: the active adapter's; config: its configuration as plain values. None where there is no adapter.
    """
    owner = next((module for module in model.modules() if isinstance(getattr(module, "peft_config", None), dict)), None)
    every = getattr(owner, "peft_config", None)
    if not every:
        return None
    active = getattr(owner, "active_adapter", None)
    name = active if isinstance(active, str) and active in every else next(iter(every))
    describe = getattr(every[name], "to_dict", None)
    return {"name": name, "config": _plain(describe())} if callable(describe) else None


def _plain(value: Any) -> Any:
    """A configuration as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(one) for one in value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    inner = getattr(value, "value", value)  # enumerations
    return inner if inner is None or isinstance(inner, (str, int, float, bool)) else str(inner)


def _tries(pattern: str, letters: int) -> float:
    """How many ways a pattern of a stranger's may be compared with a name in, at most: some never end otherwise."""
    if re.search(r"\)[*+{]", pattern):
        return math.inf  # a repeated part that repeats: the number doubles with each letter
    ways = 2.0 ** min(pattern.count("?"), 1000)
    for part in pattern.split("("):
        ways *= 1 + part.count("|")
    return ways * float(max(letters, 2)) ** min(1 + len(re.findall(r"[*+{]", pattern)), 50)
