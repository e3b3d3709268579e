"""Stands in for the Python interpreter: has the fork server run the command line, and waits.

Run as a script, with nothing imported that takes time: client.py SOCKET PYTHON ARGUMENT...
Whoever started it sees what it would see of the interpreter: the exit code, the standard streams,
inherited files; and if it is killed, so is the process that it stands for. Without a server it
becomes the interpreter itself.
"""

import ctypes
import json
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def main(address: str, python: str, *arguments: str) -> int:
    """Returns the exit code of the process."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [each for each in files if _is_open(each)]
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.connect(address)
    except OSError:
        os.execv(python, [python, *arguments])
    wanted = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": files,
    }
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    socket.send_fds(server, [json.dumps(wanted).encode()], files)
    for file in files:
        os.close(file)  # only the process itself is to hold them
    pid = int(server.recv(100) or 0)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    status = server.recv(100)
    if not status:
        return 1  # the server has died, and nobody knows what became of the process
    code = int(status)
    if code < 0:  # ended by a signal
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:  # the one by which the folder was read
        return False
    return True


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # the standard streams are closed
