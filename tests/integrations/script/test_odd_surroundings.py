"""Scripts in odd surroundings: notes that are cleaned away, signals that are ignored, descriptors that are closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.script.script_runs import ONE_THREAD, TRACE, run
from tvgrad.integrations.script import launch, notes
from tvgrad.integrations.script.options import ScriptOptions, launch_of
from tvgrad.store.run import Run

Write = Callable[[str], list[str]]
EPOCHS = "for epoch in range(2):\n    for a, b in loader: step(a, b)\n"


def options(tmp_path: Path) -> ScriptOptions:
    return ScriptOptions(str(tmp_path / "run"), str(tmp_path / "notes-1"), ("python",))


def listed(tmp_path: Path, launched: str, points: int = 2, **info: object) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    content = {"info": {"launch": launched, **info}, "points": [{"number": number} for number in range(points)]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))


def test_run_json_says_what_was_recorded_whatever_became_of_the_notes(tmp_path: Path) -> None:
    mine = options(tmp_path)
    listed(tmp_path, launch_of(mine))
    assert launch._outcome(mine, tmp_path / "run", 0) == (False, False)  # no notes at all
    (tmp_path / "notes-1").mkdir()
    for rest in ('{"pid": 1, "ev', "3\n", "\x00" * 50, '{"event": 5}\n'):
        (tmp_path / "notes-1" / "notes").write_text(rest)
        assert launch._outcome(mine, tmp_path / "run", 0) == (False, False)
    listed(tmp_path, launch_of(mine), stopped="a reason")
    assert launch._outcome(mine, tmp_path / "run", 0) == (True, False)
    listed(tmp_path, "of an earlier start")
    assert launch._outcome(mine, tmp_path / "run", 0) == (True, True)


def test_notes_that_are_cleaned_away_are_made_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "gone" / "notes")
    assert notes.claim(folder)
    assert not notes.claim(folder)
    notes.leave_note(folder, event="step")
    assert [note["event"] for note in notes.read_notes(folder)] == ["step"]
    with open(Path(folder) / "notes", "ab") as handle:
        handle.write(b'{"event": "torch"')
    assert [note["event"] for note in notes.read_notes(folder)] == ["step"]


def test_a_sentence_with_any_name_reaches_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    notes.say("run \udcff\x1b[2J é")
    assert capfd.readouterr().err == "tvgrad: run \\udcff\\x1b[2J é\n"


def test_where_there_was_no_error_stream_nothing_is_said(tmp_path: Path) -> None:
    code = f"""
import os
os.close(2)
from tvgrad.integrations.script.notes import say
handle = os.open({str(tmp_path / "mine")!r}, os.O_CREAT | os.O_WRONLY)
assert handle == 2
say("not into somebody's file")
"""
    assert subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, check=False).returncode == 0
    assert (tmp_path / "mine").read_bytes() == b""


@pytest.mark.parametrize("ending", ["0", "7"])
def test_a_child_is_waited_for_where_its_end_is_ignored(ending: str) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from tvgrad.integrations.script.launch import _run
status = _run(["sh", "-c", "exit {ending}"], dict(os.environ))
assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, timeout=60, check=False)
    assert done.returncode == int(ending)


def test_a_launcher_without_standard_streams_ends_like_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        launch.end_like(3)
    assert caught.value.code == 3


def test_an_end_without_exit_handlers_after_descriptors_were_closed(write: Write, tmp_path: Path) -> None:
    """`os._exit` after the last step, `gc.freeze`, all descriptors closed by number: both epochs are recorded."""
    content = f"""
import gc; gc.freeze()
for epoch in range(2):
    for a, b in loader: step(a, b)
    if epoch == 0:
        os.closerange(3, 256)
        mine = [open({str(tmp_path)!r} + f"/mine{{i}}", "w") for i in range(20)]
for one in mine: one.write("mine"); one.flush()
os._exit(5)
"""
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content, afresh=True)])
    assert done.returncode == 5, done.stderr
    recorded = Run.open(tmp_path / "run")
    assert recorded.epochs == [0, 1, 2], done.stderr
    assert not recorded.problems()
    assert {path.read_text() for path in tmp_path.glob("mine*")} == {"mine"}


CLOSING = {
    "at once": "os.closerange(3, 64)",
    "one by one": """
