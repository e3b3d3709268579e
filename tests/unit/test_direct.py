"""The short way between attention and a shard, over real sockets: what goes it, and what does not.

The other end of each is the long way's code, which reads and writes the same messages.
"""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.choose import Policy
from router.dispatch import cut
from router.exchange import SendNumbers
from router.table import ReplicaTable, ShardAddress, ShardId, build_table
from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.direct_link import DirectLink, Launched
from services.transport.direct_port import DirectPort
from services.transport.link_loops import CAME_NS, COMPUTED_US, WAITED_US
from services.transport.origin import Origin
from services.transport.stream import Stream
from services.transport.wire import ANSWER, HEAD, MAGIC, REQUEST, encode, read_head
from services.transport.words import N_WORDS, kinds_of, number_of, put_head

EXPERTS, HIDDEN = 6, 5
NAUGHT = np.zeros(1, np.int32)
numbers_on_wire = st.integers(0, 2**63 - 1)
counts_on_wire = st.integers(0, 2**31 - 1)


@given(
    st.sampled_from([REQUEST, ANSWER]),
    st.integers(0, 2),
    st.integers(0, 2**15 - 1),
    numbers_on_wire,
    st.tuples(*[st.integers(0, 2**12)] * 3),
    st.tuples(counts_on_wire, counts_on_wire),
)
def test_a_head_in_words_is_the_wires(
    kind: int,
    dtype: int,
    layer: int,
    number: int,
    sizes: tuple[int, int, int],
    times: tuple[int, int],
) -> None:
    words = np.empty(N_WORDS, np.int32)
    put_head(words, kinds_of(kind, dtype, layer), number, *sizes, *times)
    packed = HEAD.pack(MAGIC, kind, dtype, layer, number, *sizes, *times, bytes(28))
    assert words.tobytes() == packed
    assert number_of(words) == number == read_head(packed).number


def table(n_shards: int) -> ReplicaTable:
    """Each expert on one shard, in turn."""
    held = [
        (ShardAddress(ShardId(f"s{n}"), "here"), {0: list(range(n, EXPERTS, n_shards))})
        for n in range(n_shards)
    ]
    return build_table(1, held, n_layers=1, n_experts=EXPERTS)


class Shards:
    """Two of them, whose ends of the connections are streams."""

    def __init__(self, count: int = 2) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.table = table(count)
        self.link = DirectLink(self.table.shards, [Stream(ours) for ours, _ in pairs])
        self.ends = [Stream(theirs) for _, theirs in pairs]
        self.numbers = SendNumbers()

    def launch(self, x: torch.Tensor, ids: NDArray[np.int32]) -> Launched | None:
        return self.link.launch(
            0,
            ids,
            x.data_ptr(),
            hidden=x.shape[1],
            row_bytes=x.shape[1] * x.itemsize,
            dtype=0,
            table=self.table,
            load=np.zeros(len(self.table.shards), np.float32),
            policy=Policy.LEAST_TOKENS,
            numbers=self.numbers,
        )

    def asked(self, shard: int) -> RowsRequest:
        message = self.ends[shard].receive()
        assert isinstance(message, RowsRequest)
        return message

    def close(self) -> None:
        for stream in (*self.link.streams, *self.ends):
            stream.close()


@pytest.fixture
def shards() -> Iterator[Shards]:
    shards = Shards()
    yield shards
    shards.close()


IDS = np.array([[0, 1], [2, 4], [5, 0], [3, 2]], np.int32)
X = torch.arange(20, dtype=torch.float32).view(4, HIDDEN)


def answer_to(request: RowsRequest) -> RowsAnswer:
    """Rows times expert + 1."""
    factors = (request.pair_experts[:, None] + 1).astype(np.float32)
    return RowsAnswer(request.number, request.rows[request.pair_rows] * factors, 7, 11)


def wanted() -> NDArray[np.float32]:
    flat = IDS.reshape(-1, 1)
    rows: NDArray[np.float32] = np.repeat(X.numpy(), 2, axis=0) * (flat + 1).astype(np.float32)
    return rows


def soon() -> float:
    return time.perf_counter() + 5.0


def room() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rows = np.zeros((IDS.size, HIDDEN), np.float32)
    return rows, rows.view(np.uint8)


def test_a_layer_goes_out_and_comes_back(shards: Shards) -> None:
    launched = shards.launch(X, IDS)
    assert launched is not None
    assert (launched.n_sent, launched.n_messages, launched.number) == (2, 2, 1)
    for shard in (1, 0):
        request = shards.asked(shard)
        assert request.number == shard + 1 <= shards.numbers.last
        shards.ends[shard].send(answer_to(request))
    rows, as_bytes = room()
    assert shards.link.land(launched, as_bytes, until_s=soon())
    np.testing.assert_array_equal(rows, wanted())
    assert (shards.link.seen[:, CAME_NS] > launched.chosen_s).all()
    assert shards.link.seen[:, WAITED_US].tolist() == [7, 7]
    assert shards.link.seen[:, COMPUTED_US].tolist() == [11, 11]
    assert shards.link.leave() == []


