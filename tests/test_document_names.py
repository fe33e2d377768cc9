"""Names that the README and the documents mention: modules can be imported, files exist, links lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.test_public_names import FLOORS

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.[mi]*[db]"))]
NAME = re.compile(r"\btvgrad(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w/.-])(?:tvgrad|cli|analyses|tests)/[\w/.-]*[\w/]")
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
ENTRY = re.compile(r"^- \*\*(.+?)\*\*(.+?)(?=^- \*\*|\Z)", re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or what a module holds."""
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    for part in rest:
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(f"{found.__name__}.{part}")
        except (ImportError, AttributeError):
            return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_exist(document: str) -> None:
    assert [name for name in sorted(set(NAME.findall(text_of(document)))) if not exists(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_exist(document: str) -> None:
    assert [name for name in sorted(set(FILE.findall(text_of(document)))) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    assert [link for link in LINK.findall(text_of(document)) if not (folder / link).exists()] == []


def test_what_does_not_exist_is_noticed() -> None:
    assert exists("tvgrad.merging.ties")
    assert exists("tvgrad.store.run.Run.open")
    assert not exists("tvgrad.store.runs")
    assert not exists("tvgrad.store.run.Run.close_all")
    assert FILE.findall("see `tvgrad/nowhere.py`, tests/theory/.") == ["tvgrad/nowhere.py", "tests/theory/"]


def test_the_glossary_is_sorted_and_says_where_each_thing_is() -> None:
    entries = ENTRY.findall(text_of("docs/glossary.md"))
    words = [word.lower() for word, _ in entries]
    assert len(words) > 40
    assert words == sorted(set(words))
    assert [word for word, what in entries if not FILE.search(what)] == []


def test_the_architecture_page_has_every_room_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", text_of("docs/architecture.md"), re.MULTILINE)
    told = {room: int(floor) for floor, rooms in rows for room in re.findall(r"`(.+?)`", rooms)}
    places = {"cli": "cli/", "analyses": "analyses/"}
    for path in (ROOT / "tvgrad").iterdir():
        places.setdefault(path.stem, f"tvgrad/{path.name}" + ("/" if path.is_dir() else ""))
    assert told == {places[room]: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms.split()}
