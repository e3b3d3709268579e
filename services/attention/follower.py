"""Follows the controller beside the engine: tables in, reports out, in a thread of its own.

vLLM holds the actor's event loop while its engine starts, and the engine starts only when its
worker has a table; so whatever hands out tables must not depend on that loop.
"""

import asyncio
import logging
import threading

from router.errors import EngineError
from services.attention.feed import TableDesk
from services.cluster import ControllerClient
from services.messages import AttentionReport
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)


class ControllerFollower:
    """One attention replica's line to the controller."""

    def __init__(
        self,
        replica_id: str,
        controller: ControllerClient,
        *,
        endpoint: str,
        keys: DataPlaneKeys,
        retry_s: float,
    ) -> None:
        """endpoint: ipc address where the engine's worker will join."""
        self._replica_id = replica_id
        self._controller = controller
        self._endpoint = endpoint
        self._keys = keys
        self._retry_s = retry_s
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="controller-follower", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise EngineError if the thread has ended."""
        if not self._thread.is_alive():
            raise EngineError(f"this replica no longer follows the controller: {self._error!r}")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # the thread's top loop: check_health reports it
            self._error = error
            log.exception("controller follower died")

    async def _serve(self) -> None:
        desk = TableDesk(self._endpoint, self._keys)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(desk.serve())
            tasks.create_task(self._follow(desk))

    async def _follow(self, desk: TableDesk) -> None:
        while True:
            seen = desk.take_report()
            report = AttentionReport(
                self._replica_id, seen.table_version, seen.lost, seen.expert_rows
            )
            try:
                table = await self._controller.report_attention(report)
                if table is not None:
                    await desk.publish(table)
            except Exception as error:  # traffic goes on with the last table
                log.warning("controller not reached: %s", error)
                desk.put_back(seen)
                await asyncio.sleep(self._retry_s)