def test_only_shards_that_are_needed_are_asked(shards: Shards) -> None:
    ids = np.array([[1, 3]], np.int32)
    launched = shards.launch(X[:1], ids)
    assert launched is not None
    assert launched.n_messages == 1
    assert shards.ends[0].receive() is None
    assert shards.asked(1).pair_experts.tolist() == [1, 3]


def test_an_expert_without_a_holder_sends_nothing(shards: Shards) -> None:
    counts = shards.table.counts.copy()
    counts[0, 2] = 0
    counts.setflags(write=False)
    whole = shards.table
    shards.table = ReplicaTable(whole.version, whole.shards, whole.holders, counts)
    assert shards.launch(X, IDS) is None
    assert shards.numbers.last == 0
    assert [end.receive() for end in shards.ends] == [None, None]


def test_a_message_that_may_be_too_large_is_not_begun(shards: Shards) -> None:
    wide = torch.zeros(4, 1 << 16)
    assert shards.launch(wide, IDS) is None
    assert shards.ends[0].receive() is None


def spoilt(request: RowsRequest, how: str) -> RowsAnswer | RowsRefusal:
    good = answer_to(request)
    ways: dict[str, RowsAnswer | RowsRefusal] = {
        "refusal": RowsRefusal(request.number, "not here"),
        "number": RowsAnswer(request.number + 9, good.rows),
        "short": RowsAnswer(request.number, good.rows[:-1]),
        "wide": RowsAnswer(request.number, np.pad(good.rows, ((0, 0), (0, 1)))),
        "dtype": RowsAnswer(request.number, good.rows.astype(np.float16)),
    }
    return ways[how]


@pytest.mark.parametrize("how", ["refusal", "number", "short", "wide", "dtype"])
def test_another_message_is_left_to_the_long_way_whole(shards: Shards, how: str) -> None:
    launched = shards.launch(X, IDS)
    assert launched is not None
    odd = spoilt(shards.asked(1), how)
    good = answer_to(shards.asked(0))
    shards.ends[0].send(good)
    rows, as_bytes = room()
    assert not shards.link.land(launched, as_bytes, until_s=time.perf_counter() + 0.05), (
        "one is missing"
    )
    assert shards.link.seen[0, CAME_NS] > 0
    shards.ends[1].send(odd)
    assert not shards.link.land(launched, as_bytes, until_s=soon())
    assert shards.link.leave() == [1]
    found = shards.link.streams[1].receive()
    assert type(found) is type(odd)
    assert found.number == odd.number
    if isinstance(odd, RowsAnswer) and isinstance(found, RowsAnswer):
        np.testing.assert_array_equal(found.rows, odd.rows)
    [send, _] = cut(launched.plan, IDS.size)
    np.testing.assert_array_equal(rows[send.pair_positions], good.rows)


def test_half_an_answer_is_left_to_the_long_way(shards: Shards) -> None:
    launched = shards.launch(X, IDS)
    assert launched is not None
    data = b"".join(
        bytes(memoryview(part).cast("B")) for part in encode(answer_to(shards.asked(0)))
    )
    shards.ends[0].socket.send(data[:-3])
    assert not shards.link.land(launched, room()[1], until_s=time.perf_counter() + 0.05)
    assert shards.link.leave() == [0]
    shards.ends[0].socket.send(data[-3:])
    found = shards.link.streams[0].receive()
    assert isinstance(found, RowsAnswer)
    assert found.number == launched.number


def test_what_comes_with_the_last_answer_is_left_to_the_next_layer(shards: Shards) -> None:
    launched = shards.launch(X[:1], np.array([[0, 2]], np.int32))
    assert launched is not None
    assert launched.n_messages == 1
    shards.ends[0].send(answer_to(shards.asked(0)))
    shards.ends[1].close()
    assert shards.link.land(launched, np.zeros((2, 4 * HIDDEN), np.uint8), until_s=soon())


def test_the_wait_for_answers_ends_in_time_whoever_else_answers(shards: Shards) -> None:
    launched = shards.launch(X, IDS)
    assert launched is not None
    answering = threading.Timer(0.2, lambda: shards.ends[0].send(answer_to(shards.asked(0))))
    answering.start()
    started_s = time.perf_counter()
    assert not shards.link.land(launched, room()[1], until_s=started_s + 0.3)
    assert 0.29 < time.perf_counter() - started_s < 0.4
    answering.join()
    assert not shards.link.land(launched, room()[1], until_s=started_s), "over already"


def test_a_shard_that_is_gone_ends_the_short_way_both_times(shards: Shards) -> None:
    launched = shards.launch(X, IDS)
    assert launched is not None
    shards.ends[1].close()
    assert not shards.link.land(launched, room()[1], until_s=soon())
    again = shards.launch(X, IDS)
    assert again is not None
    assert (again.n_sent, again.n_messages, again.bytes_sent) == (1, 2, 0)


