"""Cost: what a command will take of the user's time, memory and disk, told before it starts."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from tvgrad.system import peak_bytes
from tvgrad.wording import bytes_in_words, printable

STARTED = 400_000_000
"""Bytes of a process that has imported torch and done nothing: where the system does not tell what it holds."""

HASHED = 1 << 24


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    Attributes:
        what: the piece of work: a task's or run's name.
        seconds: of the clock, an estimate from what a part of the work took just now.
        memory: bytes of the process at its peak, an estimate by a law of `docs/reference/cost.md`.
        disk: bytes of the tensor files that are made: exact.
        beside: what else is written, in words; empty where nothing is.
    """

    what: str
    seconds: float
    memory: int
    disk: int
    beside: str = ""

    @property
    def sentence(self) -> str:
        """The cost in one sentence."""
        disk = f"{self.disk:,} bytes of tensor files (exact)" if self.disk else "no tensor files"
        return (
            f"{printable(self.what)}: about {self.seconds:.2g} s, about {bytes_in_words(self.memory)} of memory at the "
            f"peak, {disk}" + (f", beside them {self.beside}" if self.beside else "")
        )


def held_bytes() -> int:
    """The largest memory of this process so far, or what a process takes at the least where that is not told."""
    return max(peak_bytes(), STARTED if peak_bytes() == 0 else 0)


def seconds_to_hash(size: int) -> float:
    """Time that checksums take.

    Args:
        size: bytes.

    Returns:
        Seconds of one processor, from hashing 16 MiB now.
    """
    block = bytes(HASHED)
    begin = time.perf_counter()
    hashlib.sha256(block).hexdigest()
    return (time.perf_counter() - begin) * size / HASHED
