"""Launch: starts the command of `tvgrad trace -- COMMAND`, waits for it, and ends the way it ended.

The command gets this process's input and output, so that the script cannot tell that it is watched. Signals that are
sent to this process go on to it; those that the whole process group gets reach it anyway.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tvgrad import system
from tvgrad.errors import TvgradError
from tvgrad.integrations.script.notes import read_notes, say
from tvgrad.integrations.script.options import VARIABLE, ScriptOptions, launch_of
from tvgrad.store.journal import read_content
from tvgrad.store.layout import MANIFEST, require_free
from tvgrad.store.lock import LOCK, WriterLock
from tvgrad.store.overwrite import require_replaceable
from tvgrad.wording import counted

GO_ON = "go on with it by --resume where the script loads its own checkpoint"
RECORDABLE = ("epoch-gradients", "gradient-norms")


def check(options: ScriptOptions) -> None:
    """Refuse what cannot work, before the script starts and without an import of torch.

    Args:
        options: what the command line says.

    Raises:
        TvgradError: there is no command, an option is not understood, or the directory is in use.
    """
    why = system.why_commands_are_not_watched()
    if why is not None:
        raise TvgradError(f"no command can be recorded here, because {why}: record its loop by tvgrad.Recorder instead")
    if not options.command:
        raise TvgradError("there is no command after `--`: give one, as in `tvgrad trace --out DIR -- python train.py`")
    if shutil.which(options.command[0]) is None:
        raise TvgradError(f"the command {options.command[0]!r} is not found: give one that your shell would find")
    if options.steps_per_epoch is not None and options.record_at != "epochs":
        raise TvgradError("--steps-per-epoch is for --record-at epochs: leave one of them out")
    if options.groups is not None:
        try:
            re.compile(options.groups)
        except (re.error, OverflowError, RecursionError) as error:
            raise TvgradError(f"--groups {options.groups!r} is not a regular expression: {error}") from None
    for kind in options.record:
        if kind not in RECORDABLE:
            raise TvgradError(
                f"{kind!r} cannot be recorded of a script: choose from {', '.join(RECORDABLE)} or none, and --recipe "
                "for gradients"
            )
    if options.resume and options.overwrite:
        raise TvgradError("a run is either resumed or overwritten: give one of --resume and --overwrite")
    _check_directory(Path(options.out), options)


def _check_directory(out: Path, options: ScriptOptions) -> None:
    if options.overwrite:
        require_replaceable(out)
    elif not (options.resume and (out / MANIFEST).exists()):
        require_free(out, or_else=f", {GO_ON}, or replace it by --overwrite")
    nearest = next(place for place in (out, *out.parents) if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise TvgradError(f"nothing can be written in {nearest}: choose another --out")
    if (out / LOCK).exists():
        WriterLock(out).close()  # refuses a directory in use


def name_of(command: Sequence[str]) -> str:
    """Name a run after the script that a command starts.

    Args:
        command: the command.

    Returns:
        The script's or the module's name without its ending; the program's where neither is seen.
    """
    words = [*command, "run"]
    modules = [following for word, following in pairwise(words) if word == "-m"]
    scripts = [word for word in words if word.endswith((".py", ".sh"))]
    # a launcher's own module comes before the script: python -m torch.distributed.run train.py
    found = Path(scripts[0]).stem if scripts else modules[0].rpartition(".")[2] if modules else Path(words[0]).stem
    return re.sub(r"[^\w.-]+", "-", found).strip(".-") or "run"


def launch(options: ScriptOptions, after: Callable[[], None] | None = None) -> int:
    """Run the command and record what it trains.

    Args:
        options: the command, and how to record it; `notes` is filled in here.
        after: called when the command has ended and a run was recorded.

    Returns:
        Its exit status, negative for the signal that ended it; 2 where it ended well and nothing was recorded, or
        recording failed under `--strict`.

    Raises:
        TvgradError: there is no such command, or no folder for temporary files.
    """
    out = Path(options.out)
    try:
        notes = tempfile.mkdtemp(prefix="tvgrad-")
    except OSError as error:
        raise TvgradError(f"no folder for notes can be made ({error.strerror}): set TMPDIR to one that can") from None
    try:
        options = replace(options, notes=notes)
        status = _run(options.command, environment(options))
        failed, nothing = _outcome(options, out, status)
        if not failed and after is not None:
            try:
                after()
            except TvgradError as error:
                say(f"no full-batch gradients are recorded, because {error}")
                failed = True
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    return 2 if status == 0 and (nothing or (failed and options.strict)) else status


def end_like(status: int) -> None:
    """End this process with another's status, a signal included.

    Args:
        status: as `launch` returns it.
    """
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
    if status < 0:
        system.end_by(-status)
    sys.exit(status if status >= 0 else 128 - status)


def environment(options: ScriptOptions) -> dict[str, str]:
    """Make the environment of a command whose every Python is to load tvgrad with torch.

    Args:
        options: what these are told.

    Returns:
        The variables.
    """
    bootstrap = Path(__file__).resolve().parent / "bootstrap"
    places = [str(bootstrap), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), VARIABLE: options.to_environment()}


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Start the command with the usual signals and wait for it."""
    try:
        return system.run_command(command, environment)
    except OSError as error:
        raise TvgradError(f"the command {command[0]!r} cannot be started: {error.strerror}") from None


