"""How a traced script may end: by signals, by errors, without a step; and what stops only the recording."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import ONE_THREAD, SCRIPTS, TRACE, run

from tvgrad import Run

Write = Callable[[str], list[str]]

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
        print("epoch", epoch, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[-1] == "handles":
        sys.exit(6)
    raise
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handles", ["handles", "leaves"])
def test_a_signal_leaves_a_run_that_opens(write: Write, tmp_path: Path, number: int, handles: str) -> None:
    command = [*TRACE, "--out", str(tmp_path / "run"), "--", *write(LONG), handles]
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
        assert words == {"interrupted" if number == signal.SIGINT else f"handled {signal.SIGTERM}"}
    else:
        assert process.returncode == -number
        assert words == ({"interrupted"} if number == signal.SIGINT else set())
        assert not record.manifest.finished
    assert "recording stop" not in said


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
    python, script = write(CANNOT["no loader"][0] + "print(os.getcwd() == sys.path[0], __name__)\n")
    command = ["sh", "-c", f"{python} {script}; exit 9"]
    done = run([*TRACE, "--steps-per-epoch", "2", "--out", "run", "--", *command], tmp_path)
    assert (done.returncode, done.stdout) == (9, "True __main__\n")
    record = Run.open(tmp_path / "run")
    assert [point.steps for point in record.points] == [0, 2, 4]


def test_no_optimizer(write: Write, tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *write("print('only this')\n")])
    assert (done.returncode, done.stdout) == (0, "only this\n")
    assert "no optimizer of torch.optim took a step" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_python_at_all(tmp_path: Path) -> None:
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", "echo", "hello"])
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "imported no torch" in done.stderr


def test_several_optimizers_are_listed(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "two_optimizers.py"), str(tmp_path)]
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.returncode == 0
    assert "--model" in done.stderr
    assert "generator (39 parameters" in done.stderr
    assert "critic (31 parameters" in done.stderr


def test_another_sitecustomize_still_runs(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 'kept'\n")
    command = write("print(mine, 'bootstrap' in ''.join(sys.path))\n")
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
    command = write(content)
    alone = run(command)
    done = run([*TRACE, "--out", str(tmp_path / "run"), "--", *command])
    assert done.stdout == alone.stdout
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    assert list(record.parameters) == ["weight", "bias"]


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
