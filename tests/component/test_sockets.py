"""The transport between real sockets: rows, deaths, strangers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from router.errors import PeerLost
from router.table import ShardAddress, ShardId
from services.transport.base import Answered, Event, RowsAnswer, RowsRequest, ShardLost
from services.transport.keys import DataPlaneKeys, make_keys
from services.transport.sockets import SocketLink, SocketPort

SHARD = ShardId("shard-0")


def request(number: int, n_rows: int = 3) -> RowsRequest:
    pairs = np.arange(n_rows, dtype=np.int32)
    rows = np.random.default_rng(number).normal(size=(n_rows, 8)).astype(np.float32)
    return RowsRequest(number, 1, rows, pairs, pairs.copy())


def echo(port: SocketPort, *, within_s: float = 5.0) -> int:
    """Answer what waits with the rows themselves; returns how many were answered."""
    deliveries = port.receive(within_s)
    for delivery in deliveries:
        port.answer(delivery, RowsAnswer(delivery.request.number, delivery.request.rows))
    return len(deliveries)


@contextmanager
def echoing(port: SocketPort, count: int) -> Iterator[None]:
    """Meanwhile `count` requests are answered in another thread."""

    def serve() -> None:
        end_s, answered = time.monotonic() + 5, 0
        while answered < count and time.monotonic() < end_s:
            answered += echo(port, within_s=0.1)
        port.receive(0.2)  # what could not be sent at once

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def events(link: SocketLink, *, within_s: float = 5.0) -> list[Event]:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if got := link.receive(0.1):
            return got
    return []


@pytest.fixture
def keys() -> DataPlaneKeys:
    return make_keys()


@pytest.fixture(params=["ipc", "tcp"])
def port(
    request: pytest.FixtureRequest, tmp_path: Path, keys: DataPlaneKeys
) -> Iterator[SocketPort]:
    tcp_host = "127.0.0.1" if request.param == "tcp" else ""
    port = SocketPort(SHARD, host="one", run_dir=tmp_path / "r", tcp_host=tcp_host, keys=keys)
    yield port
    port.close()


@pytest.fixture
def link(port: SocketPort, keys: DataPlaneKeys) -> Iterator[SocketLink]:
    host = "other" if port.address.tcp_endpoint else "one"
    link = SocketLink(host=host, keys=keys)
    link.connect([port.address])
    yield link
    link.close()


def test_rows_go_out_and_come_back(link: SocketLink, port: SocketPort) -> None:
    sent = request(41, n_rows=200_000)  # more than any socket's buffer
    with echoing(port, 1):
        link.send(SHARD, sent)
        [event] = events(link)
    assert isinstance(event, Answered)
    assert isinstance(event.answer, RowsAnswer)
    assert event.answer.number == 41
    np.testing.assert_array_equal(event.answer.rows, sent.rows)


def test_two_replicas_get_their_own_answers(
    link: SocketLink, port: SocketPort, keys: DataPlaneKeys
) -> None:
    other = SocketLink(host="other" if port.address.tcp_endpoint else "one", keys=keys)
    other.connect([port.address])
    link.send(SHARD, request(1))
    other.send(SHARD, request(2))
    answered = 0
    while answered < 2:
        answered += echo(port)
    for own, number in ((link, 1), (other, 2)):
        [event] = events(own)
        assert isinstance(event, Answered)
        assert event.answer.number == number
    other.close()


def test_a_port_that_closes_is_reported_lost_at_once(link: SocketLink, port: SocketPort) -> None:
    link.send(SHARD, request(1))
    echo(port)
    events(link)
    started_s = time.monotonic()
    port.close()
    assert events(link) == [ShardLost(SHARD, "connection closed")]
    assert time.monotonic() - started_s < 1.0
    with pytest.raises(PeerLost, match="shard-0 is not connected"):
        link.send(SHARD, request(2))


def test_a_shard_that_never_listened_is_reported_lost(tmp_path: Path) -> None:
    link = SocketLink(host="one")
    link.connect([ShardAddress(SHARD, "one", ipc_endpoint=f"{tmp_path}/nobody")])
    [event] = events(link)
    assert isinstance(event, ShardLost)
    assert "No such file" in event.reason
    link.close()


def test_a_shard_left_out_of_the_table_is_disconnected(link: SocketLink, port: SocketPort) -> None:
    link.connect([])
    with pytest.raises(PeerLost):
        link.send(SHARD, request(1))
    link.connect([port.address])
    link.send(SHARD, request(2))
    assert echo(port) == 1


def test_a_host_without_an_endpoint_is_told_what_to_set(port: SocketPort) -> None:
    bare = ShardAddress(SHARD, "one", ipc_endpoint=port.address.ipc_endpoint)
    link = SocketLink(host="other")
    with pytest.raises(PeerLost, match=r"transport\.mode"):
        link.connect([bare])
    link.close()


def test_tcp_refuses_a_peer_with_another_key(tmp_path: Path, keys: DataPlaneKeys) -> None:
    port = SocketPort(SHARD, host="one", run_dir=tmp_path, tcp_host="127.0.0.1", keys=keys)
    stranger = replace(keys, attention=make_keys().attention)  # knows the server's public key
    link = SocketLink(host="other", keys=stranger)
    link.connect([port.address])
    with suppress(PeerLost):  # it may have been refused by now
        link.send(SHARD, request(1))
    assert port.receive(1.0) == []
    assert events(link) == [ShardLost(SHARD, "it refused our key")]
    link.close()
    port.close()


def test_tcp_ignores_a_peer_without_a_key(tmp_path: Path, keys: DataPlaneKeys) -> None:
    port = SocketPort(SHARD, host="one", run_dir=tmp_path, tcp_host="127.0.0.1", keys=keys)
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(port.address.tcp_endpoint)
        plain.send_multipart([b"hello"])
        assert port.receive(1.0) == []
    port.close()


def test_rubbish_is_refused_and_the_port_goes_on(tmp_path: Path) -> None:
    port = SocketPort(SHARD, host="one", run_dir=tmp_path / "r")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(port.address.ipc_endpoint)
        plain.sendall(b"rubbish" * 100)
        port.receive(1.0)  # accepts it
        assert port.receive(1.0) == []
        plain.settimeout(2)
        assert b"message begins with b'rubb'" in plain.recv(1000)
    link = SocketLink(host="one")
    link.connect([port.address])
    link.send(SHARD, request(1))
    assert echo(port) == 1
    link.close()
    port.close()


def test_the_ipc_folder_is_for_this_user_only(tmp_path: Path) -> None:
    port = SocketPort(SHARD, host="one", run_dir=tmp_path / "r")
    assert (tmp_path / "r").stat().st_mode & 0o077 == 0
    port.close()
