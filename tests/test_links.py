"""Links of the documents: files and headings exist, addresses elsewhere have the form of one; the same in the site."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ADDRESS = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w.~%+@=&?/#-]*)?$")
ARXIV = re.compile(r"https://arxiv\.org/abs/\d{4}\.\d{5}$")


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give to a heading."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", words))


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings, and what the reference is made of."""
    text = text_of(page)
    return {slug(heading) for heading in HEADING.findall(text)} | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere, or have not the form of an address."""
    found = []
    for link in LINK.findall(text_of(page)):
        if urlsplit(link).scheme:
            if not ADDRESS.match(link) or (link.startswith("https://arxiv.org/abs") and not ARXIV.match(link)):
                found.append(link)
            continue
        place, anchor = urldefrag(link)
        target = page if not place else (page.parent / unquote(place)).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken(ROOT / page) == []


def test_every_page_is_in_the_navigation_and_linked_from_the_first() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {str(path.relative_to(ROOT / "docs").with_suffix(".md")) for path in (ROOT / "docs").rglob("*.ipynb")}
    assert sorted(listed) == sorted(pages | notebooks)
    first = {urldefrag(link)[0].replace(".ipynb", ".md") for link in LINK.findall(text_of(ROOT / "docs/index.md"))}
    assert set(listed) - first == {"index.md"}


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Other\n\n## How *often* `it` is right, in 2^k\n")
    page.write_text(
        "# A page\n[a](#a-page) [b](other.md#how-often-it-is-right-in-2k) [c](https://arxiv.org/abs/2508.16082)\n"
        "[d](#nowhere) [e](other.md#there) ![f](missing.png) [g](http://example.org) [h](https://arxiv.org/abs/25.1)\n"
        "```python\nx = y[0](no.md)\n```\n"
    )
    assert broken(page) == [
        "#nowhere",
        "other.md#there",
        "missing.png",
        "http://example.org",
        "https://arxiv.org/abs/25.1",
    ]


def references(page: Path) -> list[tuple[str, str]]:
    """Attribute and target of everything that a page of the site refers to."""
    text = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [(name, html.unescape(target)) for name, target in re.findall(r'\b(href|src)="([^"]*)"', text)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_is_whole_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    for name in ("material", "mkdocstrings", "nbconvert", "latex2mathml"):
        pytest.importorskip(name, reason="the site is built with the extra `docs`: run `make docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    identifiers = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in pages}
    missing = []
    for page in pages:
        for name, reference in references(page):
            place, anchor = urldefrag(reference)
            if urlsplit(reference).scheme:
                assert name == "href"  # nothing that a browser fetches by itself
                continue
            at = tmp_path if place.startswith("/") else page.parent
            target = page if not place else (at / unquote(place).lstrip("/")).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and anchor not in identifiers.get(target, {anchor})):
                missing.append(f"{page.relative_to(tmp_path)}: {reference}")
        assert not re.search(r"<link[^>]+href=\"https?://(?!.*canonical)", page.read_text(encoding="utf-8"))
    assert missing == []
    formulas = (tmp_path / "concepts/second-order/index.html").read_text(encoding="utf-8")
    assert formulas.count("<math ") > 40
    assert "arithmatex" not in formulas
    assert [page for page in pages if "```" in page.read_text(encoding="utf-8")] == []  # a fence that is none
    notebook = (tmp_path / "how-to/bounds/index.html").read_text(encoding="utf-8")
    assert "rows hold" in notebook
    assert (tmp_path / "search/search_index.json").read_text(encoding="utf-8").count('"location"') > 200
