"""Injects one fault at a time into what writes a run, at every call that changes files, and looks what is left.

Run as a program with `faults.so` loaded before libc: `inject.py WORKLOADS FOLDER EVERY FIRST` tries every EVERY-th
pair of a point and a fault and prints what it found as JSON. Each trial is a fork of this process.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tests.faults.workloads import WORKLOADS, forked
from tvgrad.store import ledger

FAIL, FAIL_ON, SHORT, KILL_BEFORE, KILL_AFTER, KILL_HALF = range(6)
FAULTS = {
    "EIO": (FAIL, errno.EIO),
    "EACCES": (FAIL, errno.EACCES),
    "EINTR": (FAIL, errno.EINTR),
    "full from here on": (FAIL_ON, errno.ENOSPC),
    "read-only from here on": (FAIL_ON, errno.EROFS),
    "short write": (SHORT, 0),
    "killed before": (KILL_BEFORE, 0),
    "killed after": (KILL_AFTER, 0),
    "killed half-way": (KILL_HALF, 0),
}
HARMLESS = ("EINTR", "short write")

library = ctypes.CDLL(None)
library.fault_name.restype = ctypes.c_char_p
library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
library.fault_calls.restype = ctypes.c_long


def applies(fault: str, call: str) -> bool:
    if fault in ("short write", "killed half-way"):
        return call == "write"
    return fault != "EINTR" or call in ("write", "open", "fsync")


def trial(
    workload: Any, folder: Path, calls: list[str], point: int, fault: tuple[int, int]
) -> tuple[int, str, list[str]]:
    """Run the workload with a fault at a point, and look at what it leaves: exit status, words, problems."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    root, log, found = folder / "run", folder.parent / "log", folder.parent / "found"
    workload.place(root)
    reader, workload.said = os.pipe()
    mode, code = fault

    def work() -> int:
        library.fault_arm(str(folder).encode(), point, mode, code)
        return int(workload.work(root))

    status = forked(work, log)
    os.close(workload.said)
    said = os.read(reader, 100)
    os.close(reader)
    text = log.read_text(errors="replace")
    problems: list[str] = []

    def check() -> int:
        own: list[str] = []
        workload.check(root, said, status == 0 and mode < KILL_BEFORE, own)
        removable = code != errno.EROFS and calls[point - 1] != "unlink"
        if status >= 0 and removable and [*folder.rglob("*.tmp"), *folder.rglob(".tmp*")]:
            own.append(f"temporary files are left: {[path.name for path in folder.rglob('.*')]}")
        found.write_text(json.dumps(own))
        return 0

    if hasattr(workload, "judge") and status >= 0:
        problems += workload.judge(status, text, root)
    elif status >= 0:
        one = text.count("\n") == 1 and text.startswith("Error: ")
        if "Traceback" in text or status not in (0, 1, 2) or (status and not one) or (not status and text):
            problems.append(f"exit code {status} and {text!r}")
    found.write_text('["it was not looked at"]')
    if forked(check, folder.parent / "check") != 0:
        problems.append(f"the check failed: {(folder.parent / 'check').read_text()[-1500:]}")
    else:
        problems += json.loads(found.read_text())
    return status, text, problems


def tried(name: str, folder: Path, every: int, first: int) -> dict[str, Any]:
    """Try faults at the points of a workload; the counts, and each trial that went wrong."""
    ledger.WHOLE = 1  # the journal and its folding, too
    torch.set_num_threads(1)
    workload = WORKLOADS[name](folder)
    counted = folder / "counted"

    def count() -> int:
        (counted / "run").parent.mkdir(exist_ok=True)
        workload.place(counted / "run")
        _, workload.said = os.pipe()
        library.fault_arm(str(counted).encode(), -1, FAIL, 0)
        status = int(workload.work(counted / "run"))
        calls = [library.fault_name(number).decode() for number in range(1, library.fault_calls() + 1)]
        (folder / "calls").write_text(json.dumps(calls))
        return status

    assert forked(count, folder / "log") == 0, (folder / "log").read_text()
    calls = json.loads((folder / "calls").read_text())
    pairs = [(point, fault) for point, call in enumerate(calls, 1) for fault in FAULTS if applies(fault, call)]
    failures, ends, sentences = [], collections.Counter(), collections.Counter()
    chosen = pairs[first::every]
    for number, (point, fault) in enumerate(chosen, 1):
        status, text, problems = trial(workload, folder / "trial", calls, point, FAULTS[fault])
        if fault in HARMLESS and status != 0:
            problems.append(f"exit code {status}")
        ends["killed" if status == -signal.SIGKILL else status] += 1
        if status > 0 or "tvgrad:" in text:
            sentences[text.strip().replace(str(folder), "")[-300:]] += 1
        new = [f"{fault} at {calls[point - 1]} {point}: {problem}" for problem in problems]
        failures += new
        if new or number % 20 == 0:  # what a run that is cut off has tried
            counts = f"{name}: {number} of {len(chosen)} faults tried, {len(failures)} failures"
            print(counts, *new, sep="\n", file=sys.stderr, flush=True)
    return {
        "workload": name,
        "points": len(calls),
        "calls": dict(collections.Counter(calls)),
        "faults": len(chosen),
        "of": len(pairs),
        "ends": {str(end): number for end, number in ends.items()},
        "sentences": dict(sentences.most_common(20)),
        "failures": failures,
    }


if __name__ == "__main__":
    for chosen in sys.argv[1].split(","):
        place = Path(sys.argv[2]) / chosen
        place.mkdir()
        child = os.fork()  # so that one finds nothing of what another did
        if child == 0:
            print(json.dumps(tried(chosen, place, int(sys.argv[3]), int(sys.argv[4]))), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"{chosen} could not be tried")
