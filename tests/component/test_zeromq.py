"""The ZeroMQ transport between real sockets: rows, deaths, strangers."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zmq

from router.errors import PeerLost
from router.table import ShardAddress, ShardId
from services.transport.base import Answered, Event, RowsAnswer, RowsRequest, ShardLost
from services.transport.keys import DataPlaneKeys, make_keys
from services.transport.zeromq import ZmqLink, ZmqPort

SHARD = ShardId("shard-0")


def request(number: int, n_rows: int = 3) -> RowsRequest:
    pairs = torch.arange(n_rows, dtype=torch.int32)
    return RowsRequest(number, 1, torch.randn(n_rows, 8), pairs, pairs.clone())


def echo(port: ZmqPort, *, within_s: float = 5.0) -> int:
    """Answer what waits with the rows themselves; returns how many were answered."""
    deliveries = port.receive(within_s)
    for delivery in deliveries:
        port.answer(delivery, RowsAnswer(delivery.request.number, delivery.request.rows))
    return len(deliveries)


def events(link: ZmqLink, *, within_s: float = 5.0) -> list[Event]:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if got := link.receive(0.1):
            return got
    return []


@pytest.fixture
def keys() -> DataPlaneKeys:
    return make_keys()


@pytest.fixture(params=["ipc", "tcp"])
def port(request: pytest.FixtureRequest, tmp_path: Path, keys: DataPlaneKeys) -> Iterator[ZmqPort]:
    tcp_host = "127.0.0.1" if request.param == "tcp" else ""
    port = ZmqPort(SHARD, host="one", run_dir=tmp_path / "r", tcp_host=tcp_host, keys=keys)
    yield port
    port.close()


@pytest.fixture
def link(port: ZmqPort, keys: DataPlaneKeys) -> Iterator[ZmqLink]:
    host = "other" if port.address.tcp_endpoint else "one"
    link = ZmqLink(host=host, keys=keys)
    link.connect([port.address])
    yield link
    link.close()


def test_rows_go_out_and_come_back(link: ZmqLink, port: ZmqPort) -> None:
    sent = request(41, n_rows=20_000)  # larger than ZeroMQ copies: the zero-copy path
    link.send(SHARD, sent)
    assert echo(port) == 1
    [event] = events(link)
    assert isinstance(event, Answered)
    assert isinstance(event.answer, RowsAnswer)
    assert event.answer.number == 41
    assert torch.equal(event.answer.rows, sent.rows)


def test_two_replicas_get_their_own_answers(
    link: ZmqLink, port: ZmqPort, keys: DataPlaneKeys
) -> None:
    other = ZmqLink(host="other" if port.address.tcp_endpoint else "one", keys=keys)
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


def test_a_port_that_closes_is_reported_lost_at_once(link: ZmqLink, port: ZmqPort) -> None:
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
    link = ZmqLink(host="one")
    link.connect([ShardAddress(SHARD, "one", ipc_endpoint=f"ipc://{tmp_path}/nobody")])
    assert events(link) == [ShardLost(SHARD, "connection closed")]
    link.close()


def test_a_shard_left_out_of_the_table_is_disconnected(link: ZmqLink, port: ZmqPort) -> None:
    link.connect([])
    with pytest.raises(PeerLost):
        link.send(SHARD, request(1))
    link.connect([port.address])
    link.send(SHARD, request(2))
    assert echo(port) == 1


def test_a_host_without_an_endpoint_is_told_what_to_set(port: ZmqPort) -> None:
    bare = ShardAddress(SHARD, "one", ipc_endpoint=port.address.ipc_endpoint)
    link = ZmqLink(host="other")
    with pytest.raises(PeerLost, match=r"transport\.mode"):
        link.connect([bare])
    link.close()


def test_tcp_refuses_a_peer_with_another_key(tmp_path: Path, keys: DataPlaneKeys) -> None:
    port = ZmqPort(SHARD, host="one", run_dir=tmp_path, tcp_host="127.0.0.1", keys=keys)
    stranger = DataPlaneKeys(keys.shard, make_keys().attention)  # knows the server's public key
    link = ZmqLink(host="other", keys=stranger)
    link.connect([port.address])
    link.send(SHARD, request(1))
    assert port.receive(1.0) == []
    assert events(link) == [ShardLost(SHARD, "it refused our key")]
    link.close()
    port.close()


def test_tcp_ignores_a_peer_without_a_key(tmp_path: Path, keys: DataPlaneKeys) -> None:
    port = ZmqPort(SHARD, host="one", run_dir=tmp_path, tcp_host="127.0.0.1", keys=keys)
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(port.address.tcp_endpoint)
        plain.send_multipart([b"hello"])
        assert port.receive(1.0) == []
    port.close()


def test_rubbish_is_refused_and_the_port_goes_on(tmp_path: Path) -> None:
    port = ZmqPort(SHARD, host="one", run_dir=tmp_path / "r")
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(port.address.ipc_endpoint)
        plain.send_multipart([b"rubbish", b"more"])
        assert port.receive(1.0) == []
        assert plain.poll(2000)
    link = ZmqLink(host="one")
    link.connect([port.address])
    link.send(SHARD, request(1))
    assert echo(port) == 1
    link.close()
    port.close()


def test_the_ipc_folder_is_for_this_user_only(tmp_path: Path) -> None:
    port = ZmqPort(SHARD, host="one", run_dir=tmp_path / "r")
    assert (tmp_path / "r").stat().st_mode & 0o077 == 0
    port.close()
