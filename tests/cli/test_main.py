"""Help, version and exit codes of every command."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tvgrad.cli import main as main_module
from tvgrad.cli.main import COMMANDS, group

import tvgrad as package
from tvgrad.errors import CheckFailed, DamagedRun, TvgradError
from tvgrad.store.run import Run
from tvgrad.wording import printable

Tvgrad = Callable[..., Any]


def examples(text: str) -> list[str]:
    assert "Examples:\n" in text
    block = text.partition("Examples:\n")[2].partition("\n\n")[0]
    lines = block.replace("\\\n", " ").splitlines()  # as a shell reads them
    return [line.strip() for line in lines if line.strip()]


def parse(line: str) -> click.Context:
    """Parse a line as the shell and click would, without running the command."""
    words = shlex.split(line)
    assert words[0] == "tvgrad"
    context = click.Context(group, info_name="tvgrad")
    command = group.get_command(context, words[1])
    assert command is not None, words[1]
    return command.make_context(words[1], words[2:], parent=context)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command_and_its_examples_parse(tvgrad: Tvgrad, option: str) -> None:
    outcome = tvgrad(option)
    assert (outcome.code, outcome.err) == (0, "")
    for name, what in COMMANDS.items():
        assert f"  {name} " in outcome.out
        assert what.split()[0] in outcome.out
    for line in examples(outcome.out):
        parse(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_has_examples_that_parse(tvgrad: Tvgrad, name: str) -> None:
    outcome = tvgrad(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: tvgrad {name} ")
    lines = examples(outcome.out)
    assert lines
    for line in lines:
        assert line.startswith(f"tvgrad {name}")
        parse(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_version(tvgrad: Tvgrad) -> None:
    outcome = tvgrad("--version")
    assert (outcome.code, outcome.out.strip()) == (0, f"tvgrad, version {package.__version__}")


@pytest.mark.parametrize("arguments", [["nonsense"], ["trace"], ["--nonsense"], ["trace", "x", "--nonsense"]])
def test_wrong_usage(refused: Callable[..., str], arguments: list[str]) -> None:
    assert refused(*arguments)


@pytest.mark.parametrize("word", ["\x1b[2J", "two\nlines", "--\x07", "\udcff"])
def test_words_that_are_wrong_move_no_cursor(refused: Callable[..., str], word: str) -> None:
    for arguments in (["bound", "a", word], ["verify", "a", f"--{word}"], [word], ["recipes", word]):
        assert word not in refused(*arguments)
        assert printable(word) in refused(*arguments).replace("\\\\", "\\")


def test_no_command_shows_the_help(tvgrad: Tvgrad) -> None:
    outcome = tvgrad()
    assert outcome.code == 2
    assert "Usage: tvgrad" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TvgradError("it is wrong: do it right"), 2, "Error: it is wrong: do it right\n"),
        (DamagedRun("it is damaged"), 2, "Error: it is damaged\n"),
        (
            TvgradError(f"tensor {'n' * 5_000_000}: do it right"),
            2,
            f"Error: tensor {'n' * 17_993} ... {'n' * 5_987}: do it right\n",
        ),
        (CheckFailed("1 of 2 did not pass"), 1, "Error: 1 of 2 did not pass\n"),
        (KeyboardInterrupt(), 130, "tvgrad: stopped; finished epochs are recorded\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/some/file"),
            2,
            "Error: /some/file cannot be used: Permission denied\n",
        ),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(
    tvgrad: Tvgrad, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing)
    outcome = tvgrad("recipes")
    assert (outcome.code, outcome.err.lstrip("\n"), outcome.out) == (code, words, "")


def test_a_bug_is_not_hidden(tvgrad: Tvgrad, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing)
    with pytest.raises(ZeroDivisionError):
        tvgrad("recipes")


def test_the_installed_command_is_quick_to_help() -> None:
    """Neither help nor version waits for torch."""
    code = (
        "import sys\nfrom tvgrad.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if 'torch' in sys.modules or 'seaborn' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_recipes_are_listed(tvgrad: Tvgrad) -> None:
    import json

    from tvgrad.recipes.catalogue import BUILT_IN

    plain, machine = tvgrad("recipes"), tvgrad("recipes", "--json")
    assert (plain.code, machine.code) == (0, 0)
    assert all(name in plain.out for name in BUILT_IN)
    assert set(json.loads(machine.out)) == set(BUILT_IN)


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tvgrad", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.startswith("tvgrad, version")) == (0, True)


def test_closed_standard_streams_keep_a_command_from_nothing(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has no stream then; every command does what it does, and its exit code is all that it says."""
    out = tmp_path / "run"
    commands: list[tuple[int, list[object]]] = [
        (0, ["recipes"]),
        (0, ["trace", f"{recipes}:recipe", "--epochs", 1, "--out", out]),
        (0, ["verify", out]),
        (0, ["verify", out, "--json"]),
        (0, ["report", out]),
        (2, ["verify", tmp_path / "none"]),
        (2, ["verify", "--no-such-option"]),
    ]
    for code, words in commands:
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, None)
        found = 0
        try:
            main_module.main([str(word) for word in words])
        except SystemExit as error:
            found = 1000 if not isinstance(error.code, int) else error.code
        assert found == code, words
        assert sys.stdout.write("dropped") == 7
    assert Run.open(out).epochs == [0, 1]


def test_a_path_of_any_letters_stands_on_one_line(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> None:
    """A folder of a stranger's runs may be called anything; what is advised can be pasted where it has a space."""
    places = [tmp_path / "a b", tmp_path / "two\nlines\x1b[2J"]
    for place in places:
        done = tvgrad("trace", f"{recipes}:recipe", "--epochs", 1, "--out", place)
        first, following = done.out.splitlines()
        assert ": 2 points, epoch 1: " in first
        assert f"tvgrad verify '{tmp_path}/" in following
        assert "\x1b" not in done.out + done.err
    assert "two\\nlines\\x1b[2J: 2 points" in first
    (places[1] / "weights" / "epoch-0001.safetensors").unlink()
    done = tvgrad("report", *places, "--skip-damaged")
    (said,) = [line for line in done.err.splitlines() if "is left out" in line]
    assert "two\\nlines\\x1b[2J is left out: " in said
    assert "\x1b" not in done.out + done.err
