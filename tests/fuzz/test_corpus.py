"""What fuzzing has found is read as it should be, and so are changed inputs of every reader, the same each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.mutations import mutated
from tests.fuzz.readers import Readers, made
from tvgrad.store import ledger

CORPUS = Path(__file__).with_name("corpus")
FOUND = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*") if path.is_file())
NAMES = ["run.json", "weights", "gradients", "batches", "buffers", "steps", "sketches", "parts", "index of parts"]
NAMES += [
    "state",
    "state tensors",
    "report",
    "results",
    "journal",
    "tensors",
    "index",
    "torch.save",
    "adapter",
    "words",
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    whole = ledger.WHOLE
    found = made(tmp_path_factory.mktemp("readers"))
    ledger.WHOLE = whole
    return found


def test_every_reader_takes_its_good_inputs(readers: Readers) -> None:
    assert list(readers.targets) == NAMES
    for name in NAMES:
        readers.warm(name)


@pytest.mark.parametrize("path", FOUND)
def test_what_was_found_stays_mended(readers: Readers, path: str) -> None:
    readers.read(path.partition("/")[0].replace("_", " "), (CORPUS / path).read_bytes())


FAST = ["state", "sketches", "index of parts", "journal", "tensors", "index", "torch.save", "adapter"]


@pytest.mark.parametrize("name", FAST)
def test_changed_inputs(readers: Readers, name: str) -> None:
    chance = random.Random(name)
    for _ in range(2):
        readers.read(name, mutated(chance.choice(readers.targets[name][1]), chance))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_inputs(readers: Readers, name: str) -> None:
    chance = random.Random(name)
    for _ in range(30 if name == "report" else 300):
        readers.read(name, mutated(chance.choice(readers.targets[name][1]), chance))
