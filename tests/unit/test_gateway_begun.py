"""The header that tells a second gateway what came of the first, and what is no such header."""

import base64

import msgpack
import pytest

from services.gateway.bypass import BEGUN, NOTHING_BEGUN, begun, find_begun
from services.gateway.relay import Sent


def packed(*values: object) -> bytes:
    return base64.b64encode(msgpack.packb(values))


def test_what_has_begun_is_found_again() -> None:
    sent = Sent(n_parts=2, n_bytes=40, created=b'"created":7', groups=[(1, 2), (3,)])
    request_id, found = find_begun([begun("r1", sent)])
    assert (request_id, found) == ("r1", sent)
    assert find_begun([]) == NOTHING_BEGUN


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"nonsense",
        base64.b64encode(b"\xc1"),
        packed("r1", 2, 40, b""),
        packed("r1", "2", 40, b"", ()),
        packed("r1", 2, 40, b"", ("x",)),
        packed("r1", 2, 40, b"", ((1.5,),)),
    ],
)
def test_what_somebody_made_up_is_nothing(value: bytes) -> None:
    assert find_begun([(BEGUN, value)]) == NOTHING_BEGUN
