"""Whole messages through one connected socket that never blocks; `unix` has the two ends."""

import select
import socket
import time
from collections import deque
from collections.abc import Sequence

import torch

from router.errors import PeerLost
from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.wire import HEAD, MAX_BYTES, Buffer, decode, encode, part_sizes

SEND_BUFFER = 4 << 20  # bytes; Linux grants net.core.wmem_max, what is beyond waits here
PATIENCE_S = 0.02  # for a peer that is reading a message larger than that
Message = RowsRequest | RowsAnswer | RowsRefusal


class Stream:
    """Whole messages through one connected socket; only sending waits, and not for long."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._unsent: deque[memoryview] = deque()
        self._head = memoryview(bytearray(HEAD.size))
        self._body: memoryview | None = None  # of the message whose head has come
        self._sizes: tuple[int, ...] = ()
        self._got = 0  # bytes of what is being read, head or body

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """As much as goes while the peer reads; what is left goes with `flush`.

        Raises OSError if the peer is gone, PeerLost if it has left too much unread.
        """
        if sum(map(len, self._unsent)) > MAX_BYTES:
            raise PeerLost(f"{MAX_BYTES} bytes are unsent; it does not read")
        self._unsent += [memoryview(part).cast("B") for part in encode(message) if len(part)]
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
            wanted = self._head if self._body is None else self._body
            if self._got < len(wanted):
                try:
                    count = self.socket.recv_into(wanted[self._got :])
                except BlockingIOError:
                    return None
                if not count:
                    raise ConnectionResetError("connection closed")
                self._got += count
                if self._got < len(wanted):
                    continue
            self._got = 0
            if self._body is None:
                self._sizes = part_sizes(self._head)
                room = torch.empty(sum(self._sizes), dtype=torch.uint8)
                self._body = room.numpy().data if room.numel() else memoryview(b"")
                continue
            body, self._body = self._body, None
            return decode([self._head, *_cut(body, self._sizes)])

    def close(self) -> None:
        """Drop it."""
        self.socket.close()


def _cut(body: memoryview, sizes: Sequence[int]) -> list[Buffer]:
    parts: list[Buffer] = []
    start = 0
    for size in sizes:
        parts.append(body[start : start + size])
        start += size
    return parts
