"""What actors ask of Ray while they serve: who they are, and where the controller is.

The operator's side is in `services.ray_session`, the building of the application in
`services.app`. The rest of the code sees plain objects and can be tested without a cluster.
"""

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import Any, cast

from monitoring.snapshot import Snapshot
from router.control import Orders
from router.errors import CheckpointError, PlatformError, RoutingError
from services.checkpoint import read_checkpoint
from services.config import DeploymentConfig
from services.messages import (
    AttentionOrders,
    AttentionReport,
    ControllerStatus,
    DecisionStatus,
    GatewayNews,
    GatewayReport,
    ShardReport,
)
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)

CONTROLLER = "Controller"
CALL_TIMEOUT_S = 10.0
REBALANCE_TIMEOUT_S = 150.0  # placing 384 experts on 1,000 shards takes a minute
RETRY_S = 0.5


def node_name() -> str:
    """This process's Ray node, as shards and attention replicas name their host."""
    import ray

    return cast(str, ray.get_runtime_context().get_node_id())


def node_ip() -> str:
    """The address of this node in the cluster."""
    import ray

    return cast(str, ray.util.get_node_ip_address())


def tcp_host(config: DeploymentConfig) -> str:
    """Where this process listens for other hosts; empty: nowhere."""
    mode, ip = config.transport.mode, node_ip()
    is_open = mode == "tcp" or (mode == "auto" and not ip.startswith("127."))
    return ip if is_open else ""


def check_checkpoint_here(folder: Path) -> None:
    """Raise CheckpointError that names this host if the model is not there in full."""
    try:
        read_checkpoint(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"on host {node_ip()} ({socket.gethostname()}): {error} Every host needs the "
            "checkpoint in the same folder (model.path), its own copy or a shared one; "
            "python -m deploy doctor looks at all of them."
        ) from error


def replica_name() -> str:
    """Names this Serve replica's incarnation."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def is_ending(app: str) -> bool:
    """Whether the whole application is being taken away, or Serve itself is gone."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        application = serve.status().applications.get(app)
    except (RayError, RayServeException):
        return True
    return application is None or application.status.value == "DELETING"


class ControllerClient:
    """The controller as shards and attention replicas call it; it may be away for a while."""

    def __init__(self, app: str) -> None:
        from ray import serve

        self._handle = serve.get_deployment_handle(CONTROLLER, app_name=app)

    async def keys(self) -> DataPlaneKeys:
        """Keys of the data plane; waits for the controller."""
        return cast(DataPlaneKeys, await self._until_answered("keys"))

    async def report_shard(self, report: ShardReport) -> Orders:
        """Say what a shard holds; returns what it is to do."""
        return cast(Orders, await self._call("report_shard", report))

    async def report_attention(self, report: AttentionReport) -> AttentionOrders:
        """Say what a replica saw; the answer has a table if there is a newer one, after a while."""
        return cast(AttentionOrders, await self._call("report_attention", report))

    async def hear_gateway(self, report: GatewayReport) -> GatewayNews:
        """Say what went through a gateway; returns what it should know."""
        return cast(GatewayNews, await self._call("hear_gateway", report))

    async def status(self) -> ControllerStatus:
        """What the controller knows."""
        return cast(ControllerStatus, await self._call("status"))

    async def rebalance(self) -> DecisionStatus:
        """Have it place anew. Raises CapacityError if not now."""
        call = self._handle.rebalance.remote()
        return cast(DecisionStatus, await asyncio.wait_for(call, REBALANCE_TIMEOUT_S))

    async def metrics(self, timeout_s: float = CALL_TIMEOUT_S) -> Snapshot:
        """All figures. Raises what Serve raises, or TimeoutError, if the controller is away."""
        return cast(Snapshot, await asyncio.wait_for(self._call("metrics"), timeout_s))

    async def _call(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._handle, method).remote(*arguments)
        return await asyncio.wait_for(call, CALL_TIMEOUT_S)

    async def _until_answered(self, method: str) -> Any:
        while True:
            try:
                return await self._call(method)
            except Exception as error:  # Serve raises many kinds while a deployment comes up
                log.info("controller not there yet: %s", error)
                await asyncio.sleep(RETRY_S)


def controller_status(app: str) -> ControllerStatus:
    """Ask the running controller. Raises RoutingError if it does not answer."""
    return cast(ControllerStatus, _ask_controller(app, "status", CALL_TIMEOUT_S))


def rebalance(app: str) -> DecisionStatus:
    """Have the controller place anew. Raises CapacityError if not now, RoutingError as above."""
    return cast(DecisionStatus, _ask_controller(app, "rebalance", REBALANCE_TIMEOUT_S))


def drain(app: str, grace_s: float) -> int:
    """Have the gateways refuse new requests; returns how many are open when all have ended, or

    after the grace. Raises RoutingError as above.
    """
    end_s = time.monotonic() + grace_s
    while (n_open := cast(int, _ask_controller(app, "close", CALL_TIMEOUT_S))) and (
        time.monotonic() < end_s
    ):
        time.sleep(RETRY_S)
    return n_open


def _ask_controller(app: str, method: str, timeout_s: float) -> object:
    from ray import serve
    from ray.exceptions import RayTaskError

    try:
        handle = serve.get_deployment_handle(CONTROLLER, app_name=app)
        return getattr(handle, method).remote().result(timeout_s=timeout_s)
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, PlatformError):
            raise cause from None
        raise RoutingError(
            f"the controller of application {app!r} does not answer: {error}. Is it running? "
            "Look at `ray status` and at the Serve logs"
        ) from error
