"""Safetensors files: read in blocks without loading them, and written so that a crash leaves the old or the new.

Reading goes through the file's own header (eight bytes of length, a JSON table, raw little-endian data), because
streaming blocks into reused buffers is several times faster than one call per tensor and keeps the memory of a pass
constant. Writing goes through the safetensors library. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

from tvgrad.errors import DamagedRun
from tvgrad.files.atomic import sha256_of, write_atomically

MAX_SHARD_BYTES = 5_000_000_000
"""Files larger than this are split into shards with an index, as Hugging Face checkpoints are."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor's bytes lie: which shard, the first byte in that file, and how to read them."""

    shard: int
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.numel * self.dtype.itemsize


class TensorFile:
    """A safetensors file (or a sharded one, through its index), read lazily.

    The header is checked against the file's size when the object is made, so a truncated file is found before any
    long work starts. File handles are opened at the first read and closed by `close` or the end of a `with` block.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read and check the header.

        Args:
            path: a `.safetensors` file or a `.safetensors.index.json` of a sharded one.

        Raises:
            DamagedRun: the file is missing, truncated, or not in the safetensors format, or the shards do not hold
                what their index says.
        """
        self.path = Path(path)
        self.places: dict[str, TensorPlace] = {}
        self._handles: dict[int, BinaryIO] = {}
        self._opening = threading.Lock()  # several threads may read one file
        self._shards, promised = _shards_of(self.path)
        for index, shard in enumerate(self._shards):
            for name, place in _read_header(shard, index).items():
                if name in self.places:
                    raise DamagedRun(f"{self.path}: tensor {name!r} stands in two shards; write the file again")
                self.places[name] = place
        for name, owner in promised.items():
            if name not in self.places or self._shards[self.places[name].shard].name != owner:
                raise DamagedRun(f"{self.path}: tensor {name!r} is not in {owner}; write the file again")

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self.places)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in all shards."""
        return sum(place.nbytes for place in self.places.values())

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Read `out.numel()` consecutive elements of a flattened tensor into an existing buffer.

        Args:
            name: the tensor's name.
            start: index of the first element in the flattened tensor.
            out: contiguous one-dimensional CPU tensor of the stored dtype.

        Returns:
            `out`, filled.

        Raises:
            DamagedRun: there is no such tensor, or the file cannot be read to its end.
            ValueError: `out` has another dtype, or asks for more elements than the tensor has left.
        """
        place = self._place(name)
        if out.dtype != place.dtype or start < 0 or start + out.numel() > place.numel:
            raise ValueError(f"elements {start} to {start + out.numel()} of {out.dtype} do not fit {name!r} ({place})")
        if out.numel() == 0:
            return out
        view = out.view(torch.uint8).numpy().data
        position = place.offset + start * place.dtype.itemsize
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._open(place.shard).fileno(), [view[done:]], position + done)
            except OSError as error:
                raise DamagedRun(
                    f"{self._shards[place.shard]} cannot be read ({error.strerror}); restore it or trace the run again"
                ) from None
            if got == 0:
                raise DamagedRun(f"{self._shards[place.shard]} ends inside tensor {name!r}; write the file again")
            done += got
        return out

    def read(self, name: str) -> torch.Tensor:
        """Read one whole tensor, shape and dtype as stored.

        Args:
            name: the tensor's name.

        Returns:
            A new CPU tensor.
        """
        place = self._place(name)
        return self.read_into(name, 0, torch.empty(place.numel, dtype=place.dtype)).reshape(place.shape)

    def read_all(self) -> dict[str, torch.Tensor]:
        """Read every tensor into memory, keyed by name."""
        return {name: self.read(name) for name in self.names}

    def close(self) -> None:
        """Close the file handles; a later read opens them again."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _place(self, name: str) -> TensorPlace:
        if name not in self.places:
            raise DamagedRun(f"{self.path} has no tensor {name!r}; restore it or trace the run again")
        return self.places[name]

    def _open(self, shard: int) -> BinaryIO:
        with self._opening:
            if shard not in self._handles:
                self._handles[shard] = open(self._shards[shard], "rb")  # noqa: SIM115 - closed by `close`
            return self._handles[shard]


def shard_paths(path: Path) -> list[Path]:
    """List the files that hold the tensors of `path`: itself, or the shards that its index names.

    Args:
        path: a `.safetensors` file or a `.safetensors.index.json`.

    Returns:
        The files, in the order of their names.

    Raises:
        DamagedRun: the index cannot be read or names a file outside its own folder.
    """  # noqa: DOC502 - raised by _shards_of
    return _shards_of(path)[0]


def _shards_of(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the tensors of `path`, and tensor -> file name as an index says (nothing without one)."""
    if not path.name.endswith(".index.json"):
        return [path], {}
    try:
        promised = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"].items())
        shards = sorted(set(promised.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRun(f"{path} is no index of a sharded safetensors file ({error}); write it again") from None
    if not shards:
        raise DamagedRun(f"{path} names no shards; write the index again")
    if not all(isinstance(name, str) and Path(name).name == name != ".." for name in shards):
        raise DamagedRun(f"{path} names a file outside its own folder; write the index again")
    return [path.parent / name for name in shards], promised


def _read_header(path: Path, shard: int) -> dict[str, TensorPlace]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            table: Any = json.loads(handle.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
        places = {
            name: _place_of(name, entry, shard, 8 + length) for name, entry in table.items() if name != "__metadata__"
        }
        # The format asks that the tensors fill the file: without gaps, overlaps or a rest.
        position = 8 + length
        for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if place.offset != position:
                raise ValueError(f"the bytes of tensor {name!r} do not follow those before it")
            position += place.nbytes
        if position != size:
            raise ValueError(f"its tensors take {position:,} bytes and it has {size:,}")
        return places
    except FileNotFoundError:
        raise DamagedRun(f"{path} is missing; restore it or trace the run again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRun(
            f"{path} is not a whole safetensors file: {error}; restore it or trace the run again"
        ) from None


def _place_of(name: str, entry: Any, shard: int, start: int) -> TensorPlace:
    """Read one line of the header, trusting nothing in it."""
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"tensor {name!r} is of dtype {kind}, which is not read here")
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in [*shape, begin, end]):
        raise ValueError(f"tensor {name!r} has a size or a position that is no number of elements or bytes")
    place = TensorPlace(shard, start + begin, tuple(shape), DTYPES[kind])
    if end - begin != place.nbytes:
        raise ValueError(f"tensor {name!r} has a shape that does not fit its bytes")
    return place


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different (Python alone would keep the last of each)."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return table


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors to a safetensors file, or to shards and an index when they are larger than one shard.

    Each file is written under a temporary name, flushed to the disk and renamed, so whoever looks sees a whole file
    or none. Files get the usual mode of the process (the library alone would write 0600).

    Args:
        tensors: name -> tensor; tensors on other devices are copied to the CPU, shared memory is written twice.
        path: the `.safetensors` file to make; its folder must exist.
        max_shard_bytes: largest number of tensor bytes in one file.
        metadata: words for the header of each file.

    Returns:
        The path that opens the tensors: `path`, or the index beside it when there are shards.

    Raises:
        DiskFull: there is no room; nothing is left behind under the final name.
    """  # noqa: DOC502 - raised by write_atomically
    return _written(tensors, path, max_shard_bytes, metadata, _unread)[0]


def write_checked_tensors(
    tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[Path, dict[Path, str]]:
    """Write tensors as `write_tensors` does, and take the checksums of the files while the disk is flushed.

    Args:
        tensors: name -> tensor.
        path: the `.safetensors` file to make.
        max_shard_bytes: largest number of tensor bytes in one file.

    Returns:
        The path that opens the tensors, and file -> sha256 of every file written.

    Raises:
        DiskFull: there is no room; nothing is left behind under the final name.
    """  # noqa: DOC502 - raised by write_atomically
    return _written(tensors, path, max_shard_bytes, None, sha256_of)


def _unread(path: Path) -> str:
    return ""


def _written(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None,
    checksum: Callable[[Path], str],
) -> tuple[Path, dict[Path, str]]:
    path = Path(path)
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        return path, {path: write_atomically(path, partial(_save, shards[0], metadata), checksum)}
    stem = path.name.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    checksums: dict[Path, str] = {}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index_path = path.parent / f"{path.name}.index.json"
    try:
        for number, shard in enumerate(shards, start=1):
            name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map.update(dict.fromkeys(shard, name))
            place = path.parent / name
            checksums[place] = write_atomically(place, partial(_save, shard, metadata), checksum)
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
        checksums[index_path] = write_atomically(
            index_path, lambda temporary: temporary.write_text(index, encoding="utf-8"), checksum
        )
    except BaseException:
        if not index_path.exists():  # shards without an index are of no use, and may fill the disk
            for name in set(weight_map.values()):
                (path.parent / name).unlink(missing_ok=True)
        raise
    return index_path, checksums


def _save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None, path: Path) -> None:
    save_file(_detached(tensors), path, None if metadata is None else dict(metadata))


def _split(tensors: Mapping[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    return shards


def _detached(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors, no two of which share memory (the format does not allow it)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if pointer in seen else plain
        seen.add(pointer)
    return result


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A float64 numpy copy of a tensor of any floating dtype (numpy has no bfloat16).

    Args:
        tensor: any tensor.

    Returns:
        A float64 array of the same shape.
    """
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy())
