"""Event streams on their way from a gateway to Serve's proxy in front of it, past Ray.

A piece that goes through Serve is an object and a remote call. So the proxy's middleware (`edge`)
says with each request where on this host it takes pieces, and a gateway that answers with an event
stream sends them there, head first, those of all its streams together (`services.answers`). What
goes through Serve is the head again, some milliseconds later, and the number of pieces as the only
body. A gateway on another host answers as ever. When a gateway dies in a stream, another one goes
on with it: the proxy has what came, token ids too, and says so in a second header.
Whoever reaches a gateway without this proxy can make up these headers: they must name the host by
Ray's random name for it and a socket of this user's proxies, and a call there by a random number of
63 bits, or they are ignored.
"""

import base64
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgpack
from pydantic import ConfigDict, TypeAdapter

from services.answers import AnswerDesk, AnswerLine, Call, ReplyTo
from services.gateway.relay import Sent
from services.paths import proxy_dir
from services.relayed import Answer, Head

HEADER = b"x-expertmesh-stream"
"""In a request: where pieces are taken. In an answer, which are sent there: the request's id."""

BEGUN = b"x-expertmesh-begun"
"""In a request: what the client has already of its answer."""

APP = b"x-expertmesh-app"
"""In an answer: the application whose gateway gave it, which can send to this proxy past Ray."""

OFFER = re.compile(rb"^([0-9a-f]{1,64}) (answers-[A-Za-z0-9-]{1,40}) ([0-9]{1,19})$")
EVENTS = b"text/event-stream"

Header = tuple[bytes, bytes]


def open_desk(host: str, folder: Path) -> AnswerDesk:
    """The proxy's end. host: its Ray node; folder: where its socket lies."""
    for left in folder.glob("answers-*"):
        if not Path(f"/proc/{left.name.rpartition('-')[2]}").exists():
            left.unlink(missing_ok=True)
    return AnswerDesk(f"proxy-{os.getpid()}", host=host, run_dir=folder)


def offer(call: Call) -> Header:
    """What tells a gateway of a call at the proxy's desk."""
    to = call.reply_to
    return HEADER, f"{to.host} {Path(to.near).name} {to.number}".encode()


def begun(request_id: str, sent: Sent) -> Header:
    """What tells a second gateway what came of the first one. request_id: in the answer."""
    told = (request_id, sent.n_parts, sent.n_bytes, sent.created, sent.groups)
    return BEGUN, base64.b64encode(msgpack.packb(told))


TOLD = TypeAdapter(
    tuple[str, int, int, bytes, tuple[tuple[int, ...], ...]], config=ConfigDict(strict=True)
)
NOTHING_BEGUN: tuple[str, Sent | None] = ("", None)


def find_begun(headers: Sequence[Header]) -> tuple[str, Sent | None]:
    """What `begun` said, and nothing of a request like any other."""
    told = dict(headers).get(BEGUN)
    if told is None:
        return NOTHING_BEGUN
    try:
        request_id, n_parts, n_bytes, created, groups = TOLD.validate_python(
            msgpack.unpackb(base64.b64decode(told), use_list=False)
        )
    except (ValueError, msgpack.UnpackException):  # somebody made that up
        return NOTHING_BEGUN
    return request_id, Sent(n_parts=n_parts, n_bytes=n_bytes, created=created, groups=list(groups))


class StreamLine:
    """A gateway's end. Used in one event loop."""

    def __init__(self, host: str, folder: Path | None = None) -> None:
        """host: this gateway's Ray node; folder: where proxies' sockets lie, theirs as a rule."""
        self._host = host
        self._folder = folder or proxy_dir()
        self._line = AnswerLine(host=host)

    def find(self, headers: Sequence[Header]) -> ReplyTo | None:
        """Where the pieces of an answer to a request with these headers can be sent."""
        offers = [OFFER.match(value) for name, value in headers if name.lower() == HEADER]
        if len(offers) != 1 or offers[0] is None:
            return None
        host, name, number = (group.decode() for group in offers[0].groups())
        if host != self._host or not (self._folder / name).is_socket():
            return None
        return ReplyTo(host, f"ipc://{self._folder / name}", "", int(number))

    def open(self, to: ReplyTo | None, head: Head) -> "OpenStream | None":
        """A stream past Ray, if the proxy has offered it and this head announces events."""
        names = ((name.lower(), value) for name, value in head.headers)
        is_stream = any(n == b"content-type" and v.startswith(EVENTS) for n, v in names)
        return OpenStream(self._line, to) if to is not None and is_stream else None

    def sign(self, to: ReplyTo) -> None:
        """Say that the request is here; what is said of it may take long."""
        self._line.send(to, None)

    def close(self) -> None:
        """Drop what is not sent."""
        self._line.close()


class OpenStream:
    """One answer's pieces."""

    def __init__(self, line: AnswerLine, to: ReplyTo) -> None:
        self._line, self._to = line, to
        self._sent = 0

    def send(self, piece: Answer) -> None:
        """The head, then one piece after another; nothing is sent for an empty one."""
        if isinstance(piece, Head) or piece.body:
            self._sent += 1
            self._line.send(self._to, piece)

    def last_body(self) -> bytes:
        """What Serve is given as the body: how many pieces there were."""
        return str(self._sent).encode()


def taken_out(headers: Sequence[Header], ours: bytes) -> tuple[list[Header], str]:
    """The headers of an answer without one of ours, and that one's value; empty if it has none."""
    kept = [one for one in headers if one[0].lower() != ours]
    return kept, b"".join(value for name, value in headers if name.lower() == ours).decode()


def count_in(body: bytes) -> int:
    """Pieces as `last_body` wrote them; none if something else stands there."""
    with contextlib.suppress(ValueError):
        return int(body)
    return 0
