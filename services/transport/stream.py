"""Whole messages through one connected socket that never blocks; `unix` has the two ends."""

import contextlib
import select
import socket
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from router.errors import PeerLost
from services.transport.wire import (
    HEAD,
    MAX_BYTES,
    Head,
    Message,
    encode,
    message_of,
    n_bytes,
    read_head,
)

SEND_BUFFER = 4 << 20  # bytes; Linux grants net.core.wmem_max, what is beyond waits here
PATIENCE_S = 0.02  # for a peer that is reading a message larger than that
SMALLEST_BODY = 4096  # bytes that are read with a head, so that most messages take one call


class Stream:
    """Whole messages through one connected socket; only sending waits, and not for long."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        granted = connected.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.at_once = granted // 2  # bytes that go in one call; Linux doubles it for its own needs
        self._unsent: deque[memoryview] = deque()
        self._room = _room(0)  # for the message that is read, and what comes with it
        self._head: Head | None = None  # of it, once that has come
        self._got = 0  # bytes
        self._is_drained = False  # the last reading took all that there was

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing is half sent or half received."""
        return not (self._unsent or self._got)

    def send(self, message: Message, sent: int = 0) -> None:
        """As much as goes while the peer reads; what is left goes with `flush`.

        sent: bytes of it that have gone already. Raises OSError if the peer is gone, PeerLost if
        it has left too much unread.
        """
        parts = encode(message)
        if not (self._unsent or sent):
            with contextlib.suppress(BlockingIOError):
                sent = self.socket.sendmsg(parts)
            if sent == n_bytes(parts):
                return
        if sum(map(len, self._unsent)) > MAX_BYTES:
            raise PeerLost(f"{MAX_BYTES} bytes are unsent; it does not read")
        self._unsent += [np.frombuffer(part, np.uint8).data for part in parts if n_bytes([part])]
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

    def unread(self, data: NDArray[np.uint8]) -> None:
        """Have read these bytes, the beginning of a message or more, between messages."""
        if len(data) >= len(self._room):
            self._room = _room(len(data))
        self._room[: len(data)] = data.data
        self._got = len(data)

    def receive(self) -> Message | None:
        """The next whole message, None if there is none yet.

        Raises WireFormatError if it cannot be read, OSError if the peer is gone.
        """
        while True:
            if self._head is None and self._got >= HEAD.size:
                self._head = read_head(self._room)
                self._make_room(self._head.size)
            if self._head is not None and self._got >= HEAD.size + self._head.size:
                return self._take(self._head)
            if self._is_drained and not self._got:
                self._is_drained = False  # whoever asks again has heard of more
                return None
            try:
                self._fill()
            except BlockingIOError:
                return None

    def _fill(self) -> None:
        """One reading."""
        room = self._room[self._got :]
        count = self.socket.recv_into(room)
        if not count:
            raise ConnectionResetError("connection closed")
        self._is_drained = count < len(room)
        self._got += count

    def _make_room(self, size: int) -> None:
        if HEAD.size + size > len(self._room):
            came = self._room[: self._got]
            self._room = _room(size)
            self._room[: len(came)] = came

    def _take(self, head: Head) -> Message:
        """The message, which keeps its room; what came after it is the beginning of the next."""
        room, behind, end = self._room, [], HEAD.size
        for size in head.sizes:
            behind.append(room[end : end + size])
            end += size
        after = room[end : self._got]
        self._room, self._head, self._got = _room(max(head.size, len(after))), None, len(after)
        if after:
            self._room[: len(after)] = after
        return message_of(head, behind)

    def close(self) -> None:
        """Drop it."""
        self.socket.close()


def _room(size: int) -> memoryview:
    """For a head and so many bytes, and one more: a reading that leaves it empty was the last."""
    return np.empty(HEAD.size + max(size, SMALLEST_BODY) + 1, np.uint8).data
