"""The small files of a checkpoint's folder that a model made from it needs: configuration, tokenizer, generation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_atomically, write_text_atomically
from tvgrad.files.regular import read_json, real_path, reason_of
from tvgrad.files.writable import make_folder

ENDINGS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
NOT_CARRIED = (
    ".index.json",
    "adapter_config.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "tvgrad_merge.json",
    "requirements.txt",
)
LICENCES = ("LICENSE", "LICENCE", "NOTICE")


def carried_files(folder: Path) -> list[str]:
    """List a checkpoint's files beside its weights.

    Args:
        folder: its folder; a file has none.

    Returns:
        Their paths within the folder, those of its folders (`1_Pooling/config.json`) too. Weights, optimizer states,
        results of trainings and model cards are not among them.
    """
    if not folder.is_dir():
        return []
    every = [*folder.iterdir(), *(file for inner in folder.iterdir() if inner.is_dir() for file in inner.iterdir())]
    return sorted(
        str(file.relative_to(folder))
        for file in every
        if file.is_file() and _carried(file, folder) and _of_the_model(file, folder)
    )


def _of_the_model(file: Path, folder: Path) -> bool:
    """Whether a file is the model's own: a stranger's folder must not carry, by a link, what lies elsewhere."""
    # Caches keep files behind links: `snapshots/<revision>/<name>` leads to `blobs/<hash>` of the same model.
    real, own = real_path(file), real_path(folder)
    return real.is_relative_to(own) or (own.parent.name == "snapshots" and real.parent == own.parents[1] / "blobs")


def _carried(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    if any(part.startswith((".", "__", "checkpoint-")) for part in parts):
        return False
    return (file.name.endswith(ENDINGS) and not file.name.endswith(NOT_CARRIED)) or file.name.startswith(LICENCES)


def carry(files: Iterable[str], source: Path, target: Path, *, dtype: torch.dtype | None = None) -> None:
    """Copy files, as `carried_files` lists them.

    Args:
        files: paths within the folder.
        source: the folder that has them.
        target: the folder to copy them to.
        dtype: what config.json is to say of the weights' type; by default what it says already.

    Raises:
        TvgradError: the configuration is not to be read.
    """
    for name in files:
        make_folder((target / name).parent)
        if name == "config.json" and dtype is not None:
            write_text_atomically(target / name, _with_dtype(source / name, dtype))
        else:
            write_atomically(target / name, partial(shutil.copyfile, source / name))


def _with_dtype(path: Path, dtype: torch.dtype) -> str:
    try:
        config = read_json(path)
        old = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
        config |= dict.fromkeys(old, str(dtype).removeprefix("torch."))
    except (OSError, ValueError, TypeError) as error:
        raise TvgradError(f"{path} cannot be read ({reason_of(error)}): restore it, or leave out --dtype") from None
    return json.dumps(config, indent=2) + "\n"
