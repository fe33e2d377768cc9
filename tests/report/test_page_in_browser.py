"""The page in a browser: it asks for nothing, tables sort and search, figures follow the pointer, themes differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.traced_runs import Traced
from tvgrad.report.first_screen import first_screen
from tvgrad.report.geometry import epoch_cosines, trajectories
from tvgrad.report.page import html_page
from tvgrad.report.page_figures import page_figures
from tvgrad.report.summary import summary_of
from tvgrad.report.tables import run_tables

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.timeout(120),
]

READY = "document.documentElement.dataset.ready === '1'"


@pytest.fixture(scope="module")
def report(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [traced(task) for task in ("low", "high", "parity", "rotated", "inverted", "permuted")]
    made = run_tables(runs)
    screen = first_screen(made, runs)
    drawn = {**made.tables, "trajectories": trajectories(made.gram), "epoch_cosines": epoch_cosines(made.gram)}
    charts = page_figures(drawn, screen.labels)
    path = tmp_path_factory.mktemp("page") / "report.html"
    said = summary_of(made.tables)
    path.write_text(html_page(made.tables, [], said, "A title", "A lead", screen=screen, charts=charts))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """opened(width, theme) -> the page; what it asks the network for, and its errors, end the test."""
    pages, asked, errors = [], [], []

    def open_page(width: int = 1200, theme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, permissions=["clipboard-read"]
        )
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(report.as_uri())
        page.wait_for_function(READY, timeout=60_000)
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("data:", "blob:", report.as_uri()))] == []


@pytest.mark.parametrize("width", [1600, 1000, 400])
def test_the_page_fits_and_themes_differ(opened: Any, width: int) -> None:
    seen = {}
    for theme in ("light", "dark"):
        page = opened(width, theme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        drawn = page.evaluate("[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg'))")
        assert drawn
        look = "(place, what) => getComputedStyle(document.querySelector(place))[what]"
        seen[theme] = [
            page.evaluate(f"([place, what]) => ({look})(place, what)", pair)
            for pair in (["body", "backgroundColor"], [".plot text", "fill"], [".plot", "filter"])
        ]
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]
    assert seen["light"][2] == seen["dark"][2] == "none", "colours are chosen, not inverted"


def first_column(page: Any) -> list[str]:
    return page.locator("#last tbody tr td:first-child").all_inner_texts()


def test_tables_sort_search_and_copy(opened: Any) -> None:
    page = opened()
    rows = first_column(page)
    page.locator("#last th", has_text="run").first.click()
    assert first_column(page) == sorted(rows)
    page.locator("#last th", has_text="‖τₑ‖").click()
    norms = [float(text) for text in page.locator("#last tbody tr td:nth-child(7)").all_inner_texts()]
    assert norms == sorted(norms)
    page.locator("#last .dt-search input").fill("rotat")
    assert first_column(page) == ["rotated"]
    page.locator("#last .dt-buttons button", has_text="CSV").click()
    heads, row = page.evaluate("navigator.clipboard.readText()").strip().split("\n")
    assert heads.startswith("run,epoch,gradient_holds,deviation,holds,gradient_norm_share,task_vector_norm")
    assert row.startswith("rotated,3,yes,")
    assert len(row.split(",")[6]) > 10, "all digits are copied"
    page.locator("#last .dt-buttons button", has_text="LaTeX").click()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.count("rotated &") == 1
    assert r"\toprule" in text
    assert r"$\lVert \tau_e \rVert$" in text


def test_groups_are_filled_on_demand_and_filtered(opened: Any) -> None:
    page = opened()
    page.locator("#norms > summary").click()
    page.locator("#norms .groups > summary").click()
    table = page.locator("#norms .groups table.data")
    table.locator("tbody tr").nth(5).wait_for()
    assert table.locator("tbody tr").count() == 25
    pages = page.evaluate("[...document.querySelectorAll('nav')].map(one => one.getAttribute('aria-label'))")
    assert "Pages of norms by group" in pages
    assert len(set(pages)) == len(pages), "a screen reader tells them apart"
    page.locator("#norms .groups .dt-search input").fill("encoder.2 low")
    assert {row.split("\t")[0] for row in table.locator("tbody tr").all_inner_texts()} == {"low"}


def test_figures_answer_the_pointer_and_the_legend(opened: Any) -> None:
    page = opened()
    plot = page.locator("#gradient_shares .plot")
    plot.scroll_into_view_if_needed()
    box = plot.locator("svg .mark-line path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert "epoch" in page.locator("#vg-tooltip-element").inner_text()
    shown = "[...document.querySelectorAll('#gradient_shares .mark-line path')].map(one => one.getAttribute('opacity'))"
    assert {value or "1" for value in page.evaluate(shown)} == {"1"}
    plot.locator(".role-legend-label text").first.click()
    page.wait_for_timeout(200)
    values = [value or "1" for value in page.evaluate(shown)]
    assert values.count("1") == 1
    assert len(values) == 6
    before = page.locator("#layers .mark-rect.role-mark").inner_html()
    page.locator("#layers select").select_option("rotated")
    page.wait_for_timeout(200)
    assert page.locator("#layers .mark-rect.role-mark").inner_html() != before


def test_the_keyboard_reaches_what_the_mouse_does(opened: Any) -> None:
    page = opened()
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#norms > summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#norms").get_attribute("open") is not None
    heads = page.locator("#norms th [tabindex='0'], #norms th[tabindex='0']")
    assert heads.count() > 3
    label = (
        "one => (one.getAttribute('aria-label') ? one : one.querySelector('[aria-label]')).getAttribute('aria-label')"
    )
    labels = page.evaluate(f"[...document.querySelectorAll('.plot svg')].map({label})")
    assert all(labels)
    assert page.evaluate("[...document.querySelectorAll('table.data')].every(one => one.getAttribute('aria-label'))")


def test_it_prints_on_few_pages(opened: Any, tmp_path: Path) -> None:
    page = opened(1000, "dark")
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    content = (tmp_path / "page.pdf").read_bytes()
    assert 1 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 6
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_is_small(report: Path) -> None:
    assert report.stat().st_size < 3e6
    specs = report.read_text().split('id="specs">')[1].split("</script>")[0]
    assert "gradient_shares" in json.loads(specs)
