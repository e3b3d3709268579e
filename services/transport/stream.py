"""Whole messages through one connected socket that never blocks; `unix` has the two ends."""

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from router.errors import PeerLost
from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.wire import HEAD, MAX_BYTES, Buffer, decode, encode, part_sizes

SEND_BUFFER = 4 << 20  # bytes; Linux grants net.core.wmem_max, what is beyond waits here
PATIENCE_S = 0.02  # for a peer that is reading a message larger than that
SMALLEST_BODY = 4096  # bytes that are read with a head, so that most messages take one call
Message = RowsRequest | RowsAnswer | RowsRefusal


class Stream:
    """Whole messages through one connected socket; only sending waits, and not for long."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._unsent: deque[memoryview] = deque()
        self._head = memoryview(bytearray(HEAD.size))
        self._body = _room(0)  # of the message that is read, and what has come with it
        self._sizes: tuple[int, ...] | None = None  # of its parts, once its head has come
        self._got = 0  # bytes, from the first one of the head on
        self._is_drained = False  # the last reading took all that there was

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """As much as goes while the peer reads; what is left goes with `flush`.

        Raises OSError if the peer is gone, PeerLost if it has left too much unread.
        """
        parts, sent = encode(message), 0
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self.socket.sendmsg(parts)
            if sent == sum(memoryview(part).nbytes for part in parts):
                return
        if sum(map(len, self._unsent)) > MAX_BYTES:
            raise PeerLost(f"{MAX_BYTES} bytes are unsent; it does not read")
        self._unsent += [memoryview(part).cast("B") for part in parts if len(part)]
        self._forget(sent)
        self.flush()
        if self._unsent:
            end_s = time.monotonic() + PATIENCE_S
            while self._unsent and (left_s := end_s - time.monotonic()) > 0:
                select.select([], [self.socket], [], left_s)
                self.flush()

    def flush(self) -> None:
        """Send what goes now. Raises OSError if the peer is gone."""
        while self._unsent:
            try:
                sent = self.socket.sendmsg(self._unsent)
            except BlockingIOError:
                return
            self._forget(sent)

    def _forget(self, sent: int) -> None:
        while sent:
            first = self._unsent.popleft()
            if sent < len(first):
                self._unsent.appendleft(first[sent:])
            sent -= min(sent, len(first))

    def receive(self) -> Message | None:
        """The next whole message, None if there is none yet.

        Raises WireFormatError if it cannot be read, OSError if the peer is gone.
        """
        while True:
            if self._sizes is None and self._got >= HEAD.size:
                self._sizes = part_sizes(self._head)
                self._make_room(sum(self._sizes))
            if self._sizes is not None and self._got >= HEAD.size + sum(self._sizes):
                return self._take(self._sizes)
            if self._is_drained and not self._got:
                self._is_drained = False  # whoever asks again has heard of more
                return None
            try:
                self._fill()
            except BlockingIOError:
                return None

    def _fill(self) -> None:
        """One reading: head and body together, or what is left of the body."""
        if self._got < HEAD.size:
            room = [self._head[self._got :], self._body]
            count = self.socket.recvmsg_into(room)[0]
            self._is_drained = count < HEAD.size - self._got + len(self._body)
        else:
            rest = self._body[self._got - HEAD.size :]
            count = self.socket.recv_into(rest)
            self._is_drained = count < len(rest)
        if not count:
            raise ConnectionResetError("connection closed")
        self._got += count

    def _make_room(self, size: int) -> None:
        if size > len(self._body):
            came = self._body[: self._got - HEAD.size]
            self._body = _room(size)
            self._body[: len(came)] = came

    def _take(self, sizes: tuple[int, ...]) -> Message:
        """The message, which keeps its body; what came after it is the beginning of the next."""
        body, size = self._body, sum(sizes)
        message = decode([self._head, *_cut(body, sizes)])
        after = body[size : self._got - HEAD.size]
        self._body, self._sizes, self._got = _room(size), None, len(after)
        if after:
            self._head[: min(len(after), HEAD.size)] = after[: HEAD.size]
            self._make_room(len(after) - HEAD.size)
            self._body[: max(0, len(after) - HEAD.size)] = after[HEAD.size :]
        return message

    def close(self) -> None:
        """Drop it."""
        self.socket.close()


def _room(size: int) -> memoryview:
    """One byte more than that: a reading that leaves it empty has found nothing more."""
    return np.empty(max(size, SMALLEST_BODY) + 1, np.uint8).data


def _cut(body: memoryview, sizes: Sequence[int]) -> list[Buffer]:
    parts: list[Buffer] = []
    start = 0
    for size in sizes:
        parts.append(body[start : start + size])
        start += size
    return parts
