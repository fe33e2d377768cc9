"""What a test's command starts in place of Python: hands its arguments, environment and files to a warm server.

The server forks a process that has imported torch already, runs the script there, and says how it ended; this process
ends the same way. It is started with -I -S, and so takes no time of its own.
"""

import array
import json
import os
import signal
import socket
import sys

connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
request = json.dumps({"words": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}).encode()
files = array.array("i", [0, 1, 2]).tobytes()
connection.sendmsg([len(request).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
connection.sendall(request)
answer = connection.makefile().readline()
if not answer:
    sys.exit("the warm server is gone")
code = int(answer)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
