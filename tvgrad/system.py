"""What operating systems differ in: every call that POSIX systems alone have is made here, and nowhere else.

Files are flushed, replaced and read at a place; a process is asked for and ended; a command is started and gets the
signals of the one that started it. Each function either does its work on Linux, macOS and Windows, or says in its
error that the system cannot. Linux is what the tests run on; what is said of the other two was read, not run.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl
    import resource

_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag with which no link is opened; where there is none, what is opened is looked at before and after."""
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _COMMON
"""Flags of a file that is read: a pipe in its place does not wait for a writer."""
WRITE = os.O_WRONLY | NO_LINK | _COMMON
"""Flags of a file that is written in its place, never through a link."""
REPLACES = 50
"""Tries of a replacement on Windows, where a reader that has the old file open is in the way; 20 ms lie between two."""
_ONE_READER = threading.Lock()
TOGETHER = 0.1
"""Seconds in which `timeout`, say, signals first a process and then its group."""

_FORWARDED: tuple[int, ...] = ()
if sys.platform != "win32":
    _FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def why_commands_are_not_watched() -> str | None:
    """Say why no command can be started and watched on this system.

    Returns:
        A clause; None where it can be.
    """
    if sys.platform == "win32":
        return "Windows has no signals and no process groups to pass on to it"
    return None


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Windows opens no folders; it keeps their names in its own journal.

    Args:
        path: the file or the folder.
    """
    if sys.platform == "win32" and path.is_dir():
        return
    # Windows flushes what may be written alone.
    descriptor = os.open(path, os.O_RDWR | _COMMON if sys.platform == "win32" else os.O_RDONLY)
    try:
        flush_descriptor(descriptor)
    finally:
        os.close(descriptor)


def flush_descriptor(descriptor: int) -> None:
    """Wait until what was written to a descriptor is on the disk.

    Args:
        descriptor: of a file or a folder.
    """
    if sys.platform == "darwin":  # there, fsync leaves it in the disk's own cache
        with suppress(OSError):  # a network's disk, or a folder, may not know this one
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another.

    Args:
        source: the file.
        target: its new name.

    Raises:
        PermissionError: it may not be replaced, or a reader has had it open all the while.
    """
    for left in reversed(range(REPLACES if sys.platform == "win32" else 1)):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(0.02)


def read_at(descriptor: int, into: memoryview, position: int) -> int:
    """Read a part of a file into memory, without a move of the place at which others read.

    Windows can only move it: there, one thread reads at a time.

    Args:
        descriptor: of the file.
        into: where the bytes go.
        position: of the first byte in the file.

    Returns:
        How many were read; 0 at the end of the file.
    """
    if sys.platform == "win32":
        with _ONE_READER:
            os.lseek(descriptor, position, os.SEEK_SET)
            part = os.read(descriptor, min(len(into), 1 << 24))
        into[: len(part)] = part
        return len(part)
    return os.preadv(descriptor, [into], position)


def path_of_descriptor(descriptor: int) -> str | None:
    """Tell which file a descriptor of this process is of.

    Args:
        descriptor: its number.

    Returns:
        The path by which the system knows it (of a pipe, a name that is no path); None where no file is open under the
        number, or the system does not tell.
    """
    with suppress(OSError, OverflowError, TypeError, ValueError):
        if sys.platform == "darwin":
            return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return os.readlink(f"/proc/self/fd/{descriptor:d}")
    return None


def free_memory() -> float:
    """Memory that is free.

    Returns:
        Bytes; infinity where the system does not tell.
    """
    if sys.platform == "win32":
        return math.inf
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return math.inf


