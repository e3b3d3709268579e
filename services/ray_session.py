"""The operator's calls of Ray: start or join one, ask what runs, and stop it.

What actors ask of Ray while they serve is in `services.cluster`; how a local Ray is kept to this
machine and this user, in `services.local_ray`.
"""

import math
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any, cast

from router.errors import ConfigError, EngineError, RoutingError
from services.cluster import CONTROLLER, controller_status
from services.config import DeploymentConfig
from services.forking.launch import is_used, start_fork_server
from services.local_ray import (
    LOOPBACK,
    auth_mode,
    prepare_local_ray,
    use_auth_mode,
    use_loopback,
    worker_hook,
)
from services.paths import RAY_LOGS, run_dir

CONNECT_TIMEOUT_S = 3.0
LOOK_AT_LOGS = f"Look at Ray's logs under {RAY_LOGS}."


@dataclass(frozen=True, slots=True)
class RayAccess:
    """What another process needs in order to reach the same Ray."""

    address: str  # of its GCS, host:port
    auth_mode: str  # RAY_AUTH_MODE; the token itself is in a file of this user


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One Serve deployment of the application."""

    name: str
    status: str
    replicas: int
    message: str  # what Serve has to say if it is not healthy


def start_ray(config: DeploymentConfig) -> RayAccess:
    """Start Ray on this machine, or join the cluster at `ray.address`; then start Serve's HTTP.

    Raises ConfigError if there is nothing to join, and EngineError if Ray does not start.
    """
    if config.ray.address is not None:
        check_reachable(config.ray.address)
    try:
        if config.ray.address is None:
            prepare_local_ray()
        if is_used(config):
            start_fork_server(run_dir(config))
        return _init(config)
    except Exception as error:  # the bare class, too, is what Ray raises: if a node is late
        if config.ray.address is None:
            raise EngineError(f"Ray did not start: {error!r}. {LOOK_AT_LOGS}") from error
        raise ConfigError(
            f"the Ray cluster at {config.ray.address} (ray.address) cannot be joined: {error!r}. "
            "Is it up (ray status)? If it asks for a token, set RAY_AUTH_MODE=token here too. Or "
            "leave ray.address out, to start Ray here."
        ) from error


def _init(config: DeploymentConfig) -> RayAccess:
    import ray
    from ray import serve

    options: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": False,
        "namespace": config.name,
    }
    if config.ray.address is None:
        options |= {
            "num_cpus": config.ray.num_cpus or wanted_cpus(config),
            "include_dashboard": False,
            "_node_ip_address": LOOPBACK,
            "runtime_env": {"worker_process_setup_hook": worker_hook()},
        }
    ray.init(config.ray.address or "local", **options)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.gateway.host, "port": config.gateway.port},
    )
    return RayAccess(str(ray.get_runtime_context().gcs_address), auth_mode())


def wanted_cpus(config: DeploymentConfig) -> int:
    """Ray CPUs that make room for every actor of the deployment and for Serve's own."""
    attention, pool = config.attention, config.pool
    actors = attention.most_replicas * attention.cpus + pool.most_shards * pool.cpus
    return max(math.ceil(actors) + 1, os.cpu_count() or 1)


def check_reachable(address: str) -> None:
    """Raise ConfigError if nobody listens at host:port: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto": Ray looks it up by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nobody listens at the Ray address {address}: {error}. Start a cluster there with "
            "ray start --head, correct ray.address, or leave it out to start Ray here."
        ) from error


def prepare_access(access: RayAccess) -> None:
    """Call it before Ray is imported, which settles how it proves who it is."""
    use_auth_mode(access.auth_mode)
    if access.address.startswith("127."):
        use_loopback()


def connect(access: RayAccess) -> None:
    """Join a running cluster in order to ask it, in a process that may be killed.

    Ray tries for minutes if the cluster is half dead, and does not hear signals meanwhile.
    Raises ConfigError if there is none.
    """
    check_reachable(access.address)
    import ray

    ray.init(access.address, log_to_driver=False, configure_logging=False)


def cluster_resources() -> dict[str, float]:
    """What the whole cluster offers, by Ray's names: CPU, GPU."""
    import ray

    return cast(dict[str, float], ray.cluster_resources())


def deployment_states(app: str) -> tuple[DeploymentState, ...]:
    """What Serve says of the application's parts; none if it does not know the application."""
    application = _application(app)
    if application is None:
        return ()
    return tuple(
        DeploymentState(
            name, str(info.status.value), sum(info.replica_states.values()), str(info.message)
        )
        for name, info in application.deployments.items()
    )


def is_ready(app: str) -> bool:
    """Whether every deployment runs. Raises EngineError if Serve has given up on one."""
    application = _application(app)
    if application is None:
        return False
    state = str(application.status.value)
    if state in ("DEPLOY_FAILED", "UNHEALTHY"):
        problems = [
            f"{state.name}: {state.message}"
            for state in deployment_states(app)
            if state.status != "HEALTHY" and state.message
        ]
        raise EngineError(
            f"the application did not start: {'; '.join(problems) or application.message}"
        )
    return state == "RUNNING"


def app_progress(app: str) -> list[str]:
    """What the application is waiting for, one line each."""
    states = deployment_states(app)
    lines = [f"{state.name}: {state.status.lower()}" for state in states]
    if any(state.name == CONTROLLER and state.status == "HEALTHY" for state in states):
        try:
            known = controller_status(app)
        except RoutingError:
            lines.append("table: the controller does not answer yet")
        else:
            lines.append(f"table version {known.table_version}: {known.waiting_for or 'complete'}")
    return lines


def shutdown(config: DeploymentConfig, *, drain: bool) -> None:
    """Stop the application, and the Ray that this process started; one that was joined stays.

    drain: let requests end first, as Serve does it; takes seconds even if there are none.
    """
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return  # a start that was interrupted early, perhaps within the import
    from ray import serve

    if config.ray.address is not None:  # others may be served there too
        serve.delete(config.name)
    elif drain:
        serve.shutdown()
    ray.shutdown()


def delete_app(app: str) -> None:
    """Take one application off a cluster; nothing else there is touched."""
    from ray import serve

    serve.delete(app)


def _application(app: str) -> Any:
    """What Serve knows of the application, or None."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        return serve.status().applications.get(app)
    except RayError as error:
        raise EngineError(f"Ray Serve does not answer: {error}. {LOOK_AT_LOGS}") from error
