"""Follows the controller beside the engine: tables in, reports out, in a thread of its own.

vLLM holds the actor's event loop while its engine starts, and the engine starts only when its
worker has a table; so whatever hands out tables must not depend on that loop.
"""

import asyncio
import logging
import threading
import time

from monitoring.totals import Account
from router.errors import EngineError
from services.attention.engine_numbers import EngineNumbers
from services.attention.feed import Stranded, TableDesk, WorkerReport
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
        self.is_ready = False  # set when the engine takes requests
        self._engine = EngineNumbers()
        self._began_s = time.monotonic()
        self.wanted_replicas = 0  # what the controller said last
        self.lost_gateways: frozenset[str] = frozenset()
        self._error: BaseException | None = None
        self._desk: TableDesk | None = None
        self._thread = threading.Thread(target=self._run, name="controller-follower", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise EngineError if the thread has ended."""
        if not self._thread.is_alive():
            raise EngineError(f"this replica no longer follows the controller: {self._error!r}")

    @property
    def stranded(self) -> Stranded | None:
        """What the engine's worker waits for now, if an expert is nowhere."""
        return None if self._desk is None else self._desk.stranded

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # the thread's top loop: check_health reports it
            self._error = error
            log.exception("controller follower died")

    async def _serve(self) -> None:
        desk = self._desk = TableDesk(self._endpoint, self._keys)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(desk.serve())
            tasks.create_task(self._follow(desk))

    def _account(self, seen: WorkerReport) -> Account:
        """What the engine's worker counted, and what vLLM counts in this process."""
        totals, states = self._engine.read()
        age_s = time.monotonic() - self._began_s
        return Account("replica", self._replica_id, age_s, {**totals, **seen.totals}, states)

    async def _follow(self, desk: TableDesk) -> None:
        handed_out = 0  # table version; the worker may adopt it later
        while True:
            seen = desk.take_report()
            report = AttentionReport(
                self._replica_id,
                seen.table_version,
                seen.lost,
                seen.wrong,
                self._account(seen),
                self.is_ready,
            )
            try:
                orders = await self._controller.report_attention(report)
                table, self.wanted_replicas = orders.table, orders.wanted_replicas
                self.lost_gateways = orders.lost_gateways
                if table is not None and table.version > handed_out:
                    await desk.publish(table)
                    handed_out = table.version
                elif table is not None:
                    await asyncio.sleep(self._retry_s)
            except Exception as error:  # traffic goes on with the last table
                log.warning("controller not reached: %s", error)
                desk.put_back(seen)
                await asyncio.sleep(self._retry_s)
