"""Merged checkpoints: a folder that opens like the pretrained one, from checkpoints and adapters on disk.

Tensors are merged one after another, and written as they are merged. Each file appears whole under its final name, so
that the same call, repeated after an interruption, goes on with the files that are missing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from tvgrad.checkpoints.carried import carried_files, carry
from tvgrad.checkpoints.family import Family, open_family
from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.regular import real_path
from tvgrad.files.writable import make_folder
from tvgrad.files.writing import KINDS, MAX_SHARD_BYTES, write_stream
from tvgrad.merging.merge import merged_blocks, stored_blocks
from tvgrad.merging.method import Method, checked_alpha
from tvgrad.merging.stack import FileStack
from tvgrad.results import Shown

RECORD = "tvgrad_merge.json"
"""The file in the folder that says what was merged, and by which an interrupted merge is recognised."""


@dataclass(frozen=True, repr=False)
class MergedFolder(Shown):
    """What `merge_checkpoints` wrote.

    Attributes:
        path: the path that opens the tensors.
        merged: names of the merged tensors.
        from_base: names of those that were taken from the pretrained model as they are.
        carried: names of the files that were copied from its folder.
        left_out: sentences on the tensors that were not merged.
        adapters: how many of the models were adapters.

    Examples:
        >>> from pathlib import Path
        >>> from tvgrad.merging import MergedFolder
        >>> made = MergedFolder(Path("merged"), merged=("w",), from_base=("head",), carried=(), left_out=(), adapters=0)
        >>> made.from_base
        ('head',)
    """

    path: Path
    merged: tuple[str, ...]
    from_base: tuple[str, ...]
    carried: tuple[str, ...]
    left_out: tuple[str, ...]
    adapters: int


def merge_checkpoints(
    method: Method,
    pretrained: str | os.PathLike[str],
    tuned: Sequence[str | os.PathLike[str]],
    *,
    alpha: float,
    out: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergedFolder:
    """Merge checkpoints, and LoRA adapters in weight space, into a checkpoint folder.

    Args:
        method: how.
        pretrained: the checkpoint that all were tuned from: a file, or a folder, whose configuration, tokenizer and
            other small files are carried along.
        tuned: fine-tuned checkpoints, and folders of adapters.
        alpha: what the merged vector is multiplied with.
        out: the folder to make; one in which the same merge was interrupted is finished.
        dtype: of the floating-point tensors that are written; by default those of the pretrained model.
        max_shard_bytes: largest number of tensor bytes in one file.

    Returns:
        What was written. Tensors that not all models have, or not in one shape (heads, resized embeddings), and buffers
        are the pretrained model's.

    Raises:
        TvgradError: a checkpoint cannot be read, the models do not fit together or are too few, a value is not finite,
            the folder holds something else, or alpha is no number.

    Examples:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from safetensors.torch import load_file, save_file
        >>> from tvgrad.merging import METHODS, merge_checkpoints
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in {"base": 1.0, "a": 2.0, "b": 4.0}.items():
        ...     save_file({"w": torch.tensor([value])}, folder / f"{name}.safetensors")
        >>> base, *tuned = (folder / f"{name}.safetensors" for name in ("base", "a", "b"))
        >>> made = merge_checkpoints(METHODS["mean"](), base, tuned, alpha=1.0, out=folder / "merged")
        >>> load_file(made.path)["w"].tolist()
        [3.0]
    """
    factor, folder = checked_alpha(alpha), Path(out)
    method.check_tasks(len(tuned))
    if dtype is not None and (dtype not in KINDS or not dtype.is_floating_point):
        raise TvgradError(f"{dtype} is no floating-point type that is written: choose float32, bfloat16 or float16")
    with ExitStack() as opened:
        family = open_family(pretrained, tuned, opened, dtype=torch.float64)
        stack = _stack(family)
        method.check_stack(stack)
        _prepare(folder, _request(family, method, factor, dtype=dtype, limit=max_shard_bytes))
        path = write_stream(
            _places(family, dtype),
            partial(_blocks, family, stack, method.prepared(stack), factor, dtype),
            folder / "model.safetensors",
            max_shard_bytes=max_shard_bytes,
            metadata={"format": "pt"},
            resume=True,
        )
        files = carried_files(Path(pretrained))
        carry(files, Path(pretrained), folder, dtype=dtype)
    return MergedFolder(
        path,
        (*family.shared, *family.tied),
        tuple(name for name in family.base.source.places if name not in family.shared and name not in family.tied),
        tuple(files),
        family.left_out,
        sum(member.is_change for member in family.members),
    )


def _stack(family: Family) -> FileStack:
    return FileStack(
        family.base.source,
        [member.source for member in family.members],
        family.names,
        names=family.shared,
        changes=[place for place, member in enumerate(family.members) if member.is_change],
    )


def _places(family: Family, dtype: torch.dtype | None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and dtype of what is written, as the pretrained model has it, in its order."""
    return {
        name: (place.shape, dtype if dtype is not None and place.dtype.is_floating_point else place.dtype)
        for name, place in family.base.source.places.items()
    }


def _blocks(
    family: Family, stack: FileStack, method: Method, alpha: float, dtype: torch.dtype | None, name: str
) -> Iterator[torch.Tensor]:
    stored = family.base.source.places[name].dtype
    wanted = dtype if dtype is not None and stored.is_floating_point else stored
    first = family.tied.get(name, name)  # a tied tensor is written twice, with the same numbers
    if first in stack.places:
        return merged_blocks(method, stack, first, alpha=alpha, dtype=wanted)
    return stored_blocks(family.base.source, name, wanted)


def _request(
    family: Family, method: Method, alpha: float, *, dtype: torch.dtype | None, limit: int
) -> dict[str, object]:
    """What is asked for, so that an interrupted merge is not finished with other models."""
    return {
        "method": method.name,
        "options": asdict(method),
        "alpha": alpha,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "max_shard_bytes": limit,
        "pretrained": _identity(family.base.path),
        "models": [_identity(member.source.path) for member in family.members],
        "tensors": len(family.base.source.places),
        "bytes": sum(math.prod(place.shape) * place.dtype.itemsize for place in family.base.source.places.values()),
    }


def _identity(path: Path) -> list[object]:
    """A path with the sizes and times of its files (of all beside it, where it is an index)."""
    whole = path if path.is_dir() else path.parent if path.name.endswith(".index.json") else None
    files = [path] if whole is None else sorted(one for one in whole.iterdir() if one.is_file())
    facts = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return [str(real_path(path)), facts]


def _prepare(folder: Path, request: dict[str, object]) -> None:
    """Make the folder, or find in it the same merge, interrupted."""
    text = json.dumps(request, indent=1)
    record = folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise TvgradError(f"{folder} is a file: choose a folder for --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not record.is_file():
            raise TvgradError(f"{folder} is not an empty folder: choose another --out")
        if record.read_text(encoding="utf-8") != text:
            raise TvgradError(
                f"{folder} holds another merge (see {RECORD} there), or a model changed since: choose another --out"
            )
        return
    make_folder(folder)
    write_text_atomically(record, text)
