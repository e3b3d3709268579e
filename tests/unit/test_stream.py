"""Messages through a connected socket, whole whatever pieces they come in."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.stream import SMALLEST_BODY, Stream
from services.transport.wire import HEAD, encode


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Stream]]:
    theirs, ours = socket.socketpair()
    stream = Stream(ours)
    yield theirs, stream
    theirs.close()
    stream.close()


def some(number: int, rows: int, hidden: int = 8) -> RowsRequest:
    pairs = np.arange(rows, dtype=np.int32)
    return RowsRequest(number, 0, np.full((rows, hidden), number, np.float32), pairs, pairs, None)


def sent(*messages: RowsRequest | RowsAnswer | RowsRefusal) -> bytes:
    return b"".join(bytes(memoryview(part).cast("B")) for m in messages for part in encode(m))


def same(got: object, wanted: RowsRequest) -> bool:
    return (
        isinstance(got, RowsRequest)
        and got.number == wanted.number
        and np.array_equal(got.rows, wanted.rows)
        and np.array_equal(got.pair_rows, wanted.pair_rows)
    )


MANY = SMALLEST_BODY // 32  # rows of which a message is larger than what is read with a head


@pytest.mark.parametrize("piece", [1, 7, HEAD.size - 1, HEAD.size, HEAD.size + 1, 1000, 10**6])
def test_messages_come_whole_in_any_pieces(ends: tuple[socket.socket, Stream], piece: int) -> None:
    theirs, stream = ends
    wanted = [some(1, 3), some(2, 2 * MANY), some(3, 1), some(4, MANY), some(5, 2)]
    data, got = sent(*wanted), []
    for start in range(0, len(data), piece):
        theirs.sendall(data[start : start + piece])
        while (message := stream.receive()) is not None:
            got.append(message)
    assert len(got) == len(wanted)
    assert all(map(same, got, wanted)), "and none was overwritten by those after it"


def test_a_refusal_between_rows_comes_too(ends: tuple[socket.socket, Stream]) -> None:
    theirs, stream = ends
    theirs.sendall(sent(some(1, 2), RowsRefusal(2, "no"), some(3, 2)))
    assert same(stream.receive(), some(1, 2))
    assert stream.receive() == RowsRefusal(2, "no")
    assert same(stream.receive(), some(3, 2))
    assert stream.receive() is None


def test_what_a_slow_reader_leaves_goes_later(ends: tuple[socket.socket, Stream]) -> None:
    theirs, stream = ends
    large = some(1, 1_000_000)
    stream.send(large)
    assert stream.is_behind
    reader, got = Stream(theirs), None
    while got is None:
        got = reader.receive()
        stream.flush()
    assert same(got, large)
    assert not stream.is_behind


def test_a_peer_that_is_gone_is_an_error(ends: tuple[socket.socket, Stream]) -> None:
    theirs, stream = ends
    theirs.sendall(sent(some(1, 2)))
    theirs.close()
    assert same(stream.receive(), some(1, 2))
    assert stream.receive() is None, "all that was there; the next time it is asked the end shows"
    with pytest.raises(ConnectionResetError):
        stream.receive()
