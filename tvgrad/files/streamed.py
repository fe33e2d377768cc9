"""A safetensors file whose tensors are computed while it is written, so that they are never in memory together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_atomically
from tvgrad.files.tensors import DTYPES, MAX_SHARD_BYTES

Places = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


def write_stream(
    places: Places,
    blocks: Callable[[str], Iterable[torch.Tensor]],
    path: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write tensors block by block to a safetensors file, or to shards and an index.

    Args:
        places: name -> shape and dtype, in the order in which they are written.
        blocks: gives the consecutive flat blocks of a tensor, in its dtype.
        path: the `.safetensors` file to make; a whole file appears, or none.
        max_shard_bytes: largest number of tensor bytes in one file.

    Returns:
        The path that opens the tensors: `path`, or the index beside it when there are shards.

    Raises:
        TvgradError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise TvgradError(f"{path.parent} is no folder: make it, or choose another --out")
    shards: list[list[str]] = [[]]
    used = 0
    for name in places:
        size = _nbytes(places, name)
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        write_atomically(path, lambda temporary: _write(places, shards[0], blocks, temporary))
        return path
    stem, weight_map = path.name.removesuffix(".safetensors"), {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(names, file))

        def write(temporary: Path, names: list[str] = names) -> None:
            _write(places, names, blocks, temporary)

        write_atomically(path.parent / file, write)
    index = path.parent / f"{path.name}.index.json"
    total = sum(_nbytes(places, name) for name in places)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    write_atomically(index, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return index


def _write(places: Places, names: list[str], blocks: Callable[[str], Iterable[torch.Tensor]], path: Path) -> None:
    table, position = {}, 0
    for name in names:
        shape, dtype = places[name]
        end = position + _nbytes(places, name)
        table[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns data to eight bytes
    with open(path, "wb") as handle:
        handle.write(len(header).to_bytes(8, "little"))
        handle.write(header)
        for name in names:
            for block in blocks(name):
                handle.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if handle.tell() != 8 + len(header) + position:
            raise RuntimeError(f"{path} got {handle.tell()} bytes where its header promises {position}")


def _nbytes(places: Places, name: str) -> int:
    shape, dtype = places[name]
    return math.prod(shape) * dtype.itemsize
