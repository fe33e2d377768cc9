"""Help, version and exit codes of every command."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from tvgrad.cli import main as main_module
from tvgrad.cli.main import COMMANDS, group

import tvgrad as package
from tvgrad.errors import CheckFailed, DamagedRun, TvgradError

Tvgrad = Callable[..., Any]


def examples(text: str) -> list[str]:
    assert "Examples:\n" in text
    lines = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
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


def test_no_command_shows_the_help(tvgrad: Tvgrad) -> None:
    outcome = tvgrad()
    assert outcome.code == 2
    assert "Usage: tvgrad" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TvgradError("it is wrong: do it right"), 2, "Error: it is wrong: do it right\n"),
        (DamagedRun("it is damaged"), 2, "Error: it is damaged\n"),
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
