"""Where the weights of a checkpoint lie: its file, or the one in its folder that is opened."""

from __future__ import annotations

import os
from pathlib import Path

from tvgrad.errors import TvgradError
from tvgrad.files.regular import read_json, reason_of

IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "checkpoint.pt",
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TAKEN = "which report, relate and merge take with --pretrained BASE, the model that it was trained from"
SAFETENSORS = (".safetensors", ".safetensors.index.json")


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """Find the file of a checkpoint.

    Args:
        path: a file, or a folder that holds one under a usual name.

    Returns:
        The file; the index where the checkpoint is sharded.

    Raises:
        TvgradError: there is none.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in IN_FOLDERS if (file / name).is_file()]
        if not found and is_adapter(file):
            raise TvgradError(
                f"{file} is an adapter, and here a whole model is needed: give the checkpoint it was trained from"
            )
        if not found:
            raise TvgradError(f"{file} holds no checkpoint that is known ({', '.join(IN_FOLDERS)}): give a file")
        return found[0]
    if not file.is_file():
        raise TvgradError(f"{file} does not exist: give a checkpoint's file or folder")
    return file


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Say whether a folder holds an adapter as peft writes it.

    Args:
        path: any path.

    Returns:
        Whether its configuration is there.
    """
    return (Path(path) / ADAPTER_CONFIG).is_file()


def needs_base(path: str | os.PathLike[str]) -> str | None:
    """Say what is missing where a checkpoint or an adapter was given in place of a run.

    Args:
        path: what was given.

    Returns:
        A sentence, or None where it is neither.
    """
    if is_adapter(path):
        return f"{path} is an adapter without its base model, {TAKEN}"
    given = Path(path)
    ends = (*SAFETENSORS, ".bin", ".pt", ".pth", ".ckpt")
    in_folder = given.is_dir() and any((given / name).is_file() for name in IN_FOLDERS)
    if in_folder or (given.is_file() and given.name.endswith(ends)):
        return f"{path} is a checkpoint and no run, {TAKEN}"
    return None


def refuse_quantised(path: str | os.PathLike[str]) -> None:
    """Refuse a folder whose configuration says that its weights are quantised: they are no numbers to subtract.

    Args:
        path: a checkpoint; of a file nothing is known.

    Raises:
        TvgradError: its weights are quantised.
    """
    config = Path(path) / "config.json"
    try:
        content = read_json(config) if config.is_file() else {}
    except (OSError, ValueError) as error:
        raise TvgradError(
            f"{config} cannot be read ({reason_of(error)}): restore it, or give the file of the weights"
        ) from None
    if isinstance(content, dict) and content.get("quantization_config"):
        raise TvgradError(f"the weights of {path} are quantised (see its config.json): give the checkpoint before that")


def adapter_file(folder: str | os.PathLike[str]) -> Path:
    """Find the file of an adapter's tensors.

    Args:
        folder: the adapter's folder.

    Returns:
        The file.

    Raises:
        TvgradError: there is none.
    """
    for name in ADAPTER_FILES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise TvgradError(
        f"{folder} has {ADAPTER_CONFIG} and none of {', '.join(ADAPTER_FILES)}: save the adapter again by "
        "save_pretrained"
    )
