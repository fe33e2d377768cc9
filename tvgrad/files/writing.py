"""Safetensors files, written so that a crash leaves the old file or the new one.

Bytes go straight to the file, from where a tensor lies or block by block as it is computed: the safetensors library
would copy all of them first. Both are split into shards with an index where they are larger than one file may be, as
Hugging Face checkpoints are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import sha256_of, write_atomically
from tvgrad.files.tensors import DTYPES

MAX_SHARD_BYTES = 5_000_000_000
"""Largest number of tensor bytes in one file."""

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}

FIRST = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"]
FIRST += ["F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"]
"""The order in which the safetensors library writes dtypes, the names of each sorted: files have its bytes."""

Places: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
Blocks: TypeAlias = Callable[[str], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Stream:
    """Tensors that are made while they are written.

    Attributes:
        places: name -> shape and dtype.
        blocks: gives the consecutive flat blocks of a tensor, in its dtype.
    """

    places: Places
    blocks: Blocks

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Stream:
        """Tensors that are there.

        Args:
            tensors: name -> tensor on any device.

        Returns:
            They, each copied only where it is not on the CPU or not contiguous, when it is its turn.
        """
        places = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return cls(places, lambda name: (tensors[name].detach().cpu(),))

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> bytes."""
        return {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in self.places.items()}


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors to a safetensors file, or to shards and an index when they are larger than one shard.

    Each file is written under a temporary name, flushed to the disk and renamed, so whoever looks sees a whole file
    or none. Files get the usual mode of the process (the library alone would write 0600).

    Args:
        tensors: name -> tensor; from other devices they are copied one by one, shared memory is written twice.
        path: the `.safetensors` file to make; its folder must exist.
        max_shard_bytes: largest number of tensor bytes in one file.
        metadata: words for the header of each file.

    Returns:
        The path that opens the tensors: `path`, or the index beside it when there are shards.

    Raises:
        DiskFull: there is no room; nothing is left behind under the final name.
    """  # noqa: DOC502 - raised by write_atomically
    stream = Stream.of(tensors)
    return _write_shards(stream.sizes, partial(_save, stream, metadata), Path(path), max_shard_bytes)[0]


def write_checked_tensors(
    tensors: Mapping[str, torch.Tensor] | Stream, path: str | os.PathLike[str], max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[Path, dict[Path, str]]:
    """Write tensors as `write_tensors` does, and take the checksums of the files while the disk is flushed.

    Args:
        tensors: name -> tensor, or what makes them.
        path: the `.safetensors` file to make.
        max_shard_bytes: largest number of tensor bytes in one file.

    Returns:
        The path that opens the tensors, and file -> sha256 of every file written.

    Raises:
        DiskFull: there is no room; nothing is left behind under the final name.
    """  # noqa: DOC502 - raised by write_atomically
    stream = tensors if isinstance(tensors, Stream) else Stream.of(tensors)
    return _write_shards(stream.sizes, partial(_save, stream, None), Path(path), max_shard_bytes, sha256_of)


def write_stream(
    places: Places,
    blocks: Blocks,
    path: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    resume: bool = False,
    confirm: Callable[[], None] = lambda: None,
) -> Path:
    """Write tensors block by block, so that they are never in memory together, as `write_tensors` does.

    Args:
        places: name -> shape and dtype, in the order in which they are written.
        blocks: gives the consecutive flat blocks of a tensor, in its dtype.
        path: the `.safetensors` file to make; a whole file appears, or none.
        max_shard_bytes: largest number of tensor bytes in one file.
        metadata: words for the header of each file.
        resume: keep files that stand under their final names already, which are whole, and leave finished shards where
            the writing fails.
        confirm: called before a file gets its name; what it raises leaves none.

    Returns:
        The path that opens the tensors: `path`, or the index beside it when there are shards.

    Raises:
        TvgradError: the folder does not exist.
        DiskFull: there is no room.
    """  # noqa: DOC502 - raised by write_atomically
    if not path.parent.is_dir():
        raise TvgradError(f"{path.parent} is no folder: make it, or choose another --out")
    stream = Stream(places, blocks)
    sizes = stream.sizes

    def save(names: Sequence[str], temporary: Path) -> None:
        _save_stream(stream, sizes, metadata, names, temporary)
        confirm()

    return _write_shards(sizes, save, path, max_shard_bytes, resume=resume)[0]


def bytes_on_disk(places: Places, stem: str, *, as_given: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Tell how many bytes the files take that `write_tensors` would make, or `write_stream`.

    Args:
        places: name -> shape and dtype.
        stem: name of the file, without its ending: an index names its shards.
        as_given: tensors lie in the order of `places`, as `write_stream` writes them.
        max_shard_bytes: largest number of tensor bytes in one file.

    Returns:
        The exact sum of the files' sizes, an index included.

    Raises:
        TvgradError: no safetensors file holds a dtype.
    """  # noqa: DOC502 - raised by _header
    sizes = Stream(places, lambda name: ()).sizes
    shards = _split(sizes, max_shard_bytes)
    orders = shards if as_given else [_order(places, shard) for shard in shards]
    index = 0
    if len(shards) > 1:
        index = len(_index(sizes, shards, _shard_names(stem, len(shards))).encode())
    return index + sum(
        8 + len(_header(places, sizes, None, names)) + sum(sizes[name] for name in names) for names in orders
    )


