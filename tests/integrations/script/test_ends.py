"""How a traced script may end: by signals, by errors, without a step; and what stops only the recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integrations.script.script_runs import ONE_THREAD, SCRIPTS, TRACE, run, warm
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.integrations.script.launch import check, name_of
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.report.tables import run_tables

Write = Callable[..., list[str]]


LONG = """
def leave(number, frame):
    print("handled", number, flush=True)
    sys.exit(5)
if sys.argv[-1] == "handles":
    signal.signal(signal.SIGTERM, leave)
try:
    for epoch in range(1000):
        for a, b in loader:
            step(a, b)
            time.sleep(0.02)
        os.write(1, f"epoch {epoch}\\n".encode())  # whole: a signal may come between the pieces that print writes
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[-1] == "handles":
        sys.exit(6)
    raise
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handles", ["handles", "leaves"])
def test_a_signal_leaves_a_run_that_opens(write: Write, tmp_path: Path, number: int, handles: str) -> None:
    command = [*TRACE, "--out", str(tmp_path / "run"), "--", *write(LONG, afresh=True), handles]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "epoch 3\n":
            assert process.poll() is None
        process.send_signal(number)
        rest, said = process.communicate(timeout=60)
    record = Run.open(tmp_path / "run")
    assert len(record.epochs) >= 3
    assert not record.problems()
    words = {line for line in rest.splitlines() if not line.startswith("epoch")}
    if handles == "handles":
        assert process.returncode == (6 if number == signal.SIGINT else 5)
        assert words == {"interrupted" if number == signal.SIGINT else f"handled {signal.SIGTERM}"}, (rest, said)
    else:
        assert process.returncode == -number
        assert words == ({"interrupted"} if number == signal.SIGINT else set()), (rest, said)
        assert not record.manifest.finished
    assert "recording stop" not in said


