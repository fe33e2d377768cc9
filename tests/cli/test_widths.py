"""Every command and its help at 80, 120 and 200 columns: no line is wider, no word is cut, and no colour is piped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from safetensors.torch import load_file
from tvgrad.cli.main import COMMANDS, main

WIDTHS = (80, 120, 200)
ELSEWHERE = {"trace", "measure", "demo", "analyse"}
"""Commands that train or start programs for seconds: what they print is made of the tables and sentences tried here."""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with an explanation, in a folder of folders, and the recipe beside them."""
    folder = tmp_path_factory.mktemp("widths")
    (folder / "mine.py").write_text(
        "import torch, tvgrad\n"
        "from torch import nn\n"
        "torch.manual_seed(0)\n"
        "X, Y = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))\n"
        "def recipe():\n"
        "    torch.manual_seed(1)\n"
        "    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()\n"
        "    loss = nn.CrossEntropyLoss()\n"
        "    make = lambda name, scale: tvgrad.Recipe(net, loss, (X * scale, Y), name=name, lr=0.1, epochs=3)\n"
        "    return [make('a-task-with-a-rather-long-name', 1), make('two', 2)]\n"
    )
    for words in (
        ("trace", folder / "mine.py", "--out", folder / "runs" / "here", "--quiet"),
        ("explain", folder / "runs", "--recipe", folder / "mine.py", "--no-bounds"),
    ):
        with contextlib.suppress(SystemExit):
            main(list(map(str, words)))
    return folder


def shown_well(text: str, width: int, what: object) -> None:
    """Nothing is wider than the terminal but a path, which cannot be broken; nothing is cut; nothing is coloured."""
    for line in text.splitlines():
        longest = max(map(cell_len, line.split()), default=0)
        assert cell_len(line) <= width or ("/" in line and longest > width - 20), (what, width, line)
    assert "…" not in text, (what, width)
    assert "\x1b" not in text, (what, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_helps(width: int, monkeypatch: pytest.MonkeyPatch, tvgrad: Run) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in [[], *([name] for name in COMMANDS), ["trace", "--from-checkpoints"]]:
        done = tvgrad(*words, "--help")
        assert done.code == 0
        assert "Examples:" in done.out
        shown_well(done.out, width, words)
    for name in ("trace", "explain"):
        shown_well(tvgrad(name, "--help", "--").out, width, f"{name} of a script")


def commands(folder: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Command -> its words, on two runs where it takes several."""
    recipe, both = folder / "mine.py", folder / "runs"
    one, two = sorted((both / "here").iterdir())
    return {
        "recipes": (),
        "verify": (both,),
        "predict": (recipe,),
        "plan": (recipe,),
        "attribute": (one, "--recipe", recipe),
        "bound": (recipe, "--lr", "0.001", "--epochs", "2"),
        "explain": (one, "--recipe", recipe, "--no-bounds"),
        "report": (both,),
        "relate": (one, two),
        "merge": (both, "--epoch", "1", "--out", out / "merged.safetensors"),
        "export": (one, "--epoch", "1", "--out", out / "exported"),
        "doctor": (),
    }


@pytest.mark.parametrize("width", [80, *(pytest.param(width, marks=pytest.mark.slow) for width in WIDTHS[1:])])
def test_commands(width: int, monkeypatch: pytest.MonkeyPatch, tvgrad: Run, runs: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = commands(runs, tmp_path)
    assert found.keys() == COMMANDS.keys() - ELSEWHERE
    for name, words in found.items():
        done = tvgrad(name, *words)
        assert done.code == 0 or name == "doctor", (name, done.err)
        shown_well(done.out, width, name)
        shown_well(done.err, width, name)
        last = [line for line in done.out.splitlines() if line.strip()][-1]
        assert re.search(r"[a-z0-9]", last), f"{name} ends in a sentence, not in the frame of a table"


@pytest.mark.parametrize("name", ["verify", "report"])
def test_a_folder_of_folders_of_runs(name: str, tvgrad: Run, runs: Path) -> None:
    done = tvgrad(name, runs)
    assert done.code == 0
    assert "two" in done.out
    assert "a-task-with-a-rather-long-name" in done.out


def to_the_end(mine: int) -> bytes:
    """What a terminal shows until the other side has closed: a single read may find a part of it."""
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(mine, 65536):
            said += part
    return said


def in_a_terminal(words: list[object], **environment: str) -> tuple[int, str]:
    """Exit code and both streams of a command in a terminal of 80 columns."""
    mine, command = pty.openpty()
    fcntl.ioctl(command, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    with subprocess.Popen(
        [sys.executable, "-m", "tvgrad", *map(str, words)],
        stdin=command, stdout=command, stderr=command, env=plain | {"TERM": "xterm-256color"} | environment,
    ) as process:  # fmt: skip
        os.close(command)
        said = to_the_end(mine)
    os.close(mine)
    return process.returncode, said.decode().replace("\r\n", "\n")


def test_an_export_ends_in_a_sentence_and_pipes_its_files(tvgrad: Run, runs: Path, tmp_path: Path) -> None:
    one = min((runs / "runs" / "here").iterdir())
    name = "a-task-with-a-rather-long-name"
    done = tvgrad("export", one, "--epoch", "1", "--out", tmp_path / "piped")
    file = tmp_path / "piped" / "model.safetensors"
    assert done.out == f"{file}\n", "a script reads the files"
    tensors = load_file(file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    said = f"{len(tensors)} tensors written ({size} bytes) of {name} after epoch 1"
    assert done.err == f"{file}: {said}\n"
    code, shown = in_a_terminal(["export", one, "--epoch", "1", "--out", tmp_path / "shown"])
    assert code == 0
    assert f"\x1b[32m{len(tensors)} tensors written\x1b[0m" in shown
    assert re.sub(r"\x1b\[\d*m", "", " ".join(shown.split())).endswith(said)


def test_errors_are_red_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, tvgrad: Run, tmp_path: Path) -> None:
    def on_a_terminal(words: list[object]) -> str:
        mine, command = pty.openpty()
        with monkeypatch.context() as patch, open(command, "w", encoding="utf-8") as stream:
            patch.setattr(sys, "stderr", stream)
            assert tvgrad(*words).code == 2
        said = to_the_end(mine).decode()
        os.close(mine)
        return said

    monkeypatch.setenv("TERM", "xterm-256color")
    for words in (["verify", tmp_path / "nothing"], ["verify", "--nothing"]):
        monkeypatch.delenv("NO_COLOR", raising=False)
        done = tvgrad(*words)
        assert done.code == 2
        assert "\x1b" not in done.err
        shown = on_a_terminal(words)
        assert "\x1b[1;31mError:\x1b[0m " in shown
        assert re.sub(r"\x1b\[[\d;]*m", "", "".join(shown.split())) == "".join(done.err.split())
        monkeypatch.setenv("NO_COLOR", "1")
        assert "31m" not in on_a_terminal(words)
