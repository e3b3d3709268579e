"""A request is sent again before its first byte, and goes on where it was after it."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from monitoring.meter import Meter
from router.errors import EngineError, PeerLost
from services.gateway.relay import PAUSE_S, relay
from services.relayed import Head, Part, RelayedRequest

REQUEST = RelayedRequest(
    request_id="r", method="POST", path="/v1/completions", query=b"", body=b"{}",
    content_type="application/json", expires_s=2e10,
)  # fmt: skip
HEAD = Head(200, ((b"content-type", b"text/event-stream"),))
WORDS = ["Once", " upon", " a", " time"]


class Replicas:
    """Each in turn answers so many parts and dies; those that are left answer to the end."""

    def __init__(self, *dies_after: int, can_resume: bool = True) -> None:
        self.dies_after = list(dies_after)
        self.can_resume = can_resume
        self.asked: list[RelayedRequest] = []

    async def ask(self, request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        self.asked.append(request)
        created = 1_700_000_000 + len(self.asked)
        limit = self.dies_after.pop(0) if self.dies_after else None
        if limit is not None and limit < 0:
            raise PeerLost("died")
        yield HEAD
        for number, word in enumerate(WORDS):
            if number == limit:
                raise PeerLost("died")
            body = f'data: {{"created":{created},"text":"{word}"}}\n\n'.encode()
            yield Part(body, 3, number + 1, self.can_resume, ((number,),))


async def run(replicas: Replicas, request: RelayedRequest = REQUEST) -> list[Head | Part]:
    return [answer async for answer in relay(request, replicas.ask, Meter().took_over, pause_s=0)]


def text(answers: list[Head | Part]) -> bytes:
    return b"".join(answer.body for answer in answers if isinstance(answer, Part))


async def test_an_answer_is_passed_on() -> None:
    replicas = Replicas()
    answers = await run(replicas)
    assert answers[0] == HEAD
    assert len(answers) == 5
    assert len(replicas.asked) == 1


async def test_before_the_first_byte_it_is_sent_again_once() -> None:
    undisturbed, replicas = await run(Replicas()), Replicas(-1)
    assert text(await run(replicas)).count(b"time") == text(undisturbed).count(b"time") == 1
    assert [request.resume for request in replicas.asked] == [None, None]
    with pytest.raises(PeerLost):
        await run(Replicas(-1, -1))


async def test_the_head_goes_with_the_first_byte() -> None:
    with pytest.raises(PeerLost):
        await run(Replicas(0, 0))  # once more, and no head of either
    answers = []

    async def ask(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        answers.append(request)
        yield Head(200 + len(answers), ())
        if len(answers) == 1:
            raise PeerLost("died")

    assert [answer async for answer in relay(REQUEST, ask, Meter().took_over, pause_s=0)] == [
        Head(202, ())
    ]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_stream_goes_on_where_it_was(after: int) -> None:
    replicas = Replicas(after)
    answers = await run(replicas)
    assert [type(answer) for answer in answers] == [Head] + [Part] * 4
    first = 1_700_000_001 if after else 1_700_000_002
    assert text(answers) == b"".join(
        f'data: {{"created":{first},"text":"{word}"}}\n\n'.encode() for word in WORDS
    )
    resume = replicas.asked[1].resume
    if after:
        assert resume is not None
        assert resume.groups == tuple((number,) for number in range(after))
        assert resume.n_parts == after


async def test_a_stream_survives_two_deaths() -> None:
    assert len(await run(Replicas(1, 2))) == 5
    with pytest.raises(PeerLost):
        await run(Replicas(1, 2, 3))


async def test_what_cannot_be_taken_over_says_so() -> None:
    with pytest.raises(PeerLost, match="cannot be taken over"):
        await run(Replicas(2, can_resume=False))
    with pytest.raises(PeerLost, match="cannot be taken over"):
        await run(Replicas(2), replace(REQUEST, path="/v1/responses"))


async def test_an_answer_that_comes_out_differently_is_not_mixed_in() -> None:
    replicas = Replicas(2)

    async def ask(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        async for answer in replicas.ask(request):
            if isinstance(answer, Part) and len(replicas.asked) > 1:
                yield replace(answer, body=answer.body + b" ")
            else:
                yield answer

    with pytest.raises(PeerLost, match="differently"):
        [answer async for answer in relay(REQUEST, ask, Meter().took_over, pause_s=0)]


async def test_errors_of_the_engine_are_not_tried_again() -> None:
    asked = []

    async def ask(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        asked.append(request)
        for answer in (HEAD, None):
            if answer is None:
                raise EngineError("no")
            yield answer

    with pytest.raises(EngineError):
        [answer async for answer in relay(REQUEST, ask, Meter().took_over, pause_s=0)]
    assert len(asked) == 1


async def test_a_replica_whose_engine_died_has_time_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("services.gateway.relay.asyncio.sleep", sleep)
    replicas = Replicas(1, 2)
    answers = [answer async for answer in relay(REQUEST, replicas.ask, Meter().took_over)]
    assert (len(answers), paused) == (5, [PAUSE_S, PAUSE_S])
