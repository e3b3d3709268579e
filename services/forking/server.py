"""Imports what takes long once, and forks a process for everyone who asks.

`python -m services.forking.server SOCKET [MODULE...]` runs until its parent dies. It has one
thread and starts none, so that nothing is left half done in a fork. `client` asks.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setproctitle import getproctitle

from router.errors import EngineError
from services import forking
from services.lifecycle import end_with_parent

MODULES = (
    "vllm.entrypoints.openai.api_server",
    "vllm.model_executor.layers.fused_moe.routed_experts",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "pyarrow",
    "jsonschema",
    "grpc_reflection",
)
NOT_BEFORE_THE_FORK = (
    "ray",  # keeps for good what its environment says when it is loaded, such as the job
    "numba",  # vLLM's worker does not start where it is loaded
)
MAX_MESSAGE = 1 << 20  # bytes
MAX_FILES = 250  # that can be passed with one message
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Python command line that somebody wants run."""

    arguments: Sequence[str]
    environment: dict[str, str]
    folder: str
    files: tuple[tuple[int, int], ...]  # (as received, as they are to be numbered)

    def run(self) -> None:
        """Become that process; returns when its code is through."""
        forking.is_forked = True
        os.setpgid(0, 0)  # Ray kills the whole group of a worker that died
        self._take_files()
        words = list(self.arguments)
        while words and words[0].startswith("-") and words[0] not in ("-c", "-m"):
            words.pop(0)  # -u, -B and the like, which matter only when an interpreter starts
        if words[0] == "-c":  # of vLLM's engine; Ray's workers, which are scripts, have their own
            getproctitle()  # finds the title's place, while the environment is where it was
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        _read_environment_again()
        first = str(Path(words[0]).parent) if words[0] not in ("-c", "-m") else self.folder
        further = self.environment.get("PYTHONPATH", "")
        sys.path[:1] = [first, *filter(None, further.split(os.pathsep))]
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")

    def _take_files(self) -> None:
        beyond = 1 + max((number for pair in self.files for number in pair), default=2)
        moved = [(os.dup2(got, beyond + i), number) for i, (got, number) in enumerate(self.files)]
        for got, _ in self.files:
            os.close(got)
        for high, number in moved:
            os.dup2(high, number)
            os.close(high)


def _read_environment_again() -> None:
    """For OpenMP, which read its number of threads when it was loaded."""
    torch, threads = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit():
        torch.set_num_threads(int(threads))


class ForkServer:
    """The parent of all that it forks."""

    def __init__(self, address: str) -> None:
        self._events = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        os.chmod(address, 0o600)
        self._listener.listen(BACKLOG)  # who comes early waits
        self._clients: dict[int, tuple[int, socket.socket]] = {}  # pid → (pidfd, connection)

    def serve(self) -> Wanted:
        """Never returns in the server; in every process that is forked, with what it is to be."""
        self._events.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._events.select():
                if key.fileobj is self._listener:
                    wanted = self._fork(self._listener.accept()[0])
                    if wanted is not None:
                        return wanted
                elif isinstance(key.fileobj, socket.socket):
                    self._client_died(key.data)
                else:
                    self._ended(key.data)

    def _fork(self, client: socket.socket) -> Wanted | None:
        message, files, _, _ = socket.recv_fds(client, MAX_MESSAGE, MAX_FILES)
        if not message:
            client.close()
            return None
        pid = os.fork()
        if pid == 0:
            asked = json.loads(message)
            self._leave(client)
            numbers = tuple(zip(files, asked["files"], strict=True))
            return Wanted(asked["arguments"], asked["environment"], asked["folder"], numbers)
        for file in files:
            os.close(file)
        process = os.pidfd_open(pid)
        self._clients[pid] = process, client
        self._events.register(process, selectors.EVENT_READ, pid)
        self._events.register(client, selectors.EVENT_READ, pid)
        client.send(str(pid).encode())
        return None

    def _leave(self, client: socket.socket) -> None:
        """In a fork: keep nothing of the server."""
        self._events.close()
        self._listener.close()
        client.close()
        for process, other in self._clients.values():
            os.close(process)
            other.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)

    def _client_died(self, pid: int) -> None:
        """Whoever was to be killed is; its process is what it stood for."""
        if pid in self._clients:
            signal.pidfd_send_signal(self._clients[pid][0], signal.SIGKILL)
            self._events.unregister(self._clients[pid][1])

    def _ended(self, pid: int) -> None:
        process, client = self._clients.pop(pid)
        _, status = os.waitpid(pid, 0)
        self._events.unregister(process)
        os.close(process)
        try:
            self._events.unregister(client)
            client.send(str(os.waitstatus_to_exitcode(status)).encode())
        except (KeyError, OSError):
            pass  # it died first
        client.close()


def main(address: str, *modules: str) -> None:
    """Serve until the parent dies; a forked process returns from here when it is through.

    modules: imported before the first fork (none: `MODULES`).
    """
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # of the terminal: the parent decides
    gc.disable()
    server = ForkServer(address)
    for module in modules or MODULES:
        try:
            importlib.import_module(module)
        except Exception:  # what needs it will say what is wrong; here it only saves time
            traceback.print_exc()
    found = [name for name in NOT_BEFORE_THE_FORK if name in sys.modules]
    if found:
        raise EngineError(f"vLLM imports {found}, of which no process may be forked: {MODULES}")
    gc.freeze()
    wanted = server.serve()
    gc.enable()
    wanted.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
