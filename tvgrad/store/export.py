"""Complete checkpoints for other tools, made of a run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.regular import real_path
from tvgrad.files.writable import make_folder, require_folder
from tvgrad.files.writing import write_tensors
from tvgrad.store.lora import is_lora, lora_config, merged_weights, saved_names
from tvgrad.store.manifest import FileEntry
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights

FORMAT = {"format": "pt"}
"""What the Hugging Face libraries look for in the header of a checkpoint."""

MERGEABLE = ("float32", "bfloat16", "float16")
"""The dtypes that mergekit takes by name; of others it keeps what the checkpoint has."""

UNKNOWN = "path/to/the/pretrained/model"


def export_checkpoint(
    run: Run, epoch: int, directory: Path, base: str | None = None, *, merged: bool = False
) -> list[Path]:
    """Write everything a `state_dict` of the tuned model holds; of a run of LoRA, the adapter.

    Args:
        run: the run.
        epoch: epochs (or steps) done.
        directory: a new or empty folder.
        base: name or path of the pretrained model, for mergekit or the adapter's configuration; by default the one that
            the model's or the adapter's own configuration carries.
        merged: of a run of LoRA, write the model with the adapter merged into its weights instead.

    Returns:
        The files: model.safetensors (or its index), and config.json and mergekit.yaml where the model has a Hugging
        Face configuration; or adapter_model.safetensors and adapter_config.json, which peft opens.

    Raises:
        TvgradError: the epoch was not kept, a base is given for a model that mergekit cannot read, the folder holds
            other files or cannot be made, or `merged` is asked of a run without an adapter.
        DamagedRun: a file that is needed is not as it was written.
    """
    weights = run.file("weights", epoch)
    config, lora = run.info.get("config"), is_lora(run)
    if merged and not lora:
        raise TvgradError(f"{run.root} trained no LoRA adapter that could be merged: leave out --merged")
    adapter = lora_config(run) if lora else {}
    if base is not None and not config and (merged or not lora):
        raise TvgradError(
            f"{run.root} has no Hugging Face configuration, so there is no mergekit file: leave out --base"
        )
    require_folder(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise TvgradError(f"{directory} is not an empty folder: choose another --out")
    weights.close()
    for entry in _needed(run, epoch):
        for problem in entry.problems(run.root):
            raise DamagedRun(f"{run.root} cannot be exported: {problem}; restore it or trace the run again")
    content = merged_weights(run, epoch) if merged else run.weights(epoch) if lora else run.complete(epoch)
    make_folder(directory)
    try:
        if lora and not merged:
            return _write_adapter(run, content, adapter, directory, base=base)
        written = [write_tensors(content, directory / "model.safetensors", metadata=FORMAT)]
        if config:
            text = json.dumps(config, indent=2, sort_keys=True)
            write_text_atomically(directory / "config.json", text)
            merge = _merge_file(run, config, directory, base)
            write_text_atomically(directory / "mergekit.yaml", merge)
            written += [directory / "config.json", directory / "mergekit.yaml"]
    except BaseException:
        # It was empty: half a checkpoint is of no use, and would be in the way of the next try.
        for left in directory.iterdir():
            with suppress(OSError):
                left.unlink()
        raise
    return written


def _write_adapter(
    run: Run, weights: Weights, config: dict[str, Any], directory: Path, *, base: str | None
) -> list[Path]:
    """An adapter as peft's `save_pretrained` writes it."""
    content = {name: weights[own] for name, own in saved_names(run).items()}
    file, described = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    written = write_tensors(content, file, metadata=FORMAT)
    known = {"inference_mode": True} | ({} if base is None else {"base_model_name_or_path": base})
    write_text_atomically(described, json.dumps(config | known, indent=2, sort_keys=True))
    return [written, described]


def _needed(run: Run, epoch: int) -> list[FileEntry]:
    """The files that a complete checkpoint is put together from."""
    changed = [point.files.get("buffers") for point in run.points if point.number <= epoch]
    entries = [run.manifest.static, *[entry for entry in changed if entry is not None][-1:]]
    return [entry for entry in (*entries, run.point(epoch).files["weights"]) if entry is not None]


def _merge_file(run: Run, config: dict[str, Any], directory: Path, base: str | None) -> str:
    """A configuration for mergekit that adds this model's task vector to the pretrained model."""
    known = base or config.get("_name_or_path") or UNKNOWN
    dtype = run.info.get("dtype")
    lines = ["# Adds this model's task vector to the pretrained model; list more models to merge several tasks."]
    if known == UNKNOWN:
        lines.append("# The run does not say where the pretrained model is: `tvgrad export RUN --epoch 0` writes it.")
    lines += [
        "merge_method: task_arithmetic",
        f"base_model: {json.dumps(known)}",
        "models:",
        f"  - model: {json.dumps(str(real_path(directory)))}",
        "    parameters:",
        "      weight: 1.0",
    ]
    return "\n".join([*lines, *([f"dtype: {dtype}"] if dtype in MERGEABLE else [])]) + "\n"
