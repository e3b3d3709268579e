"""What actors ask of Ray while they serve: who they are, and where the controller is.

The operator's side is in `services.ray_session`, the building of the application in
`services.app`. The rest of the code sees plain objects and can be tested without a cluster.
"""

import asyncio
import logging
from typing import Any, cast

from router.errors import PlatformError, RoutingError
from router.moves import LoadExpert
from router.table import ReplicaTable
from services.messages import (
    AttentionReport,
    ControllerStatus,
    ShardReport,
)
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)

CONTROLLER = "Controller"
CALL_TIMEOUT_S = 10.0
RETRY_S = 0.5


def node_name() -> str:
    """This process's Ray node, as shards and attention replicas name their host."""
    import ray

    return cast(str, ray.get_runtime_context().get_node_id())


def node_ip() -> str:
    """The address of this node in the cluster."""
    import ray

    return cast(str, ray.util.get_node_ip_address())


def replica_name() -> str:
    """Names this Serve replica's incarnation."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


class ControllerClient:
    """The controller as shards and attention replicas call it; it may be away for a while."""

    def __init__(self, app: str) -> None:
        from ray import serve

        self._handle = serve.get_deployment_handle(CONTROLLER, app_name=app)

    async def keys(self) -> DataPlaneKeys:
        """Keys of the data plane; waits for the controller."""
        return cast(DataPlaneKeys, await self._until_answered("keys"))

    async def report_shard(self, report: ShardReport) -> tuple[LoadExpert, ...]:
        """Say what a shard holds; returns what it is to load."""
        return cast(tuple[LoadExpert, ...], await self._call("report_shard", report))

    async def report_attention(self, report: AttentionReport) -> ReplicaTable | None:
        """Say what a replica saw; returns a table if there is a newer one, after a while."""
        return cast(ReplicaTable | None, await self._call("report_attention", report))

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
    from ray import serve

    try:
        handle = serve.get_deployment_handle(CONTROLLER, app_name=app)
        return cast(ControllerStatus, handle.status.remote().result(timeout_s=CALL_TIMEOUT_S))
    except PlatformError:
        raise
    except Exception as error:
        raise RoutingError(
            f"the controller of application {app!r} does not answer: {error}. Is it running? "
            "Look at `ray status` and at the Serve logs"
        ) from error
