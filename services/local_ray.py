"""Keeps a Ray that is started on this machine to this machine and to this user.

Without this, Ray 2.60 listens on every interface, and writes its token where others may read it.
What is set here goes into the environment, which is the only way to reach all of Ray's processes:
the one place beside `services.config` that touches it. `services.ray_session` does the starting.
"""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

LOOPBACK = "127.0.0.1"
AUTH_MODE = "RAY_AUTH_MODE"
OTHER_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # where the operator may keep one instead

ENVIRONMENT = {
    # The switch that makes Ray call this machine 127.0.0.1, and listen nowhere else; its name is
    # of the systems where that is the default. `_node_ip_address` is overruled without it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "VLLM_HOST_IP": LOOPBACK,  # the same for vLLM's engine, whatever it has to say to itself
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve looks after a handful of actors here: its loop need not run ten times a second, nor
    # each of its processes hand over counters as often. Idle, that was a tenth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Ray's workers run at 15 otherwise, the engine's own process and everybody else's at 0. On a
    # machine that is fully used Serve's proxy and the gateway then get no turn to refuse anybody.
    "RAY_worker_niceness": "0",
}


PROXY_HOOK = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "services.gateway.edge.middlewares")
"""What Serve's HTTP proxies call when they start; an operator's own is left."""


def prepare_local_ray() -> None:
    """Before `ray.init`: loopback only, and a token that only this user can read."""
    use_loopback()
    os.environ.setdefault(*PROXY_HOOK)
    if os.environ.get(AUTH_MODE, "token").lower() == "token":
        make_private_token(Path.home() / ".ray" / "auth_token")


def use_loopback() -> None:
    """For those that start a local Ray, and those that talk to one."""
    os.environ.update(ENVIRONMENT)
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # if Ray was imported before


def make_private_token(path: Path) -> None:
    """Do what Ray does, but for this user only; close a token that Ray left open to others."""
    if any(os.environ.get(name) for name in OTHER_TOKENS):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(unfinished, path)  # fails if there is one, which then stays
        finally:
            unfinished.unlink()
    if path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def auth_mode() -> str:
    """What Ray has settled on in this process; another one must be told to reach the same Ray."""
    return os.environ.get(AUTH_MODE, "")


def use_auth_mode(mode: str) -> None:
    """Before `ray.init`: Ray guesses only where it is not given an address."""
    if mode:
        os.environ[AUTH_MODE] = mode


def worker_hook() -> Callable[[], None]:
    """Run by each of Ray's worker processes at its start, for Serve's replicas.

    Their gRPC server for each other has a fixed address: every interface. It asks for the token,
    but nobody outside has business there. A closure, so that workers need not import this module.
    """

    def listen_on_loopback() -> None:
        from ray._common import tls_utils

        add_port = tls_utils.add_port_to_grpc_server

        def add_local_port(server: object, address: str) -> object:
            return add_port(server, address.replace("[::]:", "127.0.0.1:"))

        tls_utils.add_port_to_grpc_server = add_local_port

    return listen_on_loopback
