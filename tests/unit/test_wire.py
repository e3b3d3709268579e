"""Messages of the data plane: bytes and back, and what is refused."""

import numpy as np
import pytest

from router.errors import WireFormatError
from router.rows import Rows
from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.origin import MARKS, MAX_IDS, NOBODY, Origin
from services.transport.wire import HEAD, MAGIC, REQUEST, decode, encode, read_head

IDS = ("0123456789abcdef" * 2, "f" * 32)
SPAN = {"trace_id": 0xABC << 100, "span_id": 1}


def request(dtype: type = np.uint16, origin: Origin | None = None) -> RowsRequest:
    rows: Rows = np.arange(12).reshape(3, 4).astype(dtype)
    pairs = np.array([0, 2, 2], np.int32)
    return RowsRequest(77, 5, rows, pairs, np.array([9, 1, 300], np.int32), origin)


def over_the_wire(message: RowsRequest | RowsAnswer | RowsRefusal) -> list[bytearray]:
    return [bytearray(part) for part in encode(message)]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float16])
def test_a_request_comes_back_as_it_was(dtype: type) -> None:
    sent = request(dtype)
    got = decode(over_the_wire(sent))
    assert isinstance(got, RowsRequest)
    assert (got.number, got.layer) == (77, 5)
    np.testing.assert_array_equal(got.rows, sent.rows)
    assert got.rows.dtype == dtype
    np.testing.assert_array_equal(got.pair_rows, sent.pair_rows)
    np.testing.assert_array_equal(got.pair_experts, sent.pair_experts)


def test_the_senders_threads_come_along() -> None:
    none = np.zeros(0, np.int32)
    request = RowsRequest(1, 2, np.zeros((0, 8), np.float32), none, none, busy_threads=3)
    back = decode(encode(request))
    assert isinstance(back, RowsRequest)
    assert back.busy_threads == 3


def test_an_answer_comes_back_as_it_was() -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    sent = RowsAnswer(8, rows, waited_us=11, computed_us=22)
    got = decode(over_the_wire(sent))
    assert isinstance(got, RowsAnswer)
    assert (got.number, got.waited_us, got.computed_us) == (8, 11, 22)
    np.testing.assert_array_equal(got.rows, sent.rows)


def test_a_refusal_comes_back_as_it_was() -> None:
    assert decode(over_the_wire(RowsRefusal(3, "not here"))) == RowsRefusal(3, "not here")


def test_rows_that_are_a_slice_of_a_larger_array_are_sent_as_they_look() -> None:
    wide = np.arange(40, dtype=np.float32).reshape(4, 10)
    got = decode(over_the_wire(RowsAnswer(1, wide[:, :6])))
    assert isinstance(got, RowsAnswer)
    np.testing.assert_array_equal(got.rows, wide[:, :6])


def test_no_rows_is_a_message_too() -> None:
    got = decode(over_the_wire(RowsAnswer(1, np.empty((0, 6), np.float32))))
    assert isinstance(got, RowsAnswer)
    assert got.rows.shape == (0, 6)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_part_of_another_length_is_refused_with_both_lengths(part: int) -> None:
    parts = over_the_wire(request())
    parts[part] += b"\0\0\0\0"
    with pytest.raises(WireFormatError, match=rf"has {len(parts[part])} bytes, its header says"):
        decode(parts)


def test_another_protocol_is_named() -> None:
    parts = over_the_wire(request())
    parts[0][:4] = b"HTTP"
    with pytest.raises(WireFormatError, match="begins with b'HTTP'"):
        decode(parts)


def test_a_short_header_is_refused() -> None:
    with pytest.raises(WireFormatError, match=f"header of 4 bytes, expected {HEAD.size}"):
        decode([MAGIC])
    with pytest.raises(WireFormatError, match="header of 0 bytes"):
        decode([])


def test_missing_parts_and_unknown_dtypes_are_refused() -> None:
    parts = over_the_wire(request())
    with pytest.raises(WireFormatError, match="has 3 parts"):
        decode(parts[:3])
    strange = HEAD.pack(MAGIC, 2, 9, 0, 4, 0, 1, 1, 0, 0, NOBODY)
    with pytest.raises(WireFormatError, match="dtype code 9"):
        decode([bytearray(strange), bytearray(4)])


@pytest.mark.parametrize(
    "origin",
    [None, Origin(IDS), Origin((), **SPAN), Origin(IDS, **SPAN), Origin(IDS[:1] * MAX_IDS, **SPAN)],
)
def test_whose_rows_they_are_comes_back_as_it_was(origin: Origin | None) -> None:
    parts = over_the_wire(request(origin=origin))
    got = decode(parts)
    assert isinstance(got, RowsRequest)
    assert got.origin == origin
    assert len(parts) == (5 if origin and origin.request_ids else 4)
    assert read_head(parts[0]).sizes == tuple(map(len, parts[1:]))


def test_a_request_of_nobody_costs_no_byte() -> None:
    plain, named = (over_the_wire(request(origin=origin)) for origin in (None, Origin(IDS)))
    assert sum(map(len, plain)) + 32 == sum(map(len, named))
    assert not any(plain[0][-28:])


@pytest.mark.parametrize(
    ("marks", "why"),
    [
        ((bytes(16), bytes(8), 0, 1), "has a span and flags 1"),
        ((b"t" * 16, bytes(8), 0, 1), "has a span and flags 1"),
        ((bytes(16), b"s" * 8, 0, 1), "has a span and flags 1"),
        ((b"t" * 16, b"s" * 8, 0, 0), "has a span and flags 0"),
        ((bytes(16), bytes(8), 0, 2), "has unknown flags 2"),
        ((bytes(16), bytes(8), MAX_IDS + 1, 0), f"names {MAX_IDS + 1} requests, the limit is"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(
    marks: tuple[bytes, bytes, int, int], why: str
) -> None:
    parts = over_the_wire(request())
    parts[0][:] = HEAD.pack(MAGIC, REQUEST, 1, 5, 77, 3, 3, 4, 0, 0, MARKS.pack(*marks))
    with pytest.raises(WireFormatError, match=why):
        decode(parts)
    with pytest.raises(WireFormatError, match=why):
        read_head(parts[0])


def test_request_ids_must_be_as_many_as_the_head_says() -> None:
    parts = over_the_wire(request(origin=Origin(IDS)))
    with pytest.raises(WireFormatError, match="has 4 parts"):
        decode(parts[:4])
    with pytest.raises(WireFormatError, match="has 31 bytes, its header says 32"):
        decode([*parts[:4], parts[4][:31]])
    with pytest.raises(WireFormatError, match="has 5 parts"):
        decode([*over_the_wire(request()), parts[4]])
