"""Runs functions in forked processes: a request starts one, the next line ends it, by a signal or by waiting.

A process is reaped here and nowhere else, after its signal was sent, so that no signal can meet another process.
"""

import json
import os
import runpy
import signal
import sys
import traceback

import torch._dynamo  # noqa: F401 - every optimizer loads it: once here, for all processes that are forked

import tvgrad.record.training_loop  # noqa: F401


def work(request: dict) -> None:
    """Run the function that a request names, with its output in a file."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's processes would ignore it
    code = 0
    try:
        runpy.run_path(request["file"])[request["function"]](*request["arguments"])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


print("ready", flush=True)
while line := sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        work(json.loads(line))
    print(pid, flush=True)
    number = int(sys.stdin.readline() or 9)
    if number:
        os.kill(pid, number)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