def _outcome(options: ScriptOptions, out: Path, status: int) -> tuple[bool, bool]:
    """Say what was recorded, or why nothing was.

    run.json says what was recorded, and whether by this launch; the notes only say where, and why nothing was, because
    a cleaner of temporary files may have taken them.

    Returns:
        Whether that is a failure, and whether there is nothing.
    """
    notes = read_notes(options.notes)
    begun = [place for place, note in enumerate(notes) if note["event"] == "anew"]
    events = {str(note["event"]) for note in notes[max(begun, default=0) :]}
    outs = list(dict.fromkeys(str(note.get("out", out)) for note in notes if note["event"] == "step")) or [str(out)]
    for earlier in outs[:-1]:
        _say_points(earlier, _recorded(Path(earlier), launch_of(options))[0], options)
    out = Path(outs[-1])
    points, stopped = _recorded(out, launch_of(options))
    events |= {"stopped"} if stopped else set()
    plain = "" if status else "; the exit code is 2 for that, the command's was 0"
    if points:
        _say_points(str(out), points, options, stopped="stopped" in events)
    elif "stopped" in events:
        pass  # said where it happened
    elif "step" in events:
        say(f"nothing is recorded in {options.out}: the script ended before the pretrained weights were written{plain}")
    elif "torch" in events:
        say(f"nothing is recorded, because no optimizer of torch.optim took a step{_ended(status)}{plain}")
    elif status:
        say(f"nothing is recorded, because no torch was imported{_ended(status)}")
    else:
        say(
            "nothing is recorded, because the command imported no torch in a Python that can be reached (python -I, -E "
            f"and -S, and containers, shut it out){plain}"
        )
    return "stopped" in events or not points, not points


def _say_points(out: str, points: Sequence[int], options: ScriptOptions, stopped: bool = False) -> None:
    unit = "step" if options.record_at != "epochs" else "epoch"
    short = " (recording stopped before the script did)" if stopped else ""
    if points and (short or not options.quiet):
        say(f"{out}: {counted(len(points), 'point')}, the last at {unit} {points[-1]}{short}")


def _ended(status: int) -> str:
    """How a command that failed ended, for the end of a sentence."""
    if not status:
        return ""
    how = f"with exit code {status}" if status > 0 else f"by signal {-status}"
    return f" before the command ended {how}"


def _recorded(out: Path, launch: str) -> tuple[list[int], bool]:
    """The points that this launch has recorded, and whether recording stopped before the script did."""
    try:
        content = read_content(out)
        if content["info"].get("launch") != launch:
            return [], False
        return [int(point["number"]) for point in content["points"]], content["info"].get("stopped") is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], False


def later_trainings(out: Path) -> list[Path]:
    """Find what a command has recorded beside its first training.

    Args:
        out: the run of the first.

    Returns:
        The directories of runs that the same start of the command has made, in the order of their names.
    """
    try:
        launch = str(read_content(out)["info"]["launch"])
        beside = sorted(one for one in out.absolute().parent.iterdir() if one.name.startswith(f"{out.name}-"))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in beside if _recorded(one, launch)[0]]
