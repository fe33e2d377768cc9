"""Fuzzes every reader and the command line: `python -m tests.fuzz SECONDS [READER ...]`.

Readers take turns, round after round, so that each has its share whenever the program is stopped. A turn of a reader
that is slow is longer, by the cube root of what its inputs take: with equal times it would get hundreds of times
fewer inputs, with equal numbers it would take all the time. Half of a turn is guided by coverage where the package
atheris is installed. What is found is written to tests/fuzz/corpus, where
`test_corpus.py` tries it for ever after; exit code 1 where there is any.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import mmap
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.readers import Readers

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
MOST = 500_000  # kilobytes of memory beside the input
TURN = 20  # seconds, about
GUIDED = importlib.util.find_spec("atheris") is not None


def keep(name: str, content: bytes, words: str) -> None:
    """Write down an input that was not read as it should be."""
    digest = hashlib.sha256(content).hexdigest()[:12]
    path = CORPUS / name.replace(" ", "_") / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"FOUND {name} {digest}: {words[:500]}", file=sys.stderr, flush=True)


def known(name: str) -> list[bytes]:
    place = CORPUS / name.replace(" ", "_")
    return [path.read_bytes() for path in sorted(place.glob("*"))] if place.is_dir() else []


class Turns:
    """Gives readers their turns, each in a fork of this process, which may die of what it reads."""

    def __init__(self, readers: Readers, folder: Path) -> None:
        self.readers = readers
        self.last = folder / "last"
        self.tried = mmap.mmap(-1, 8)
        readers.warm("report")
        self.limit = readers.limit

    def weight(self, name: str) -> float:
        """How long a reader's turns are, in proportion to those of others."""
        self.readers.warm(name)
        before = time.process_time()
        for content in self.readers.targets[name][1]:
            self.readers.read(name, content, 600)
        return ((time.process_time() - before) / len(self.readers.targets[name][1])) ** (1 / 3)

    def once(self, name: str, content: bytes) -> None:
        """Let a reader have one input."""
        from tests.fuzz.readers import Finding

        self.last.write_bytes(content)
        self.tried[:] = (int.from_bytes(self.tried, "little") + 1).to_bytes(8, "little")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            self.readers.read(name, content)
        except Finding as error:
            keep(name, content, str(error))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > MOST + len(content) // 1024:
            keep(name, content, f"it took {grown:,} kB")

    def mutating(self, name: str, seconds: float, seed: int) -> None:
        """Read changed inputs for a time."""
        from tests.fuzz.mutations import mutated

        chance, first = random.Random(f"{name} {seed}"), [*self.readers.targets[name][1], *known(name)]
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            self.once(name, mutated(chance.choice(first), chance))

    def guided(self, name: str, seconds: float, seed: int) -> None:
        """Let libFuzzer choose inputs by the lines that they reach; what it found useful is there in the next turn."""
        import atheris

        inputs = self.last.parent / "inputs" / name.replace(" ", "_")
        inputs.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate([*self.readers.targets[name][1], *known(name)]):
            (inputs / str(number)).write_bytes(content)
        words = ["tvgrad", str(inputs), f"-max_total_time={max(1, int(seconds))}", f"-seed={seed % 2**31}"]
        more = [
            "-verbosity=0",
            "-report_slow_units=100000",
            "-max_len=65536",
            "-rss_limit_mb=0",
            "-handle_alrm=0",
            "-timeout=100000",
        ]
        atheris.Setup([*words, *more], lambda content: self.once(name, content))
        atheris.Fuzz()

    def turn(self, work: Callable[[str, float, int], None], name: str, seconds: float, seed: int) -> int:
        """Give a reader a turn; how many inputs it had."""
        self.tried[:] = bytes(8)
        self.readers.limit = self.limit
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            work(name, seconds, seed)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            keep(name, self.last.read_bytes(), f"the reader's process ended with {status} (seed {seed})")
        return int.from_bytes(self.tried, "little")


def serve_guided() -> None:
    """Give the turns that are asked for on standard input, with all of tvgrad instrumented."""
    import atheris

    with atheris.instrument_imports(include=["tvgrad"]):
        from tests.fuzz.readers import made
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(made(Path(folder)), Path(folder))
        while line := sys.stdin.readline():
            name, seconds, seed = line.rstrip("\n").split("\t")
            print(turns.turn(turns.guided, name, float(seconds), int(seed)), flush=True)


class Server:
    """The process that gives guided turns."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.fuzz", "guided"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def turn(self, name: str, seconds: float, seed: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\t{seconds}\t{seed}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main(seconds: float, chosen: list[str]) -> int:
    """Fuzz for a time; whether anything was found."""
    from tests.fuzz.readers import made

    before = {path for path in CORPUS.rglob("*") if path.is_file()}
    tried: collections.Counter[str] = collections.Counter()
    guided: collections.Counter[str] = collections.Counter()
    seed = int(time.time())
    with tempfile.TemporaryDirectory() as folder:
        server = Server() if GUIDED else None
        turns = Turns(made(Path(folder)), Path(folder))
        names = chosen or list(turns.readers.targets)
        weights = {name: turns.weight(name) for name in names}
        spent = dict.fromkeys(names, 0.0)
        begun = time.monotonic()
        rounds = max(1, round(seconds / (len(names) * TURN)))
        for number in range(rounds):
            for place, name in enumerate(names):
                # of what is left: a turn that took longer than it should takes from all that follow
                left = (rounds - number - 1) * sum(weights.values()) + sum(weights[one] for one in names[place:])
                share = max(0.0, seconds - (time.monotonic() - begun)) * weights[name] / left
                if server is not None:
                    guided[name] += server.turn(name, share / 2, seed + number)
                begins, had = time.monotonic(), tried[name]
                tried[name] += turns.turn(turns.mutating, name, share / 2 if server else share, seed + number)
                spent[name] += time.monotonic() - begins
                if tried[name] > had:  # what changed inputs take is known better with every turn
                    weights[name] = (spent[name] / tried[name]) ** (1 / 3)
            counts = ", ".join(f"{name} {tried[name]}+{guided[name]}" for name in names)
            print(f"round {number + 1} of {rounds}, {time.monotonic() - begun:.0f} s: {counts}", flush=True)
        if server is not None:
            server.close()
    found = {path for path in CORPUS.rglob("*") if path.is_file()} - before
    print(f"{len(found)} findings in {time.monotonic() - begun:.0f} s, {sum(tried.values())} changed inputs", end=" ")
    print(f"and {sum(guided.values())} guided ones over {len(names)} readers, seed {seed}")
    return int(bool(found))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "guided":
        serve_guided()
    else:
        sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