for number in range(3, 64):
    try: os.close(number)
    except OSError: pass
""",
}


@pytest.mark.parametrize("way", CLOSING)
def test_descriptors_are_not_closed_under_the_thread_that_writes(write: Write, tmp_path: Path, way: str) -> None:
    """Each file of the record is open for a while, so that an epoch is being written whenever the script goes on."""
    content = f"""
import threading
flush, seen = os.fsync, []
def slow(descriptor):
    seen.append(threading.current_thread().name)
    time.sleep(0.05)
    flush(descriptor)
os.fsync = slow
mine = []
def close_all():
{textwrap.indent(CLOSING[way], "    ")}
for epoch in range(3):
    for a, b in loader: step(a, b)
    while len(seen) < 1 + epoch: time.sleep(0.001)
    child = os.fork()
    if child == 0:  # where no thread writes, there is nothing to wait for
        close_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    close_all()
    mine = [open({str(tmp_path)!r} + f"/mine{{epoch}}-{{i}}", "w") for i in range(20)]
    time.sleep(0.3)
    for one in mine: one.write("mine"); one.flush()
    for one in mine: one.close()
assert set(seen) == {{"tvgrad writer"}}
"""
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content, afresh=True)])
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").epochs == [0, 1, 2, 3], done.stderr
    assert not Run.open(tmp_path / "run").problems()
    assert [path.read_text() for path in tmp_path.glob("mine*")] == 60 * ["mine"]


@pytest.mark.slow
def test_notes_and_output_that_are_removed(write: Write, tmp_path: Path) -> None:
    # Removing a folder in which a thread is writing fails by itself: the script waits until the point is written.
    place = "json.loads(os.environ['TVGRAD_TRACE'])"
    removal = f"    if epoch == 0: import shutil, json; time.sleep(1); shutil.rmtree({place}['{{}}'])\n"
    done = run([*TRACE, "--out", str(tmp_path / "a"), "--", *write(EPOCHS + removal.format("notes"))])
    assert "a: 3 points, the last at epoch 2" in done.stderr
    again = f"; os.mkdir({place}['out'])"
    content = EPOCHS + removal.format("out").rstrip() + again + "\n    time.sleep(1)\nprint('trained')\n"
    done = run([*TRACE, "--out", str(tmp_path / "b"), "--", *write(content)])
    assert done.returncode == 2  # nothing is recorded
    assert "trained" in done.stdout
    assert "was removed or replaced while it was written" in done.stderr
    assert "keeps what was recorded" not in done.stderr
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("streams", [(0,), (2,), (0, 1, 2)])
def test_standard_streams_that_are_closed(write: Write, tmp_path: Path, streams: tuple[int, ...]) -> None:
    words = " ".join(f"{stream}>&-" if stream else "<&-" for stream in streams)
    # In a Python of its own: what hands streams on to a warm one needs them open.
    command = [*TRACE, "--out", str(tmp_path / "run"), "--", *write(EPOCHS, afresh=True)]
    done = run(["sh", "-c", f'exec "$@" {words}', "sh", *command], starts=2)
    assert done.returncode == 0
    assert Run.open(tmp_path / "run").epochs == [0, 1, 2]
    assert not Run.open(tmp_path / "run").problems()


@pytest.mark.slow
def test_a_path_that_is_no_text_and_a_locale_of_ascii(write: Write, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/r\xffn"
    environment = {**ONE_THREAD, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*TRACE, "--out", out, "--", *write(EPOCHS)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"3 points, the last at epoch 2" in done.stderr
    code = f"""
import torch, tvgrad
with tvgrad.Recorder({str(tmp_path / "accent")!r}, torch.nn.Linear(2, 1)) as recorder:
    recorder.end_epoch({{"pr\\u00e9cision": 0.5}})
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "accent").points[-1].metrics["précision"] == 0.5
