"""Rows over Unix sockets, between processes of one host.

One connection for each attention replica and shard; the kernel wakes the peer itself, without the
two threads that ZeroMQ has between, and says at once when the peer is gone. The sockets lie in a
folder that only this user may enter.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from router.errors import PeerLost, WireFormatError
from router.table import ShardAddress, ShardId
from services.transport.base import (
    Answered,
    Delivery,
    Event,
    RowsAnswer,
    RowsRefusal,
    RowsRequest,
    ShardLost,
    reconnect,
)
from services.transport.direct_link import DirectLink
from services.transport.direct_port import DirectPort
from services.transport.stream import Stream

BACKLOG = 256
READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class UnixLink:
    """Attention's connections to the shards of its own host."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._streams: dict[ShardId, Stream] = {}
        self._owners: dict[int, ShardId] = {}
        self._refused: list[ShardLost] = []  # not told yet
        self._direct: DirectLink | None = None
        self._is_quiet = False  # since nothing has gone the long way, or all of it is through

    @property
    def files(self) -> tuple[int, ...]:
        """What can be waited for."""
        return tuple(self._owners)

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        reconnect(self._streams, shards, self._open, self._disconnect)

    def direct(self, shards: Sequence[ShardAddress]) -> DirectLink | None:
        """See `ShardLink.direct`."""
        if not self._is_quiet:
            if self._refused or any(not s.is_between_messages for s in self._streams.values()):
                return None
            self._is_quiet = True
        if self._direct is None or self._direct.shards is not shards:
            wanted = [address.shard_id for address in shards]
            if set(wanted) != set(self._streams):
                return None
            self._direct = DirectLink(shards, [self._streams[shard_id] for shard_id in wanted])
        return self._direct

    def _open(self, address: ShardAddress) -> None:
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            own.connect(address.ipc_endpoint)
        except OSError as error:
            own.close()
            self._refused.append(ShardLost(address.shard_id, f"not reached: {error}"))
            self._is_quiet = False
            return
        self._direct = None
        self._streams[address.shard_id] = Stream(own)
        self._owners[own.fileno()] = address.shard_id
        self._poll.register(own, READABLE)

    def send(self, shard_id: ShardId, request: RowsRequest, sent: int = 0) -> None:
        self._is_quiet = False
        stream = self._streams.get(shard_id)
        if stream is None:
            raise PeerLost(f"shard {shard_id} is not connected")
        try:
            stream.send(request, sent)
        except OSError as error:
            raise PeerLost("connection closed") from error
        if stream.is_behind:
            self._poll.modify(stream.socket, READABLE | select.POLLOUT)

    def receive(self, timeout_s: float) -> list[Event]:
        events: list[Event] = list(self._refused)
        self._refused.clear()
        self._is_quiet = False
        if self._direct is not None:
            shards = self._direct.shards
            for shard_id in [shards[index].shard_id for index in self._direct.leave()]:
                events += self._answers(shard_id, self._streams[shard_id])
        timeout_ms = 0 if events else max(0, round(timeout_s * 1000))
        for file, what in self._poll.poll(timeout_ms):
            shard_id = self._owners[file]
            stream = self._streams[shard_id]
            if what & select.POLLOUT and not _flushed(stream):
                self._poll.modify(stream.socket, READABLE)
            if what & READABLE:
                events += self._answers(shard_id, stream)
        return events

    def _answers(self, shard_id: ShardId, stream: Stream) -> list[Event]:
        events: list[Event] = []
        try:
            while (message := stream.receive()) is not None:
                if isinstance(message, RowsRequest):
                    raise WireFormatError("a shard sent a request")
                events.append(Answered(shard_id, message))
        except OSError:
            self._disconnect(shard_id)
            events.append(ShardLost(shard_id, "connection closed"))
        except WireFormatError as error:
            self._disconnect(shard_id)
            events.append(ShardLost(shard_id, str(error), is_wrong=True))
        return events

    def _disconnect(self, shard_id: ShardId) -> None:
        self._direct = None
        stream = self._streams.pop(shard_id)
        del self._owners[stream.socket.fileno()]
        self._poll.unregister(stream.socket)
        stream.close()

    def close(self) -> None:
        for shard_id in list(self._streams):
            self._disconnect(shard_id)


