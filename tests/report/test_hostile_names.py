"""Names of a stranger: they stand in every output as they are, and start nothing there."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

import tvgrad
from tvgrad import Recorder, Run
from tvgrad.report.documents import FORMATS
from tvgrad.report.figures import captioned_figures
from tvgrad.report.latex import latex_table
from tvgrad.wording import printable, shortened

NAMES = ["mnist[small]", "[/x]", "[bold]b", "$a", "$a$b_{", r"\frac{", "*x*", "<b>", "a|b", "=cmd|' /C calc'!A0", "_x"]
ESCAPE = "\x1b[31mred\n\u202e"


def table(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"run": list(names), "epoch": 1, "group": "all", "gradient_norm": 1.5, "task_vector_norm": 2.0})


def test_names_are_printable_and_on_one_line() -> None:
    assert printable("é 名 😀 [x]") == "é 名 😀 [x]"
    assert printable(ESCAPE) == r"\x1b[31mred\n\u202e"


def test_long_names_stay_different() -> None:
    names = ["x" * 3000, "x" * 2999 + "y", "x" * 1500 + "z" + "x" * 1499, "short"]
    shown = shortened(names, 60)
    assert len(set(shown.values())) == 4
    assert max(map(len, shown.values())) <= 64
    assert shown["short"] == "short"


def test_the_terminal_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from tvgrad.cli.terminal import print_table

    print_table("[/title]", table(*NAMES, ESCAPE))
    shown = capsys.readouterr().out
    assert "[/title]" in shown
    assert all(name in shown for name in NAMES)
    assert "\x1b[31m" not in shown
    assert r"\x1b[31mred\n" in shown


def test_a_progress_bar_takes_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from tvgrad.cli import terminal

    stream = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda **_: Console(file=stream, force_terminal=True, width=120))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with terminal.percent_bar("[/x]") as update:
        update(1, 2)
    assert "[/x]" in stream.getvalue()


def test_csv_starts_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](table("=1+1", "+1", "-1", "@x", "plain"), "norms", ""))))
    assert [row["run"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@x", "plain"]
    assert rows[0]["gradient_norm"] == "1.5"


def test_metrics_csv_starts_no_formula(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", torch.nn.Linear(2, 1)) as recorder:
        recorder.end_epoch({"=cmd": 0.5})
    assert "'=cmd" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert Run.open(tmp_path / "run").points[-1].metrics["=cmd"] == 0.5


def test_markdown_starts_nothing() -> None:
    lines = FORMATS["md"](table(*NAMES, ESCAPE), "norms", "").splitlines()
    assert len(lines) == 2 + len(NAMES) + 1
    cells = [line.split(" | ")[0] for line in lines[2:]]
    assert cells[0] == r"| mnist\[small]"
    assert cells[6] == r"| \*x\*"
    assert cells[7] == r"| \<b>"
    assert cells[8] == r"| a\|b"


def test_latex_rows_take_no_arguments() -> None:
    text = latex_table(table("[x]", "*x", "a[x]", "$a"), "norms")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")][1:]
    assert rows[0].startswith("{}[x] &")
    assert rows[1].startswith("{}*x &")
    assert rows[2].startswith("a[x] &")
    assert rows[3].startswith(r"\$a &")


def test_pictures_show_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    save = Figure.savefig

    def kept(figure: Figure, path: Path, **options: Any) -> None:
        legend = figure.axes[0].get_legend()
        shown.extend(text.get_text() for text in (legend.get_texts() if legend else []))
        save(figure, path, **options)  # a formula that cannot be set raises here

    monkeypatch.setattr(Figure, "savefig", kept)
    long = "y" * 3000
    rows = pd.concat([table(*NAMES, long).assign(epoch=epoch, gradient_norm_share=0.5) for epoch in (0, 1)])
    captioned_figures({"norms": rows}, tmp_path)
    words = [text.replace(r"\$", "$").strip() for text in shown]
    assert set(NAMES) <= set(words)
    assert max(map(len, words)) <= 60


def test_a_run_with_such_names_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recording to all formats, through the command line."""
    model = torch.nn.ModuleDict({"[bold]": torch.nn.Linear(2, 1)})
    root = tmp_path / "[run]"
    with Recorder(root, model, name=ESCAPE + "[/x]$") as recorder:
        for _ in range(2):
            with torch.no_grad():
                model["[bold]"].weight.add_(0.5)
            recorder.end_epoch()
    run = tvgrad.Run.open(root)
    assert run.name == r"\x1b[31mred\n\u202e[/x]$"
    from tvgrad.cli.main import main

    outputs: list[Callable[[], list[str]]] = [
        lambda: ["verify", str(root)],
        lambda: ["report", str(root)],
        lambda: ["report", str(root), "--out", str(tmp_path / "o"), *formats("csv", "md", "json", "latex", "html")],
    ]
    for words in outputs:
        result = CliRunner().invoke(_command(main, words()))
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert r"\x1b[31mred" in result.output or "files in" in result.output
    for path in (tmp_path / "o").iterdir():
        assert path.is_dir() or "\x1b" not in path.read_text()
    assert json.loads((tmp_path / "o" / "norms.json").read_text())[0]["run"] == run.name


def formats(*names: str) -> list[str]:
    return [word for name in names for word in ("--format", name)]


def _command(main: Callable[[list[str]], None], words: list[str]):  # type: ignore[no-untyped-def]
    import click

    return click.Command("tvgrad", callback=lambda: main(words))


def test_pictures_bear_long_names_and_signs_that_no_font_has(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = ["a very long name of a task that goes on and on until nobody reads it any more", "𓀀𓀁", "low", "high"]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    cosines = pd.DataFrame(pairs, columns=["run_a", "run_b"]).assign(epoch=1, group="all", cos_task_vectors=0.5)
    drawn = captioned_figures({"cross_task": cosines}, tmp_path)
    ((path, caption),) = [one for one in drawn if one[0].suffix == ".svg"]
    assert caption.endswith("Signs that no installed font has are shown as boxes.")
    assert [str(one.message) for one in recwarn.list] == []  # nothing about fonts, and the layout did not collapse
    assert all(len(text) <= 30 for text in re.findall(r">([^<>]*name[^<>]*|a very[^<>]*)</text>", path.read_text()))
    ((_, plain), *_) = captioned_figures({"cross_task": cosines.iloc[-1:]}, tmp_path)
    assert "boxes" not in plain
