"""Fuzzes every reader and the command line: `python -m tests.fuzz SECONDS [READER ...]`.

Each reader has its share of the time, half of it guided by coverage where the package atheris is installed. What is
found is written to tests/fuzz/corpus, where `test_corpus.py` tries it for ever after; exit code 1 where there is any.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
MOST = 500_000  # kilobytes of memory beside the input
GUIDED = importlib.util.find_spec("atheris") is not None


def keep(name: str, content: bytes, words: str) -> None:
    """Write down an input that was not read as it should be."""
    digest = hashlib.sha256(content).hexdigest()[:12]
    path = CORPUS / name.replace(" ", "_") / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"FOUND {name} {digest}: {words[:500]}", flush=True)


def known(name: str) -> list[bytes]:
    place = CORPUS / name.replace(" ", "_")
    return [path.read_bytes() for path in sorted(place.glob("*"))] if place.is_dir() else []


def mutating(name: str, seconds: float, seed: int) -> int:
    """Read changed inputs for a time; how many."""
    from tests.fuzz.mutations import mutated
    from tests.fuzz.readers import Finding, made

    chance, tried = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        readers = made(Path(folder))
        first = [*readers.targets[name][1], *known(name)]
        readers.warm(name)
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            content = mutated(chance.choice(first), chance)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                readers.read(name, content)
            except Finding as error:
                keep(name, content, str(error))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > MOST + len(content) // 1024:
                keep(name, content, f"it took {grown:,} kB")
            tried += 1
    return tried


def guided(name: str, seconds: float, seed: int) -> int:
    """Let libFuzzer choose inputs by the lines that they reach; how many."""
    import atheris

    tried = 0
    with atheris.instrument_imports(include=["tvgrad"]):
        from tests.fuzz.readers import Finding, made
    place = tempfile.mkdtemp()
    readers = made(Path(place))
    inputs = Path(place) / "inputs"
    inputs.mkdir()
    for number, content in enumerate([*readers.targets[name][1], *known(name)]):
        (inputs / str(number)).write_bytes(content)
    readers.warm(name)

    def once(content: bytes) -> None:
        nonlocal tried
        tried += 1
        try:
            readers.read(name, content)
        except Finding as error:
            keep(name, content, str(error))

    words = [sys.argv[0], str(inputs), f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", "-verbosity=0"]
    atheris.Setup([*words, "-max_len=65536", "-rss_limit_mb=0", "-handle_alrm=0"], once)
    import atexit

    atexit.register(lambda: print(f"{name}, guided: {tried} inputs", flush=True))
    atheris.Fuzz()
    return tried


def separately(work: str, name: str, seconds: float, seed: int) -> None:
    """In a process of its own, which may die of what it reads."""
    pid = os.fork()
    if pid == 0:
        tried = {"mutating": mutating, "guided": guided}[work](name, seconds, seed)
        print(f"{name}: {tried} inputs", flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        keep(name, b"", f"the reader's process died of signal {-status} ({work}, seed {seed})")


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    seconds, chosen = float(sys.argv[1]), sys.argv[2:]
    before = {path for path in CORPUS.rglob("*") if path.is_file()}
    with tempfile.TemporaryDirectory() as folder:
        from tests.fuzz.readers import made

        readers = made(Path(folder))
        names = chosen or list(readers.targets)
        readers.warm(names[0])  # the forks have imported what all need
    seed = int(time.time())
    share = seconds / len(names)
    for name in names:
        separately("mutating", name, share / 2 if GUIDED else share, seed)
        if GUIDED:
            os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, "guided", name, str(share / 2), str(seed)])
    found = {path for path in CORPUS.rglob("*") if path.is_file()} - before
    print(f"{len(found)} findings in {seconds:.0f} s over {len(names)} readers, seed {seed}")
    return int(bool(found))


if __name__ == "__main__":
    if sys.argv[1] == "guided":
        sys.path.insert(0, str(ROOT))
        guided(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main())
