"""The `tvgrad` command: finds its subcommands, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys

import click
from tvgrad.cli.streams import make_streams_safe, why_output_fails

COMMANDS = {
    "recipes": "List the built-in recipes.",
    "trace": "Fine-tune and record weights and full-batch gradients.",
    "measure": "Measure full-batch gradients of an unchanged script.",
    "verify": "Check a run's files and the exactness of its first epoch.",
    "predict": "Predict task vectors and their second-order error before training.",
    "plan": "Tell how far to go along a merge, before or after training.",
    "bound": "Bound the second-order error rigorously, before training.",
    "explain": "Say, term by term, why task vectors are not exactly the gradient.",
    "attribute": "Say which samples and classes a task vector is made of.",
    "report": "Make tables and figures of runs.",
    "relate": "Compare two runs: cosines, signs, interference.",
    "merge": "Merge the models of several runs into one.",
    "export": "Write a complete checkpoint of a run's epoch.",
    "analyse": "Put one claim to the test on real data, with a table and a figure.",
    "doctor": "Check this installation: versions, kernels, disk, optional packages.",
    "demo": "Trace, verify and report a real multitask example.",
}


MOST_LETTERS = 24_000
"""Letters of the longest sentence that is shown whole: it may quote two names of 10,000."""


class LazyGroup(click.Group):
    """Loads a command's module when the command is used, so that `--help` does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which a newcomer meets them.

        Args:
            ctx: click's context.

        Returns:
            The names.
        """
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command.

        Args:
            ctx: click's context.
            cmd_name: its name.

        Returns:
            The command, or None where there is none of that name.
        """
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"tvgrad.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of a name that is nearly one, say which was meant.

        Args:
            ctx: click's context.
            args: the words of the command line.

        Returns:
            Name, command, and the words after it.

        Raises:
            UsageError: there is no such command.
        """
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            meant = f" Did you mean {near[0]!r}?" if near else f" Choose from {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them.

        Args:
            ctx: click's context.
            formatter: click's formatter.
        """
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tvgrad", prog_name="tvgrad")
def group() -> None:
    """Task vectors and gradients: record a fine-tuning, verify it to the last bit, and report it.

    \b
    Examples:
      tvgrad demo
      tvgrad trace digits --out runs/digits
      tvgrad verify runs/digits
      tvgrad report runs/digits --out report --format csv --format md
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 wrong usage or unreadable input.

    Args:
        arguments: the words after `tvgrad`; by default the process's.
    """
    make_streams_safe()
    code = _done(sys.argv[1:] if arguments is None else arguments)
    failed = why_output_fails()
    if failed is not None and not isinstance(failed, BrokenPipeError) and code == 0:
        _complain(_of_output(failed))
        code = 2
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from tvgrad.cli.launcher_ranks import leave_crew

        leave_crew(code)
    if code:
        sys.exit(code)


def _done(words: list[str]) -> int:
    """Run a command; its exit code."""
    from tvgrad.errors import TvgradError

    try:
        command, prog_name, before, after = _entry(words)
        command.main(args=before, prog_name=prog_name, standalone_mode=False, obj=after)
    except click.ClickException as error:
        _show(error)
        return 2  # click's own codes are 1 for some, which means that a check failed
    except (click.Abort, KeyboardInterrupt):
        click.echo("tvgrad: stopped; finished epochs are recorded", err=True)
        return 130
    except TvgradError as error:
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        return 0
    except OSError as error:
        failed = why_output_fails() if error.filename is None else None
        if failed is None:
            _complain(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")
        else:
            _complain(_of_output(failed))
        return 2
    except MemoryError:
        _complain("the memory of this machine is not enough for that: give smaller files, or a smaller --chunk-size")
        return 2
    return 0


def _of_output(error: OSError) -> str:
    return f"standard output cannot be written ({error.strerror or error}): free some space, or send it elsewhere"


def _complain(sentence: str) -> None:
    """One sentence on the error stream, whatever names of a stranger's it quotes."""
    from tvgrad.cli.terminal import complain

    from tvgrad.wording import printable

    if len(sentence) > MOST_LETTERS:  # a name of a stranger's may have millions, and what to do stands at the end
        sentence = f"{sentence[: MOST_LETTERS - MOST_LETTERS // 4]} ... {sentence[-(MOST_LETTERS // 4) :]}"
    complain(printable(sentence))


def _show(error: click.ClickException) -> None:
    """What click says of a wrong command line: the usage, and the sentence as all others look."""
    from tvgrad.cli.terminal import complain

    from tvgrad.wording import printable

    sentence = error.format_message()
    whole = io.StringIO()
    error.show(whole)
    click.echo(whole.getvalue().removesuffix(f"Error: {sentence}\n"), err=True, nl=False)
    # click lists choices on lines of their own only where a word is missing, which then quotes nothing
    complain(sentence if isinstance(error, click.MissingParameter) else printable(sentence))


def _entry(words: list[str]) -> tuple[click.Command, str, list[str], list[str]]:
    """What to run: `trace` and `explain` have forms of their own for a command after `--` (which click would drop).

    Returns:
        The command, its name, its arguments, and the words after `--`.
    """
    if words[:1] == ["trace"] and "--" in words:
        place = words.index("--")
        script = importlib.import_module("tvgrad.cli.trace_script").trace_script
        return script, "tvgrad trace", words[1:place], words[place + 1 :]
    if words[:1] == ["explain"] and "--" in words:
        place = words.index("--")
        script = importlib.import_module("tvgrad.cli.explain_script").explain_script
        return script, "tvgrad explain", words[1:place], words[place + 1 :]
    if words[:1] == ["trace"] and "--from-checkpoints" in words:
        checkpoints = importlib.import_module("tvgrad.cli.trace_checkpoints").trace_checkpoints
        return checkpoints, "tvgrad trace", words[1:], []
    return group, "tvgrad", words, []