def is_alive(process: int) -> bool:
    """Whether a process of this user is there.

    Args:
        process: its number.

    Returns:
        True where it cannot be asked: on Windows, the question would end it.
    """
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def is_the_users(path: Path) -> bool:
    """Say whether a file or folder is the user's, and nobody else may write to it.

    Args:
        path: the file or the folder; a link is not followed, and nobody's.

    Returns:
        Whether it is; on Windows, whose owners are not asked for, whether it is no link.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return False
    return sys.platform == "win32" or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def end_group(process: int) -> None:
    """End a process that was started in a session of its own, and all that it has started.

    Launchers of distributed training put each worker in a session of its own: on Linux they are ended, too. Nothing
    is asked to end itself, because what a script does then, saving a checkpoint say, must not happen.

    Args:
        process: its number.
    """
    started = _started_by(process)
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            os.kill(process, signal.SIGTERM)
        else:
            os.killpg(process, signal.SIGKILL)
    if sys.platform != "win32":
        for one in started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)


def _started_by(process: int) -> list[int]:
    """The processes that a process has started, and theirs; none where the system does not list them in files."""
    children: dict[int, list[int]] = {}
    for told in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # the name, in parentheses, may hold spaces and parentheses
            parent = int(told.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(told.parent.name))
    found, waiting = list[int](), [process]
    while waiting:
        waiting = [child for one in waiting for child in children.get(one, ())]
        found += waiting
    return found


def end_by(number: int) -> None:
    """End this process by a signal, without a file of its memory; returns where that does not end it.

    Args:
        number: of the signal.
    """
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)


def run_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Start a command with the usual signals, pass on those that this process gets, and wait for its end.

    Args:
        command: its words.
        environment: its variables.

    Returns:
        Its exit code; minus the number of the signal that ended it.

    Raises:
        OSError: it cannot be started.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, str(why_commands_are_not_watched()), command[0])
    watched = {*_FORWARDED, signal.SIGCHLD}
    # Where its parent ignores it, the system would tell nothing of a child's end, and keep no status.
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    probe = GroupSignalProbe(_FORWARDED)
    try:
        # Python ignores these two, and a child would inherit that; a shell's child has the defaults.
        usual = [signal.SIGPIPE, signal.SIGXFSZ]
        child = os.posix_spawnp(command[0], list(command), environment, setsigmask=before, setsigdef=usual)
        while True:
            told = signal.sigwait(watched)
            if told != signal.SIGCHLD:
                _pass_on(told, child, probe)
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
    finally:
        probe.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if inherited is None else inherited)


def _pass_on(number: int, child: int, probe: GroupSignalProbe) -> None:
    """Send the command a signal that it has not got yet."""
    if sys.platform == "win32":
        return
    arrived = {number}
    time.sleep(TOGETHER)  # they are blocked, and wait
    while waiting := signal.sigpending().intersection(_FORWARDED):
        arrived.add(signal.sigwait(waiting))
    for one in sorted(arrived - probe.heard()):
        os.kill(child, one)


class GroupSignalProbe:
    """A process of the same group that blocks the signals in question, so that the kernel keeps them pending on it.

    It tells a signal sent to this process alone from one that its whole process group got. Job schedulers, `timeout`
    and terminals signal whole groups. The command is in the group and has such a signal already; passed on, it would
    come twice, and many scripts take a second interrupt for an order to drop everything.
    """

    def __init__(self, signals: Collection[int]) -> None:
        """Start it. The caller has the signals blocked.

        Args:
            signals: those in question.
        """
        self._signals = signals
        self._process = _asleep()

    def heard(self) -> set[int]:
        """Say which of the signals the group got since the last call.

        Returns:
            Their numbers.
        """
        try:
            lines = Path(f"/proc/{self._process}/status").read_text(encoding="ascii").splitlines()
        except OSError:  # no such file system: nothing is known, and everything is passed on
            return set()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        pending = {number for number in self._signals if any(mask >> (number - 1) & 1 for mask in masks)}
        if pending:  # they stay pending on this one for ever
            self.close()
            self._process = _asleep()
        return pending

    def close(self) -> None:
        """End it."""
        if sys.platform == "win32":
            return
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)


def _asleep() -> int:
    """A process that does nothing, holds no file open, and ends soon after this one."""
    if sys.platform == "win32":
        return -1
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    try:
        os.closerange(0, 1024)
        while os.getppid() == parent:
            time.sleep(1)
    finally:
        os._exit(0)


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    Returns:
        Bytes, by the kernel's own count where it tells (others charge a process with the peak of the one that started
        it); 0 where the system does not tell.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
