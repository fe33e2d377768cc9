"""Runs of LoRA: what their factors change in the weights of the model that they adapt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tvgrad.checkpoints.adapter import Adapter, FactorPair, low_rank, split_names, without_wrappers
from tvgrad.checkpoints.adapter_config import check_plain_lora
from tvgrad.checkpoints.low_rank import LowRank
from tvgrad.checkpoints.opening import Checkpoint, plain_names
from tvgrad.checkpoints.sources import Joined, Renamed
from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorSource
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights

OF_PEFT = ".lora_A."
"""What stands in the names of the factors that peft trains."""


def is_lora(run: Run) -> bool:
    """Say whether a run trained the factors of an adapter of peft.

    Args:
        run: the run.

    Returns:
        Whether it did.
    """
    return run.info.get("adapter") is not None or any(
        name.startswith("base_model.model.") and OF_PEFT in name for name in run.parameters
    )


def lora_config(run: Run) -> dict[str, Any]:
    """Find the configuration of a run's adapter.

    Args:
        run: a run of LoRA.

    Returns:
        peft's configuration, as plain values.

    Raises:
        TvgradError: it was not recorded, or the adapter is no plain LoRA.
    """
    adapter = run.info.get("adapter")
    if adapter is None:
        raise TvgradError(
            f"{run.root} holds LoRA factors and not their scale, which earlier versions did not record: trace it again"
        )
    config: dict[str, Any] = dict(adapter["config"])
    check_plain_lora(config, str(run.root))
    return config


def factor_pairs(run: Run) -> tuple[list[FactorPair], dict[str, str]]:
    """Tell a run's factors from what was trained whole beside them.

    Args:
        run: a run of LoRA.

    Returns:
        The factors in pairs, and plain name -> the run's name of every other trained tensor.

    Raises:
        TvgradError: a factor lacks the other, or the adapter is no plain LoRA.
    """  # noqa: DOC502 - raised by split_names
    return split_names(run.parameters, str(run.root))


def weight_changes(run: Run, epoch: int) -> dict[str, LowRank]:
    """Task vectors in weight space, `s (B_e A_e - B_0 A_0)`, kept as thin matrices.

    The difference is taken between factors, `(B_e - B_0) A_e + B_0 (A_e - A_0)`, so that nothing cancels.

    Args:
        run: a run of LoRA.
        epoch: epochs (or steps) done.

    Returns:
        Weight of the adapted model -> its change.

    Raises:
        TvgradError: the epoch was not kept, or the adapter is no plain LoRA.
    """  # noqa: DOC502 - raised by what is called
    config, (pairs, _) = lora_config(run), factor_pairs(run)
    found = {}
    with run.file("weights", 0) as start, run.file("weights", epoch) as end:
        for pair in pairs:
            before, after = (
                low_rank(file.read(pair.first), file.read(pair.second), pair, config=config) for file in (start, end)
            )
            left, right = after.left - before.left, after.right - before.right
            if bool(before.left.any()) and bool(right.any()):
                left, right = torch.cat([left, before.left], dim=1), torch.cat([after.right, right])
            else:
                right = after.right
            found[f"{pair.module}.weight"] = LowRank(left, right, after.shape)
    return found


def adapted_model(run: Run) -> Checkpoint:
    """Open the model that a run adapted, under its own names, as it was before the training.

    Args:
        run: a run of LoRA.

    Returns:
        Frozen tensors and buffers, and the starts of what was trained whole.
    """
    whole = Renamed(run.file("weights", 0), factor_pairs(run)[1])
    parts: list[TensorSource] = [whole]
    static = run.static_file()
    if static is not None:
        names = {without_wrappers(plain): name for plain, name in plain_names(static.places).items()}
        parts.append(Renamed(static, {plain: name for plain, name in names.items() if plain not in whole.places}))
    return Checkpoint(run.root, Joined(run.root, parts))


def adapter_at(run: Run, epoch: int) -> Adapter:
    """Describe a run at one epoch as an adapter of the model that it started from.

    Args:
        run: a run of LoRA.
        epoch: epochs (or steps) done.

    Returns:
        The adapter; its changes are those since the start.
    """
    whole = Renamed(run.file("weights", epoch), factor_pairs(run)[1])
    return Adapter(Path(run.root), lora_config(run), weight_changes(run, epoch), whole)


def merged_weights(run: Run, epoch: int) -> Weights:
    """Add a run's adapter to the weights that it adapts.

    Args:
        run: a run of LoRA.
        epoch: epochs (or steps) done.

    Returns:
        Everything a `state_dict` of the adapted model holds, under its own names; sums are formed in float64 and
        rounded once to the weights' dtypes.

    Raises:
        TvgradError: the epoch was not kept, or the adapter is no plain LoRA.
    """  # noqa: DOC502 - raised by what is called
    config, (pairs, whole) = lora_config(run), factor_pairs(run)
    complete = run.complete(epoch)
    factors = {name for pair in pairs for name in (pair.first, pair.second)}
    rest = [name for name in complete if name not in factors]
    found = {without_wrappers(plain): complete[name] for plain, name in plain_names(rest).items()}
    found |= {plain: complete[name] for plain, name in whole.items()}  # not the frozen originals beside them
    for pair in pairs:
        name = f"{pair.module}.weight"
        change = low_rank(complete[pair.first], complete[pair.second], pair, config=config)
        weight = found[name]
        found[name] = change.block(0, weight.numel()).view(weight.shape).add_(weight.double()).to(weight.dtype)
    return found


def saved_names(run: Run) -> Mapping[str, str]:
    """Name a run's trained tensors as peft's `save_pretrained` does.

    Args:
        run: a run of LoRA.

    Returns:
        Name in an adapter's file -> the run's name.
    """
    name = run.info["adapter"]["name"]
    pairs, whole = factor_pairs(run)
    factors = [factor for pair in pairs for factor in (pair.first, pair.second)]
    found = {_with_prefix(factor).replace(f".{name}", ""): factor for factor in factors}
    return found | {_with_prefix(own.replace(f".modules_to_save.{name}", "")): own for own in whole.values()}


def _with_prefix(name: str) -> str:
    return name if name.startswith("base_model.model.") else f"base_model.model.{name}"
