"""Forks processes that have imported torch already, for tests that start many scripts.

A forked process goes on below as a Python that has just imported torch would: under a trace it installs the hooks, and
it ends as Python ends, with its exit functions and its last error. That the hooks are found by a Python that starts
afresh is tested elsewhere, with a Python that does.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import random
import runpy
import socket
import sys

ended = {"status": 1}  # as an error leaves it


def leave():
    """Skip what Python does after its exit functions: to take all modules apart takes longer than a script here."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ended["status"])


atexit.register(leave)  # before every other one, so that it runs last

import numpy as np  # noqa: E402
import torch._dynamo  # noqa: E402 - every optimizer loads it

from tvgrad.integrations.measuring import neutral_hooks  # noqa: E402, F401
from tvgrad.integrations.script import hooks  # noqa: E402


def requests(address):
    """Wait for requests; return the next one's in a process of its own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended
                    pass
            continue
        listener.close()
        return connection


def received(connection):
    head, passed, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    files = array.array("i")
    files.frombytes(passed[0][2])
    size, content = int.from_bytes(head, "little"), b""
    while len(content) < size:
        content += connection.recv(size - len(content))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # What the server's own streams know of their files (whether those can be sought in) is not true of these.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    return json.loads(content)


def wait_for(child, connection):
    """End with the process that runs the script, and say how it ended."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # nobody waits any more
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


for module in sys.argv[2:]:
    importlib.import_module(module)
connection = requests(sys.argv[1])
request = received(connection)
child = os.fork()
if child:
    wait_for(child, connection)
connection.close()
os.setsid()
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["folder"])
words = request["words"]
torch.seed()
random.seed()
np.random.seed()  # noqa: NPY002
code = None
if words[0] == "-c":
    code, sys.argv, sys.path[0] = words[1], ["-c", *words[2:]], ""
else:
    sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
hooks.install()
try:
    if code is None:
        runpy.run_path(words[0], run_name="__main__")
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    ended["status"] = 0
except SystemExit as error:
    message = error.code
    ended["status"] = message if isinstance(message, int) else int(message is not None)
    raise
