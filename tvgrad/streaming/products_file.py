"""The file in which products are kept: regular, of a bounded size, with a checksum, and the user's own.

`FORMAT`, 64 hexadecimal digits and a line break: the sha256 of all that follows. Then eight bytes of length, a JSON
description of that length, and little-endian float64 numbers. It is never unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.fields import parse_json
from tvgrad.files.atomic import write_atomically
from tvgrad.files.checksums import State
from tvgrad.files.regular import read_bounded
from tvgrad.streaming.accumulate import Matrix
from tvgrad.system import is_the_users

FORMAT = b"tvgrad products 1\n"
START = len(FORMAT) + 65
MOST_BYTES = 64 << 20
MOST_IN_FOLDER = 512 << 20

Names: TypeAlias = tuple[str, str]
"""Two vectors, each named by the checksums of the files that it is made of."""

KINDS = {"pairs": ("products",), "projections": ("weights", "coefficients", "squares"), "signs": ("equal", "nonzero")}
"""What is kept of each kind of pair."""


@dataclass(frozen=True)
class Columns:
    """What is kept of one kind: for each pair of vectors a column of numbers, a row for each group."""

    names: list[Names]
    arrays: list[Matrix]  # groups x columns each

    @cached_property
    def place(self) -> dict[Names, int]:
        """Pair -> its column."""
        return {pair: column for column, pair in enumerate(self.names)}

    def of(self, names: Sequence[Names]) -> Columns:
        """Choose columns.

        Args:
            names: pairs that are there.

        Returns:
            Their columns, in this order.
        """
        chosen = [self.place[name] for name in names]
        return Columns(list(names), [array[:, chosen] for array in self.arrays])

    def joined(self, other: Columns) -> Columns:
        """Add columns.

        Args:
            other: columns of the same kind and groups.

        Returns:
            These columns, and those of the other that are not among them.
        """
        more = other.of([name for name in other.names if name not in self.place])
        arrays = [np.hstack([mine, theirs]) for mine, theirs in zip(self.arrays, more.arrays, strict=True)]
        return Columns(self.names + more.names, arrays)


@dataclass(frozen=True)
class Products:
    """The content of a file.

    Attributes:
        columns: of each kind of `KINDS`, in its order.
        states: sha256 -> the files that were found to hold it.
    """

    columns: tuple[Columns, Columns, Columns]
    states: dict[str, list[State]]

    def joined(self, other: Products) -> Products:
        """Add what another has, but for what is known of its files.

        Args:
            other: products of the same groups.

        Returns:
            All columns.
        """
        one, two, three = (mine.joined(theirs) for mine, theirs in zip(self.columns, other.columns, strict=True))
        return Products((one, two, three), self.states)


def read_products(path: Path, layout: str, groups: list[str]) -> Products | None:
    """Read a file.

    Args:
        path: it.
        layout: checksum of all that its numbers depend on beside the files.
        groups: the groups.

    Returns:
        What it holds; None where it is not there, or not to be believed.
    """
    try:
        if not (is_the_users(path.parent) and is_the_users(path)):
            return None
        content = read_bounded(path, path.parent, MOST_BYTES)
        body = content[START:]
        if content[:START] != FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n":
            return None
        length = int.from_bytes(body[:8], "little")
        about: Any = parse_json(body[8 : 8 + length].decode())
        if about["layout"] != layout or about["groups"] != groups:
            return None
        numbers = np.frombuffer(body[8 + length :], "<f8")
        names, columns = about["vectors"], []
        for kind, kinds in KINDS.items():
            pairs = [(str(names[left]), str(names[right])) for left, right in about[kind]]
            size = len(groups) * len(pairs)
            arrays = [numbers[size * k : size * (k + 1)].reshape(len(groups), len(pairs)) for k in range(len(kinds))]
            numbers = numbers[size * len(kinds) :]
            columns.append(Columns(pairs, arrays))
        states = {str(digest): [_state(one) for one in found] for digest, found in about["states"].items()}
        one, two, three = columns
        return Products((one, two, three), states) if numbers.size == 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _state(content: Any) -> State:
    device, inode, changed, altered, size = (int(number) for number in content)
    return device, inode, changed, altered, size


def write_products(path: Path, layout: str, groups: list[str], kept: Products) -> bool:
    """Write a file, where its folder is there to be written.

    Args:
        path: it.
        layout: as for `read_products`.
        groups: as for `read_products`.
        kept: what to write.

    Returns:
        Whether it is not too large.
    """
    body = _body(layout, groups, kept)
    if len(body) > MOST_BYTES - START:
        return False
    content = FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with contextlib.suppress(OSError, TvgradError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_the_users(path.parent):
            write_atomically(path, lambda temporary: temporary.write_bytes(content))
            path.chmod(0o600)
            _make_room(path)
    return True


def _body(layout: str, groups: list[str], kept: Products) -> bytes:
    names = sorted({name for columns in kept.columns for pair in columns.names for name in pair})
    number = {name: place for place, name in enumerate(names)}
    about = {
        "layout": layout,
        "groups": groups,
        "vectors": names,
        "states": kept.states,
        **{
            kind: [[number[left], number[right]] for left, right in columns.names]
            for kind, columns in zip(KINDS, kept.columns, strict=True)
        },
    }
    header = json.dumps(about, separators=(",", ":")).encode()
    numbers = [array.astype("<f8").tobytes() for columns in kept.columns for array in columns.arrays]
    return len(header).to_bytes(8, "little") + header + b"".join(numbers)


def _make_room(newest: Path) -> None:
    """Remove the oldest files beyond what the folder may hold."""
    files = sorted(
        (one.stat().st_mtime_ns, one.stat().st_size, one) for one in newest.parent.iterdir() if one != newest
    )
    total = sum(size for _, size, _ in files) + newest.stat().st_size
    for _, size, path in files:
        if total <= MOST_IN_FOLDER:
            return
        path.unlink()
        total -= size