def _shard_names(stem: str, count: int) -> list[str]:
    return [f"{stem}-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]


def _index(sizes: Mapping[str, int], shards: Sequence[Sequence[str]], files: Sequence[str]) -> str:
    """What says in which file each tensor stands."""
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    return json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}, indent=1)


def _order(places: Places, names: Sequence[str]) -> list[str]:
    """Names in the order, and so in the bytes, of the safetensors library."""
    return sorted(names, key=lambda name: (FIRST.index(KINDS[places[name][1]]), name.encode()))


def _write_shards(
    sizes: Mapping[str, int],
    save: Callable[[Sequence[str], Path], object],
    path: Path,
    limit: int,
    checksum: Callable[[Path], str] = lambda path: "",
    *,
    resume: bool = False,
) -> tuple[Path, dict[Path, str]]:
    """Save tensors of these sizes in as many files as the limit asks for; what opens them, and a checksum a file."""
    shards = _split(sizes, limit)
    if len(shards) == 1:
        if resume and path.exists():
            return path, {}
        return path, {path: write_atomically(path, partial(save, shards[0]), checksum)}
    stem, index_path = path.name.removesuffix(".safetensors"), path.parent / f"{path.name}.index.json"
    names = _shard_names(stem, len(shards))
    files, index = [path.parent / name for name in names], _index(sizes, shards, names)
    try:
        checksums = {
            file: write_atomically(file, partial(save, shard), checksum)
            for file, shard in zip(files, shards, strict=True)
            if not (resume and file.exists())
        }
        checksums[index_path] = write_atomically(
            index_path, partial(Path.write_text, data=index, encoding="utf-8"), checksum
        )
    except BaseException:
        if not index_path.exists() and not resume:  # shards without an index are of no use, and may fill the disk
            for file in files:
                file.unlink(missing_ok=True)
        raise
    return index_path, checksums


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, in groups that hold no more bytes than the limit (a larger tensor stands alone)."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _save(stream: Stream, metadata: Mapping[str, str] | None, names: Sequence[str], path: Path) -> None:
    """Save tensors in the order, and so in the bytes, of the safetensors library."""
    _save_stream(stream, stream.sizes, metadata, _order(stream.places, names), path)


def _header(
    places: Places, sizes: Mapping[str, int], metadata: Mapping[str, str] | None, names: Sequence[str]
) -> bytes:
    """The table of a file that holds these tensors in this order, without the eight bytes of its length."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name in names:
        shape, dtype = places[name]
        if dtype not in KINDS:
            kind = str(dtype).removeprefix("torch.")
            raise TvgradError(f"tensor {name!r} is of dtype {kind}, which no safetensors file holds: convert it first")
        table[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [position, position + sizes[name]]}
        position += sizes[name]
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return header + b" " * (-len(header) % 8)  # the format aligns data to eight bytes


def _save_stream(
    stream: Stream, sizes: Mapping[str, int], metadata: Mapping[str, str] | None, names: Sequence[str], path: Path
) -> None:
    header, position = _header(stream.places, sizes, metadata, names), sum(sizes[name] for name in names)
    with open(path, "wb") as handle:
        handle.write(len(header).to_bytes(8, "little"))
        handle.write(header)
        for name in names:
            for block in stream.blocks(name):
                handle.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if handle.tell() != 8 + len(header) + position:
            raise RuntimeError(f"{path} got {handle.tell()} bytes where its header promises {position}")
