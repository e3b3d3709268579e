"""How a gateway asks a replica: the handle is made up, the way of the answer's pieces is real."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from services.answers import AnswerDesk, AnswerLine, ReplyTo
from services.gateway.ask import ask_through
from services.relayed import Answer, Head, Part, RelayedRequest

REQUEST = RelayedRequest("id", "POST", "/v1/completions", b"", b"{}", "application/json", 2e9)
PIECES: tuple[Answer, ...] = (Head(200, ()), Part(b"1"), Part(b"2"))


class Handle:
    """Of replicas that all answer alike. n_cancelled: calls that were taken back."""

    def __init__(self, line: AnswerLine, *, never_returns: bool = False) -> None:
        self.line, self.never_returns = line, never_returns
        self.asked: list[RelayedRequest] = []
        self.n_cancelled = 0

    def options(self, *, method_name: str) -> "Handle":
        assert method_name == "answer"
        return self

    def remote(self, request: RelayedRequest, to: ReplyTo) -> "Handle":
        self.asked.append(request)
        for piece in PIECES:
            self.line.send(to, piece)
        return self

    def __await__(self) -> Generator[Any, None, int]:
        return self._return().__await__()

    async def _return(self) -> int:
        if self.never_returns:
            await asyncio.Event().wait()
        return len(PIECES)

    def cancel(self) -> None:
        self.n_cancelled += 1


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[AnswerDesk, AnswerLine]]:
    desk, line = AnswerDesk("gateway", host="one", run_dir=tmp_path), AnswerLine(host="one")
    serving = asyncio.create_task(desk.serve())
    yield desk, line
    serving.cancel()
    line.close()
    desk.close()


async def test_an_answer_that_is_whole_is_not_taken_back(
    ends: tuple[AnswerDesk, AnswerLine],
) -> None:
    handle = Handle(ends[1])
    ask = ask_through(cast(DeploymentHandle, handle), ends[0], "mine")
    async with aclosing(ask(REQUEST)) as answers:
        assert tuple([answer async for answer in answers]) == PIECES
    assert [request.gateway_id for request in handle.asked] == ["mine"]
    assert handle.n_cancelled == 0


async def test_an_answer_that_nobody_waits_for_is(ends: tuple[AnswerDesk, AnswerLine]) -> None:
    handle = Handle(ends[1], never_returns=True)
    ask = ask_through(cast(DeploymentHandle, handle), ends[0], "mine")
    async with aclosing(ask(REQUEST)) as answers:
        assert await anext(answers) == PIECES[0]
    assert handle.n_cancelled == 1
