"""The script of interactive figures: bundled once, kept in the cache folder, and there without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import vl_convert

from tvgrad.report.vega import vega_script


@pytest.fixture(autouse=True)
def afresh() -> None:
    vega_script.cache_clear()


def test_the_bundle_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path / "cache"))
    script = vega_script()
    assert "window.vegaEmbed=" in script
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_text(encoding="utf-8") == script
    vega_script.cache_clear()
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda **_: pytest.fail("bundled again"))
    assert vega_script() == script


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet, vl_version: f"of {vl_version}")
    assert vega_script() == "of 6.4"
    vega_script.cache_clear()
