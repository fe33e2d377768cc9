"""Processes that torchrun started: the first runs the command, the others share its passes over the data."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from tvgrad.errors import TvgradError
from tvgrad.system import is_alive

if TYPE_CHECKING:
    from tvgrad.problem.crew import Crew

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

TOGETHER = timedelta(minutes=10)
"""Within this time of one another processes must start; torchrun waits as long for other machines."""

FIRST = "tvgrad/first"
"""The key by which the second process knows where the first one is."""
SETTLED = 0.5
"""So many seconds after a connection is lost torchrun has noticed which process has ended."""

_CREWS: list[Crew] = []
"""The crew of this process, once there is one."""


@contextmanager
def crew_of_launcher() -> Generator[Crew | None]:
    """Join the processes that torchrun started.

    Yields:
        The crew; None where this process was started alone.

    Raises:
        TvgradError: the processes do not find each other.
    """
    if not all(os.environ.get(name) for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
        yield None
        return
    import torch
    from torch import distributed

    if not distributed.is_available():
        raise TvgradError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, and this PyTorch was built without "
            "torch.distributed: start the command alone, or install a PyTorch that has it"
        )
    from tvgrad.problem.crew import Crew
    from tvgrad.problem.ranks import LostRank

    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpus = torch.cuda.is_available() and distributed.is_nccl_available() and local < torch.cuda.device_count()
    if on_gpus:
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=TOGETHER)
        # Between two passes over the data the first process may train for hours; a lost one is noticed at once.
        group = distributed.new_group(timeout=timedelta(days=7))
        first = _first(distributed.get_rank() == 0)
    except (RuntimeError, ValueError) as error:
        raise TvgradError(_apart(str(error).splitlines()[0])) from error
    assert group is not None
    crew = Crew(group)
    _CREWS.append(crew)
    told_to_end = signal.signal(signal.SIGTERM, _end)
    lost = False
    try:
        yield crew
    except TvgradError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with a sentence
        lost = isinstance(error, LostRank)
        if not crew.leads and not (lost and _is_second_and_first_is_gone(first)):
            _leave(error.exit_code)  # the first process says it
        raise
    finally:
        if crew.leads and not lost:
            crew.end()
    signal.signal(signal.SIGTERM, told_to_end)
    if not crew.leads:
        _leave(0)


def _end(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - as signals are handled
    """End by an error: torchrun ends all processes where one has ended, before they can say what they know."""
    from tvgrad.problem.ranks import ENDED, LostRank

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise LostRank(ENDED)


def _is_second_and_first_is_gone(first: str) -> bool:
    """Whether nobody else says what happened, as far as can be seen from here."""
    from torch import distributed

    if distributed.get_rank() != 1:
        return False
    host, process = first.rsplit(" ", 1)
    time.sleep(SETTLED)
    return host != socket.gethostname() or not is_alive(int(process))


def _first(leads: bool) -> str:
    """Host and number of the first process."""
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    if leads:
        store.set(FIRST, f"{socket.gethostname()} {os.getpid()}")
    return str(store.get(FIRST).decode())


def _apart(reason: str) -> str:
    """Say why processes do not find each other."""
    if "timed out" in reason.lower() or "timeout" in reason.lower():
        return (
            f"not all {os.environ['WORLD_SIZE']} processes of torchrun came within {TOGETHER.total_seconds() / 60:g} "
            f"minutes ({reason.rstrip('.')}): start all of them at the same time, with one MASTER_ADDR and MASTER_PORT"
        )
    return f"the processes of torchrun do not find each other: {reason}"


def leave_crew(code: int) -> None:
    """End this process, if it was one of several, with all that it had to say already said.

    Args:
        code: its exit code.
    """
    if _CREWS:
        _leave(code)


def _leave(code: int) -> NoReturn:
    """End at once: gloo sometimes aborts a process that takes its leave the usual way after its peers."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