def _flushed(stream: Stream) -> bool:
    """Send what goes; whether something is left. A peer that is gone shows when it is read."""
    try:
        stream.flush()
    except OSError:
        return False
    return stream.is_behind


class UnixPort:
    """A shard's listening socket and the connections that came of it."""

    def __init__(self, name: str, run_dir: Path) -> None:
        """name: of the socket in `run_dir`, which is made if need be."""
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = run_dir / f"{name}.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o600)
        self._listener.listen(BACKLOG)
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._streams: dict[int, Stream] = {}
        self._peers: dict[bytes, Stream] = {}  # a file's number is used again, a peer's mark is not
        self._marks: dict[int, bytes] = {}
        self._accepted = 0
        self._direct: DirectPort | None = None
        self._is_quiet = False  # see `UnixLink`
        self._poll = select.poll()
        for file in (self._listener.fileno(), self._woken):
            self._poll.register(file, select.POLLIN)

    @property
    def endpoint(self) -> str:
        """The socket's path."""
        return str(self._path)

    @property
    def files(self) -> tuple[int, ...]:
        """What can be waited for."""
        return (self._listener.fileno(), self._woken, *self._streams)

    def direct(self) -> DirectPort | None:
        """See `RowPort.direct`."""
        if not self._is_quiet:
            if any(not stream.is_between_messages for stream in self._streams.values()):
                return None
            self._is_quiet = True
        if self._direct is None:
            others = (self._listener.fileno(), self._woken)
            self._direct = DirectPort(others, list(self._streams.values()), self._answer)
        return self._direct

    def receive(self, timeout_s: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        self._is_quiet = False
        for stream in self._direct.leave() if self._direct is not None else ():
            deliveries += self._requests(stream.socket.fileno(), stream)
        timeout_ms = 0 if deliveries else max(0, round(timeout_s * 1000))
        for file, what in self._poll.poll(timeout_ms):
            if file == self._woken:
                os.eventfd_read(file)
            elif file == self._listener.fileno():
                for new in self._accept():
                    deliveries += self._requests(new, self._streams[new])
            else:
                stream = self._streams[file]
                if what & select.POLLOUT and not _flushed(stream):
                    self._poll.modify(stream.socket, READABLE)
                if what & READABLE:
                    deliveries += self._requests(file, stream)
        return deliveries

    def _accept(self) -> list[int]:
        accepted: list[int] = []
        while True:
            try:
                connected, _ = self._listener.accept()
            except BlockingIOError:
                return accepted
            self._accepted += 1
            self._direct = None
            file, mark = connected.fileno(), str(self._accepted).encode()
            self._streams[file] = self._peers[mark] = Stream(connected)
            self._marks[file] = mark
            self._poll.register(connected, READABLE)
            accepted.append(file)

    def _requests(self, file: int, stream: Stream) -> list[Delivery]:
        deliveries: list[Delivery] = []
        try:
            while (message := stream.receive()) is not None:
                if not isinstance(message, RowsRequest):
                    raise WireFormatError("an attention replica sent an answer")
                deliveries.append(Delivery(self._marks[file], message, time.monotonic()))
        except WireFormatError as error:
            self._answer(stream, RowsRefusal(0, str(error)))
            self._drop(file)
        except OSError:  # it is gone, and needs no answers
            self._drop(file)
            return []
        return deliveries

    def wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        stream = self._peers.get(delivery.peer)
        if stream is not None:
            self._answer(stream, answer)

    def _answer(self, stream: Stream, answer: RowsAnswer | RowsRefusal, sent: int = 0) -> None:
        self._is_quiet = False
        try:
            stream.send(answer, sent)
        except (OSError, PeerLost):  # shows when it is read
            return
        if stream.is_behind:
            self._poll.modify(stream.socket, READABLE | select.POLLOUT)

    def _drop(self, file: int) -> None:
        self._direct = None
        stream = self._streams.pop(file)
        del self._peers[self._marks.pop(file)]
        self._poll.unregister(stream.socket)
        stream.close()

    def close(self) -> None:
        for file in list(self._streams):
            self._drop(file)
        self._listener.close()
        self._path.unlink(missing_ok=True)
