"""Complete checkpoints for other tools, made of a run."""

from __future__ import annotations

import json
from pathlib import Path

from tvgrad.errors import TvgradError
from tvgrad.record.run import Run
from tvgrad.tensor_files import write_atomically, write_tensors

__all__ = ["export_checkpoint"]


def export_checkpoint(run: Run, epoch: int, directory: Path) -> list[Path]:
    """Write everything a `state_dict` of the tuned model holds.

    Args:
        run: the run.
        epoch: epochs (or steps) done.
        directory: a new or empty folder.

    Returns:
        The files: model.safetensors (or its index), and config.json and mergekit.yaml where the model has a Hugging
        Face configuration.

    Raises:
        TvgradError: the epoch was not kept, or the folder holds other files or cannot be made.
    """
    content = run.complete(epoch)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TvgradError(f"{directory} is not an empty folder: choose another --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TvgradError(f"{directory} cannot be made ({error.strerror}): choose another --out") from None
    written = [write_tensors(content, directory / "model.safetensors")]
    config = run.info.get("config")
    if config:
        text = json.dumps(config, indent=2, sort_keys=True)
        write_atomically(directory / "config.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
        base = config.get("_name_or_path") or "path/to/the/pretrained/model"
        merge = (
            "# Adds this model's task vector to the pretrained model; list more models to merge several tasks.\n"
            "merge_method: task_arithmetic\n"
            f"base_model: {json.dumps(base)}\n"
            "models:\n"
            f"  - model: {json.dumps(str(directory))}\n"
            "    parameters:\n"
            "      weight: 1.0\n"
            f"dtype: {run.info.get('dtype', 'float32')}\n"
        )
        write_atomically(directory / "mergekit.yaml", lambda temporary: temporary.write_text(merge, encoding="utf-8"))
        written += [directory / "config.json", directory / "mergekit.yaml"]
    return written