class Port:
    """A shard of one layer that holds experts 0 to 3, and two attention replicas."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.ends = [Stream(theirs) for theirs, _ in pairs]
        self.late: list[tuple[Stream, RowsAnswer | RowsRefusal, int]] = []
        self.port = DirectPort(
            (), [Stream(ours) for _, ours in pairs], lambda *what: self.late.append(what)
        )
        self.rows, self.slots = np.zeros((8, HIDDEN), np.float32), np.zeros(8, np.int32)
        self.slot_of = np.array([[3, 2, 1, 0, -1, -1]] * 2, np.int32)

    def take(self, timeout_s: float = 0.05) -> list[list[int]] | None:
        return self.port.take(
            self.rows.view(np.uint8),
            self.slots,
            self.slot_of,
            hidden=HIDDEN,
            dtype=0,
            timeout_s=timeout_s,
        )

    def close(self) -> None:
        for stream in (*self.port.streams, *self.ends):
            stream.close()


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


def request(
    number: int, experts: list[int], *, layer: int = 0, hidden: int = HIDDEN
) -> RowsRequest:
    """One row for every two experts."""
    rows = np.full(((len(experts) + 1) // 2, hidden), number, np.float32)
    pair_rows = np.arange(len(experts), dtype=np.int32) // 2
    return RowsRequest(number, layer, rows, pair_rows, np.array(experts, np.int32), None, 1)


def test_what_waits_for_one_layer_is_one_batch(port: Port) -> None:
    assert port.take() == []
    port.ends[0].send(request(1, [0, 1, 2]))
    port.ends[1].send(request(2, [3]))
    asked = port.take()
    assert asked is not None
    assert [one[:4] for one in asked] == [[0, 1, 3, 1], [1, 2, 1, 1]]
    assert port.rows[:4, 0].tolist() == [1, 1, 1, 2]
    assert port.slots[:4].tolist() == [3, 2, 1, 0]
    answers = torch.from_numpy(port.rows[:4] * 10)
    port.port.answer(asked, answers, started_s=0.0, computed_us=5)
    for end, number, rows in ((port.ends[0], 1, answers[:3]), (port.ends[1], 2, answers[3:])):
        answer = end.receive()
        assert isinstance(answer, RowsAnswer)
        assert (answer.number, answer.waited_us, answer.computed_us) == (number, 0, 5)
        np.testing.assert_array_equal(answer.rows, rows.numpy())
    assert port.late == []


def test_another_layer_and_what_comes_behind_wait_for_their_turn(port: Port) -> None:
    port.ends[0].send(request(1, [0]))
    port.ends[0].send(request(2, [1]))
    port.ends[1].send(request(3, [2], layer=1))
    taken = [port.take() for _ in range(3)]
    assert sorted(asked[0][1] for asked in taken if asked) == [1, 2, 3]
    assert port.take() == []
    assert port.port.leave() == []


def test_more_than_there_is_room_for_waits(port: Port) -> None:
    port.ends[0].send(request(1, [0] * 6))
    port.ends[1].send(request(2, [1] * 6))
    assert [len(port.take() or []) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    "odd",
    [
        request(5, [0, 4]),
        request(5, [0, 77]),
        request(5, [0], layer=2),
        request(5, [0], hidden=HIDDEN + 1),
        request(5, [0] * 9),
        RowsRequest(5, 0, np.zeros((1, HIDDEN), np.float16), NAUGHT, NAUGHT),
        RowsRequest(5, 0, np.zeros((1, HIDDEN), np.float32), NAUGHT + 1, NAUGHT),
        RowsRequest(
            5,
            0,
            np.zeros((1, HIDDEN), np.float32),
            NAUGHT,
            NAUGHT,
            Origin(("ab" * 16,)),
        ),
        RowsAnswer(5, np.zeros((1, HIDDEN), np.float32)),
        replace(request(5, [0]), busy_threads=2**31),
        replace(request(5, [0]), number=2**63),
    ],
    ids=[
        "moved",
        "expert",
        "layer",
        "hidden",
        "pairs",
        "dtype",
        "row",
        "traced",
        "answer",
        "busy",
        "number",
    ],
)
def test_what_is_not_plain_is_left_to_the_long_way_whole(
    port: Port, odd: RowsRequest | RowsAnswer
) -> None:
    port.ends[0].send(odd)
    port.ends[0].send(request(6, [0]))
    assert port.take() is None
    [stream] = port.port.leave()
    found = stream.receive()
    assert type(found) is type(odd)
    assert found.number == odd.number
    behind = stream.receive()
    assert isinstance(behind, RowsRequest)
    assert behind.number == 6


def test_a_replica_that_is_gone_is_left_to_the_long_way(port: Port) -> None:
    port.ends[1].close()
    assert port.take() is None
    assert port.port.leave() == []


def test_an_answer_that_is_not_sent_in_full_goes_on_the_long_way(port: Port) -> None:
    port.ends[0].send(request(1, [0]))
    asked = port.take()
    assert asked is not None
    wide = torch.zeros(1, 16 << 20)  # more than a socket holds
    port.port.answer(asked, wide, started_s=0.0, computed_us=0)
    [(stream, answer, sent)] = port.late
    assert stream is port.port.streams[0]
    assert isinstance(answer, RowsAnswer)
    assert 0 < sent < answer.rows.nbytes
