"""Between an attention replica's two processes: tables go to the worker, reports come back.

The server process (a Ray actor) runs the `TableDesk`; vLLM's worker process, which knows no
Ray, joins it over a private ipc socket. Messages are msgpack.
"""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgpack
import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from monitoring.totals import Values
from router.errors import TransportTimeout
from router.table import ReplicaTable, ShardAddress, ShardId
from services.transport.keys import DataPlaneKeys, KeyPair

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 60.0


@dataclass(slots=True)
class WorkerReport:
    """What happened in a worker since its last report, and its totals."""

    table_version: int = 0
    lost: dict[ShardId, str] = field(default_factory=dict)  # not reached: shard → why
    wrong: dict[ShardId, str] = field(default_factory=dict)  # answered nonsense: shard → why
    stranded: str = ""  # what a step waits for now, because no live shard holds an expert
    totals: Values = field(default_factory=dict)  # counted since the worker's start

    def take(self, table_version: int) -> "WorkerReport":
        """The report to send; this one begins anew."""
        taken = replace(self, table_version=table_version)
        self.lost, self.wrong = {}, {}
        return taken

    def merge(self, newer: "WorkerReport") -> None:
        """Add a later report of the same worker."""
        self.table_version = newer.table_version
        self.stranded = newer.stranded
        self.lost.update(newer.lost)
        self.wrong.update(newer.wrong)
        self.totals = newer.totals or self.totals


@dataclass(frozen=True, slots=True)
class Stranded:
    """A step that waits for experts that no live shard holds."""

    what: str
    since_s: float  # monotonic clock


class TableFeed:
    """The worker's end; never waits except where it says so."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def join(self) -> DataPlaneKeys | None:
        """Say hello; returns the keys of the data plane. Waits for the server process."""
        self._socket.send(msgpack.packb({"kind": "hello"}))
        deadline_s = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._socket.poll(1000):
                message = msgpack.unpackb(self._socket.recv())
                if message["kind"] == "welcome":
                    return _unpack_keys(message["keys"])
        raise TransportTimeout(
            f"the server process did not answer on {self._endpoint} within {JOIN_TIMEOUT_S:.0f} s"
        )

    def poll(self) -> ReplicaTable | None:
        """The newest table that has come in since the last call."""
        newest: ReplicaTable | None = None
        while self._socket.poll(0):
            message = msgpack.unpackb(self._socket.recv())
            if message["kind"] == "table":
                newest = unpack_table(message["table"])
        return newest

    def wait(self, timeout_s: float) -> ReplicaTable | None:
        """As `poll`, but waits up to `timeout_s` for something to come in."""
        self._socket.poll(round(timeout_s * 1000))
        return self.poll()

    def report(self, report: WorkerReport) -> None:
        """Tell the server process what happened."""
        message = {
            "kind": "report",
            "table_version": report.table_version,
            "lost": dict(report.lost),
            "wrong": dict(report.wrong),
            "stranded": report.stranded,
            "totals": [(key, _pack_array(array)) for key, array in report.totals.items()],
        }
        try:
            self._socket.send(msgpack.packb(message), flags=zmq.DONTWAIT)
        except zmq.Again:
            log.warning("report dropped: the server process does not read")


class TableDesk:
    """The server process's end: hands the current table to whoever joins."""

    def __init__(self, endpoint: str, keys: DataPlaneKeys | None) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(endpoint)
        self._keys = keys
        self._workers: set[bytes] = set()
        self._table: ReplicaTable | None = None
        self._pending = WorkerReport()
        self.stranded: Stranded | None = None  # read by other threads

    async def serve(self) -> None:
        """Run until cancelled."""
        while True:
            worker, raw = await self._socket.recv_multipart()
            message = msgpack.unpackb(raw)
            if message["kind"] == "hello":
                self._workers.add(worker)
                keys = None if self._keys is None else asdict(self._keys)
                await self._send(worker, {"kind": "welcome", "keys": keys})
                if self._table is not None:
                    await self._send_table(worker, self._table)
            elif message["kind"] == "report":
                self._take(message)

    async def publish(self, table: ReplicaTable) -> None:
        """Hand a new table to every worker."""
        self._table = table
        for worker in self._workers:
            await self._send_table(worker, table)

    def take_report(self) -> WorkerReport:
        """What the workers reported since the last call."""
        return self._pending.take(self._pending.table_version)

    def put_back(self, report: WorkerReport) -> None:
        """A report that did not reach the controller; it goes out with the next."""
        report.merge(self._pending)
        self._pending = report

    def _take(self, message: dict[str, Any]) -> None:
        report = WorkerReport(
            message["table_version"],
            {ShardId(s): reason for s, reason in message["lost"].items()},
            {ShardId(s): reason for s, reason in message["wrong"].items()},
            message["stranded"],
            {tuple(key): _unpack_array(array) for key, array in message["totals"]},
        )
        self._pending.merge(report)
        if not report.stranded:
            self.stranded = None
        else:
            since_s = self.stranded.since_s if self.stranded else time.monotonic()
            self.stranded = Stranded(report.stranded, since_s)

    async def _send_table(self, worker: bytes, table: ReplicaTable) -> None:
        await self._send(worker, {"kind": "table", "table": pack_table(table)})

    async def _send(self, worker: bytes, message: dict[str, Any]) -> None:
        await self._socket.send_multipart([worker, msgpack.packb(message)])

    def close(self) -> None:
        """Stop listening."""
        self._socket.close(0)


def pack_table(table: ReplicaTable) -> dict[str, Any]:
    """A table as msgpack can carry it."""
    return {
        "version": table.version,
        "shards": [asdict(a) for a in table.shards],
        "holders": _pack_array(table.holders),
        "counts": _pack_array(table.counts),
    }


def unpack_table(packed: dict[str, Any]) -> ReplicaTable:
    """The inverse of `pack_table`; arrays are read-only."""
    return ReplicaTable(
        packed["version"],
        tuple(ShardAddress(**a) for a in packed["shards"]),
        _unpack_array(packed["holders"]),
        _unpack_array(packed["counts"]),
    )


def _pack_array(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def _unpack_array(packed: dict[str, Any]) -> NDArray[Any]:
    return np.frombuffer(packed["data"], packed["dtype"]).reshape(packed["shape"])


def _unpack_keys(packed: dict[str, Any] | None) -> DataPlaneKeys | None:
    if packed is None:
        return None
    return DataPlaneKeys(**{role: KeyPair(**pair) for role, pair in packed.items()})


def describe_missing(table: ReplicaTable | None) -> str:
    """What a table lacks, for a log line."""
    if table is None:
        return "the controller has not published a table yet"
    there = int(np.count_nonzero(table.counts))
    return (
        f"table_version={table.version} shards={len(table.shards)} "
        f"experts_with_a_replica={there}/{table.counts.size}"
    )
