"""Safetensors files, read in blocks without loading them.

Reading goes through the file's own header (eight bytes of length, a JSON table, raw little-endian data), because
streaming blocks into reused buffers is several times faster than one call per tensor and keeps the memory of a pass
constant. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from tvgrad.errors import DamagedRun
from tvgrad.fields import parse_json
from tvgrad.files.checksums import Checksums
from tvgrad.files.regular import open_regular, read_json, reason_of
from tvgrad.system import read_at

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
MAX_DIMENSIONS = 64  # what PyTorch computes with


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


class TensorSource(Protocol):
    """Named tensors that are read in blocks: a safetensors file, or what can be read like one."""

    @property
    def path(self) -> Path:
        """What to call it in messages; two sources of one path are the same."""

    @property
    def places(self) -> Mapping[str, TensorPlace]:
        """Name -> shape and dtype."""

    def read_into(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Read `out.numel()` elements of a flattened tensor from `start` on into a buffer of its dtype.

        Args:
            name: the tensor's name.
            start: index of the first element.
            out: contiguous one-dimensional CPU tensor.

        Returns:
            `out`, filled.
        """


class TensorFile:
    """A safetensors file (or a sharded one, through its index), read lazily.

    The header is checked against the file's size when the object is made, so a truncated file is found before any
    long work starts. File handles are opened at the first read and closed by `close` or the end of a `with` block.
    """

    def __init__(
        self, path: str | os.PathLike[str], under: Path | None = None, checksums: Checksums | None = None
    ) -> None:
        """Read and check the header.

        Args:
            path: a `.safetensors` file or a `.safetensors.index.json` of a sharded one.
            under: a run directory, below which nothing may be a link; None follows links.
            checksums: what the files are expected to hold; the end of a `with` block compares those that were read.

        Raises:
            DamagedRun: the file is missing, truncated, or not in the safetensors format, or the shards do not hold
                what their index says.
        """
        self.path, self._under, self._checksums = Path(path), under, checksums
        self.places: dict[str, TensorPlace] = {}
        self._handles: dict[int, BinaryIO] = {}
        self._opening = threading.Lock()  # several threads may read one file
        self._shards, promised = _shards_of(self.path, under)
        for index, shard in enumerate(self._shards):
            for name, place in _read_header(shard, index, under).items():
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
    def under(self) -> Path | None:
        """The run directory, below which nothing may be a link; None follows links."""
        return self._under

    @property
    def shards(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(self._shards)

    @property
    def digests(self) -> tuple[str, ...] | None:
        """The sha256 that each shard is expected to have; None where nothing is expected of one."""
        found = [None if self._checksums is None else self._checksums.expected(shard) for shard in self._shards]
        known = tuple(digest for digest in found if digest is not None)
        return known if len(known) == len(found) else None

    def attest(self) -> None:
        """Wait until each shard has been compared with its checksum, whether or not anything was read of it.

        Raises:
            DamagedRun: a file does not hold what it was written with.
        """  # noqa: DOC502 - raised by Checksums.require
        if self._checksums is not None:
            for shard in self._shards:
                self._checksums.begin(shard)
            self._checksums.require(self._shards)

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
                got = read_at(self._open(place.shard).fileno(), view[done:], position + done)
            except OSError as error:
                why = reason_of(error)
                raise DamagedRun(
                    f"{self._shards[place.shard]} cannot be read ({why}); {_remedy(self._under)}"
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

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        read = [self._shards[shard] for shard in self._handles]
        self.close()
        if self._checksums is not None and kind is None:
            self._checksums.require(read)

    def _place(self, name: str) -> TensorPlace:
        if name not in self.places:
            raise DamagedRun(f"{self.path} has no tensor {name!r}; {_remedy(self._under)}")
        return self.places[name]

    def _open(self, shard: int) -> BinaryIO:
        with self._opening:
            if shard not in self._handles:
                self._handles[shard] = open_regular(self._shards[shard], self._under)
                if self._checksums is not None:
                    self._checksums.begin(self._shards[shard])
            return self._handles[shard]


def shard_paths(path: Path, under: Path | None = None) -> list[Path]:
    """List the files that hold the tensors of `path`: itself, or the shards that its index names.

    Args:
        path: a `.safetensors` file or a `.safetensors.index.json`.
        under: a run directory, below which nothing may be a link; None follows links.

    Returns:
        The files, in the order of their names.

    Raises:
        DamagedRun: the index cannot be read or names a file outside its own folder.
    """  # noqa: DOC502 - raised by _shards_of
    return _shards_of(path, under)[0]


def _shards_of(path: Path, under: Path | None) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the tensors of `path`, and tensor -> file name as an index says (nothing without one)."""
    if not path.name.endswith(".index.json"):
        return [path], {}
    try:
        promised = dict(read_json(path, under)["weight_map"].items())
        shards = sorted(set(promised.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRun(
            f"{path} is no index of a sharded safetensors file ({reason_of(error)}); write it again"
        ) from None
    if not shards:
        raise DamagedRun(f"{path} names no shards; write the index again")
    if not all(isinstance(name, str) and Path(name).name == name != ".." for name in shards):
        raise DamagedRun(f"{path} names a file outside its own folder; write the index again")
    return [path.parent / name for name in shards], promised


def _read_header(path: Path, shard: int, under: Path | None) -> dict[str, TensorPlace]:
    try:
        with open_regular(path, under) as handle:
            size = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            table: Any = parse_json(handle.read(length).decode("utf-8"), _without_repeats)
        places = {
            name: _place_of(name, entry, shard, start=8 + length)
            for name, entry in table.items()
            if name != "__metadata__"
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
        raise DamagedRun(f"{path} is missing; {_remedy(under)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRun(f"{path} is not a whole safetensors file: {reason_of(error)}; {_remedy(under)}") from None


def _remedy(under: Path | None) -> str:
    """What to do about a damaged file: of a run directory, or of a checkpoint."""
    return "restore it, or fetch the checkpoint again" if under is None else "restore it or trace the run again"


def _place_of(name: str, entry: Any, shard: int, *, start: int) -> TensorPlace:
    """Read one line of the header, trusting nothing in it."""
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"tensor {name!r} is of dtype {kind}, which is not read here")
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in [*shape, begin, end]):
        raise ValueError(f"tensor {name!r} has a size or a position that is no number of elements or bytes")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {len(shape)} dimensions, and at most {MAX_DIMENSIONS} are read")
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
