"""What systems differ in: calls of POSIX alone are made in one module; without them tvgrad works, or says why not."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.script.script_runs import ONE_THREAD
from tests.test_public_names import modules, parsed
from tvgrad import system

ROOT = Path(__file__).parents[1]
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
IN_OS = {
    *("chown", "chroot", "fchmod", "fchown", "fdatasync", "fork", "forkpty", "fpathconf", "fstatvfs", "getegid"),
    *("geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpriority", "getsid", "getuid", "initgroups", "kill"),
    *("killpg", "lchown", "lockf", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2", "posix_fadvise"),
    *("posix_fallocate", "posix_spawn", "posix_spawnp", "pread", "preadv", "pwrite", "pwritev", "readv"),
    *("register_at_fork", "sendfile", "setegid", "setpgid", "setsid", "setuid", "statvfs", "sync", "sysconf"),
    *("tcgetpgrp", "tcsetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "waitid", "waitpid", "WNOHANG", "writev"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "link", "symlink"),
}
IN_SIGNAL = {
    *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
    *("SIGUSR1", "SIGUSR2", "SIGXFSZ", "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer"),
    *("siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo", "SIG_BLOCK", "SIG_SETMASK"),
}
KEYWORDS = {"dir_fd", "src_dir_fd", "dst_dir_fd", "preexec_fn", "pass_fds", "effective_ids"}


def posix_only(tree: ast.AST) -> list[str]:
    """Names of a module that POSIX systems alone have; `getattr(os, name, ...)` is a question, and so none."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {"os": IN_OS, "signal": IN_SIGNAL}.get(str(node.module), set())
            found += [str(node.module)] if node.module in POSIX_MODULES else []
            found += [alias.name for alias in node.names if alias.name in names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {"os": IN_OS, "signal": IN_SIGNAL}.get(node.value.id, set())
            found += [f"{node.value.id}.{node.attr}"] if node.attr in names else []
        elif isinstance(node, ast.Call):
            found += [str(one.arg) for one in node.keywords if one.arg in KEYWORDS]
    return found


def test_calls_of_posix_alone_are_made_in_one_module() -> None:
    found = {name: posix_only(parsed(path)) for name, path in modules().items()}
    assert len(found.pop("tvgrad.system")) > 20
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_such_calls_are_seen() -> None:
    code = "import fcntl\nfrom os import fork\nos.kill(1, signal.SIGKILL)\nos.open(a, dir_fd=3)\nos.replace(a, b)"
    assert sorted(posix_only(ast.parse(code))) == ["dir_fd", "fcntl", "fork", "os.kill", "signal.SIGKILL"]


WITHOUT_POSIX = """
import contextlib, io, os, signal, sys
from pathlib import Path
import torch, tvgrad
from torch import nn
from tvgrad.cli.main import main
import tvgrad.cli.trace, tvgrad.cli.verify, tvgrad.cli.merge, tvgrad.cli.export
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

def make():
    torch.manual_seed(0)
    return prepare(tvgrad.Recipe(nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2),
                                 name="small", lr=0.1), TraceOptions(epochs=2, record=("gradients",)))

here = sys.argv[1]
trace(make(), Path(here, "posix"))
for name in {names_of_os!r}:
    if hasattr(os, name):
        delattr(os, name)
for name in {names_of_signal!r}:
    if hasattr(signal, name):
        delattr(signal, name)
opened = os.open
def open_as_windows(path, flags, mode=0o777):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, mode)
os.open = open_as_windows
sys.platform = "win32"
run = trace(make(), Path(here, "other"))
assert run.problems() == []
for epoch in (0, 1, 2):
    for name, tensor in run.weights(epoch).items():
        assert torch.equal(tensor, Run.open(here + "/posix").weights(epoch)[name])

def call(*words):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(list(words))
        except SystemExit as error:
            code = error.code or 0
    return code, said.getvalue()

assert call("verify", here + "/other")[0] == 0
assert call("merge", here + "/other", here + "/posix", "--epoch", "1", "--method", "mean",
            "--out", here + "/m.safetensors")[0] == 0
assert call("export", here + "/other", "--epoch", "1", "--out", here + "/exported")[0] == 0
code, text = call("trace", "--out", here + "/script", "--", "python", "train.py")
assert code == 2 and "Windows has no signals" in text and "Traceback" not in text, (code, text)
assert not os.path.exists(here + "/script")
"""


def test_without_the_calls_of_posix_runs_are_recorded_and_commands_are_refused(tmp_path: Path) -> None:
    """Windows as far as it can be had here: without these calls, with no folder that can be opened."""
    # Windows has those, or the standard library and the locks' library ask something else there.
    kept = {"link", "symlink", "kill", "statvfs", "fchmod", "getuid", "geteuid"}
    kept |= {name for name in IN_OS if name.startswith("O_")}
    code = WITHOUT_POSIX.replace("{names_of_os!r}", repr(sorted(IN_OS - kept)))
    code = code.replace("{names_of_signal!r}", repr(sorted(IN_SIGNAL)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_replacement_waits_for_a_reader_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    real, tries = system.os.replace, []

    def busy(old: Path, new: Path) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(13, "in use")
        real(old, new)

    monkeypatch.setattr(system.os, "replace", busy)
    with pytest.raises(PermissionError):
        system.replace(source, target)
    monkeypatch.setattr(system.sys, "platform", "win32")
    tries.clear()
    system.replace(source, target)
    assert (target.read_text(), len(tries)) == ("new", 3)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_hold_on_other_systems(platform: str, tmp_path: Path) -> None:
    """The type checker knows which names a system has: an oracle beside the lists above.

    What one system does not reach is there for another, and so no mistake.
    """
    importlib.import_module("mypy")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--platform",
        platform,
        "--no-warn-unreachable",
        "--cache-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:]


ALONE = """
import subprocess, sys, time
program = "import time; print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system lists no processes in files")
def test_workers_in_sessions_of_their_own_are_ended_with_their_launcher() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", ALONE], stdout=subprocess.PIPE, start_new_session=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    system.end_group(launcher.pid)
    # the pipe ends when its last writer has
    assert launcher.communicate(timeout=30)[0] == b""
    assert launcher.returncode == -9


def test_a_descriptor_tells_its_file(tmp_path: Path) -> None:
    with open(tmp_path / "é\udcff", "wb") as handle:
        assert system.path_of_descriptor(handle.fileno()) == os.path.realpath(handle.name)
        number = handle.fileno()
    assert system.path_of_descriptor(number) is None
    for none in (-1, 2**70, b"1", None):
        assert system.path_of_descriptor(none) is None  # type: ignore[arg-type]