def test_an_interrupt_that_was_ignored_before_stays_ignored(write: Write, tmp_path: Path) -> None:
    """As in a background job of a shell: the script behaves as it does without a trace."""
    content = """
print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)
sys.stdin.readline()
for epoch in range(2):
    for a, b in loader:
        step(a, b)
"""
    command = [*TRACE, "--out", str(tmp_path / "run"), "--", *write(content, afresh=True)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        process.send_signal(signal.SIGINT)
        process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert Run.open(tmp_path / "run").epochs == [0, 1, 2]


COUNTS = """
got = []
def note(number, frame):
    got.append(number)
signal.signal(signal.SIGTERM, note)
for a, b in loader:  # else a signal may come before any step, and nothing would be recorded
    step(a, b)
print("ready", flush=True)
while not got:
    for a, b in loader:
        step(a, b)
        time.sleep(0.02)
time.sleep(0.5)
print("signals", len(got))
"""


@pytest.mark.parametrize("to", [pytest.param("process", marks=pytest.mark.slow), "group", "process, then group"])
def test_a_signal_comes_once(write: Write, tmp_path: Path, to: str) -> None:
    """Schedulers and `timeout` signal the whole process group: the script has its signal then, and gets no second."""
    command = [*TRACE, "--out", str(tmp_path / "run"), "--", *write(COUNTS, afresh=True)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if to != "group":
            process.send_signal(signal.SIGTERM)
        if to == "process, then group":
            time.sleep(0.02)  # else the kernel makes one of the two
        if to != "process":
            os.killpg(process.pid, signal.SIGTERM)
        rest, said = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "signals 1\n"), said


def test_a_killed_script_says_how_its_epochs_ended(write: Write, tmp_path: Path) -> None:
    content = """
for epoch in range(3):
    for index, (a, b) in enumerate(loader):
        step(a, b)
        if (epoch, index) == (1, 1):
            break
next(iter(loader))
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    assert done.returncode == -signal.SIGKILL
    record = Run.open(tmp_path / "run")
    assert not record.problems()
    assert record.info["epoch_endings"] == ["loader", "break", "loader"]


def test_an_uncaught_error_keeps_the_epochs_before(write: Write, tmp_path: Path) -> None:
    content = """
for epoch in range(3):
    for index, (a, b) in enumerate(loader):
        step(a, b)
        if epoch == 2 and index == 1:
            raise RuntimeError("the script's own")
"""
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    assert done.returncode == 1
    assert "the script's own" in done.stderr
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    assert not record.manifest.finished


CANNOT = {
    "no loader": ("for _ in range(4):\n    step(x, x.sum(1, keepdim=True))\n", "no torch.utils.data.DataLoader"),
    "new iterators": ("for _ in range(4):\n    step(*next(iter(loader)))\n", "next(iter(loader))"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_epochs_that_cannot_be_told(write: Write, tmp_path: Path, case: str) -> None:
    content, why = CANNOT[case]
    command = write(content + "print('the end')\nsys.exit(4)\n")
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert (done.returncode, done.stdout) == (4, "the end\n")
    assert done.stderr.count("\n") == 1
    assert "--steps-per-epoch" in done.stderr
    assert why in done.stderr
    assert not (tmp_path / "run").exists()


def test_strict_ends_the_script(write: Write, tmp_path: Path) -> None:
    command = write(CANNOT["no loader"][0] + "print('the end')\n")
    done = run([*TRACE, "--strict", "--out", str(tmp_path / "run"), "--", *command])
    assert (done.returncode, done.stdout) == (2, "")
    assert "--steps-per-epoch" in done.stderr


def test_steps_per_epoch_from_a_shell_script(write: Write, tmp_path: Path) -> None:
    python, script = write(CANNOT["no loader"][0] + "print(os.getcwd() == sys.path[0], __name__)\n", afresh=True)
    command = ["sh", "-c", f"{python} {script}; exit 9"]
    done = run([*TRACE, "--steps-per-epoch", "2", "--out", "run", "--", *command], tmp_path)
    assert (done.returncode, done.stdout) == (9, "True __main__\n")
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 2, 4]


def test_no_optimizer(write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write("print('only this')\n")])
    assert (done.returncode, done.stdout) == (2, "only this\n")
    assert "no optimizer of torch.optim took a step" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_python_at_all(tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", "echo", "hello"])
    assert (done.returncode, done.stdout) == (2, "hello\n")
    assert "imported no torch" in done.stderr


def test_a_command_that_fails_at_once(tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", sys.executable, "-c", "raise SystemExit(7)"])
    assert done.returncode == 7
    assert "no torch was imported before the command ended with exit code 7" in done.stderr


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_a_python_without_tvgrad(tmp_path: Path, strict: list[str]) -> None:
    """The hooks are reached, and tvgrad is not: one sentence says so."""
    (tmp_path / "torch.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['tvgrad'] = None; import torch; print('on')"
    done = run([*TRACE, *strict, "--out", str(tmp_path / "run"), "--", sys.executable, "-c", code])
    assert (done.returncode, done.stdout) == ((2, "") if strict else (2, "on\n"))
    assert done.stderr.count("\n") == 1
    assert "tvgrad cannot be imported by" in done.stderr


def test_a_recipe_of_several_tasks_is_refused_before_the_script_starts(tmp_path: Path) -> None:
    done = run([*TRACE, "--recipe", "digits", "--out", str(tmp_path / "run"), "--", "echo", "not reached"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "digits has 6 tasks: end --out with the name of one (low, " in done.stderr


def test_a_place_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)  # root may write anywhere
    with pytest.raises(TvgradError, match=f"nothing can be written in {tmp_path}: choose another --out"):
        check(ScriptOptions(out=str(tmp_path / "new" / "run"), notes="", command=("echo",)))


def test_several_optimizers_are_listed(tmp_path: Path) -> None:
    command = warm(str(SCRIPTS / "two_optimizers.py"), str(tmp_path))
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.returncode == 2
    assert "--model" in done.stderr
    assert "generator (39 parameters" in done.stderr
    assert "critic (31 parameters" in done.stderr


def test_another_sitecustomize_still_runs(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 'kept'\n")
    command = write("print(mine, 'bootstrap' in ''.join(sys.path))\n", afresh=True)
    done = run(["env", f"PYTHONPATH={tmp_path}", *TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.stdout == "kept False\n"


def test_command_not_found(tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", "no-such-command"])
    assert done.returncode == 2
    assert "'no-such-command' is not found" in done.stderr


def test_no_command(tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--"])
    assert done.returncode == 2
    assert "no command after `--`" in done.stderr


@pytest.mark.parametrize("name", ["run.json", "notes.txt"])
def test_output_directory_in_use(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    done = run([*TRACE, "--out", str(tmp_path), "--", "echo", "not reached"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose" in done.stderr


TRAINS = "for epoch in range(2):\n    for a, b in loader:\n        step(a, b)\n"


def test_a_run_is_replaced_when_its_successor_begins(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run([*TRACE, "--out", str(out), "--", *write(TRAINS)]).returncode == 0
    refused = run([*TRACE, "--out", str(out), "--", *write(TRAINS)])
    assert (refused.returncode, "or replace it by --overwrite" in refused.stderr) == (2, True)
    fails = run([*TRACE, "--overwrite", "--out", str(out), "--", *write("raise RuntimeError\n")])
    assert fails.returncode == 1
    assert Run.open(out).epochs == [0, 1, 2]  # nothing was recorded, and nothing is lost
    longer = TRAINS.replace("range(2)", "range(3)")
    assert run([*TRACE, "--overwrite", "--out", str(out), "--", *write(longer)]).returncode == 0
    assert Run.open(out).epochs == [0, 1, 2, 3]


def test_runs_in_a_folder_get_names(write: Write, tmp_path: Path) -> None:
    first = run([*TRACE, "--out", f"{tmp_path}/runs/", "--", *write(TRAINS, afresh=True)])
    second = run([*TRACE, "--out", f"{tmp_path}/runs", "--", *write(TRAINS, afresh=True)])
    assert (first.returncode, second.returncode) == (0, 0)
    assert f"{tmp_path}/runs/script-2: 3 points" in second.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["script", "script-2"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python train.py --lr 1", "train"),
        ("python -m package.finetune", "finetune"),
        ("python -m torch.distributed.run a/train.py", "train"),
        ("bash run all.sh", "all"),
        ("./my tool", "my"),
        ("", "run"),
    ],
)
def test_the_name_of_a_command(command: str, name: str) -> None:
    assert name_of(command.split()) == name


def test_nothing_recorded_names_the_way_to_an_exit_code(write: Write, tmp_path: Path) -> None:
    command = write("print('only this')\n")
    assert (
        "the exit code is 2 for that, the command's was 0"
        in run([*TRACE, "--out", str(tmp_path / "run"), "--", *command]).stderr
    )
    strict = run([*TRACE, "--strict", "--out", str(tmp_path / "run"), "--", *command])
    assert (strict.returncode, strict.stdout) == (2, "only this\n")


def test_a_training_script_without_the_dashes_is_not_run(write: Write, tmp_path: Path) -> None:
    script = write(f"{TRAINS}open('trained', 'w').close()\n", afresh=True)[1]
    done = run([*TRACE, script, "--out", str(tmp_path / "run")], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"`tvgrad trace --out DIR -- python {script}`" in done.stderr
    assert not (tmp_path / "trained").exists()


@pytest.mark.slow
def test_a_compiled_model(write: Write, tmp_path: Path) -> None:
    content = """
compiled = torch.compile(model, backend="aot_eager")
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(compiled(a), b)
        loss.backward()
        optimizer.step()
    print(repr(loss.item()))
"""
    command = write(content, afresh=True)
    alone = run(command)
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.stdout == alone.stdout
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    assert list(record.parameters) == ["weight", "bias"]


@pytest.mark.slow
def test_a_compiled_step(write: Write, tmp_path: Path) -> None:
    """The hooks of an optimizer whose step is compiled are called, and stay out of the graphs."""
    content = """
@torch.compile(backend="eager")
def compiled():
    optimizer.step()
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        compiled()
    print(repr(loss.item()))
"""
    command = write(content, afresh=True)
    alone = run(command)
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.stdout == alone.stdout
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 4, 8, 12]
    # the compiler names files and functions that it stumbles over
    warned = [line for line in done.stderr.splitlines() if not line.startswith("tvgrad: ")]
    assert not [line for line in warned if "tvgrad" in line or "Dynamo does not know" in line]


@pytest.mark.slow
def test_an_epoch_whose_every_step_is_skipped(write: Write, tmp_path: Path) -> None:
    """A loss scale that starts too high: the epoch happened, and left the weights what they were."""
    content = """
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for epoch in range(2):
    for a, b in loader:
        optimizer.zero_grad()
        scaler.scale(nn.functional.mse_loss(model(a) * (float("inf") if epoch == 0 else 1.0), b)).backward()
        scaler.step(optimizer)
        scaler.update()
"""
    run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 0, 4]
    assert record.steps()["skipped"].tolist() == [1] * 4 + [0] * 4
    assert torch.equal(record.weights(0)["weight"], record.weights(1)["weight"])
    assert not torch.equal(record.weights(1)["weight"], record.weights(2)["weight"])
    assert run_tables([record]).tables["equivalence"]["holds"].tolist() == ["does not apply"]


@pytest.mark.slow
def test_a_gradient_scaler_that_skips(write: Write, tmp_path: Path) -> None:
    content = """
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for epoch in range(2):
    for index, (a, b) in enumerate(loader):
        optimizer.zero_grad()
        factor = float("inf") if (epoch, index) in {(0, 0), (1, 1)} else 1.0
        scaler.scale(nn.functional.mse_loss(model(a) * factor, b)).backward()
        scaler.step(optimizer)
        scaler.update()
"""
    run([*TRACE, "--out", str(tmp_path / "run"), "--", *write(content)])
    record = Run.open(tmp_path / "run")
    steps = record.steps()
    assert [point.steps for point in record.points] == [0, 3, 6]
    assert steps["skipped"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert steps["loss_scale"].tolist() == [1024] + [512] * 5 + [256] * 2
    for epoch in (1, 2):  # plain SGD at one rate: the consumed gradients are unscaled
        moved = (record.weights(epoch - 1)["weight"].double() - record.weights(epoch)["weight"].double()) / 0.1
        assert (record.epoch_gradient(epoch)["weight"].double() - moved).abs().max() < 1e-5
