"""Pieces of answers over real sockets: in order, complete, and to whoever asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from router.errors import PeerLost
from services import answers
from services.answers import AnswerDesk, AnswerLine, Call, ReplyTo
from services.relayed import Answer, Head, Part
from services.transport.keys import DataPlaneKeys, make_keys

HEAD = Head(200, ((b"content-type", b"text/event-stream"),))
PARTS = tuple(Part(f"data: {n}\n\n".encode(), 5, n, True, ((n,), (n, n))) for n in range(40))


@pytest.fixture
def keys() -> DataPlaneKeys:
    return make_keys()


@asynccontextmanager
async def listening(folder: Path, keys: DataPlaneKeys, tcp_host: str) -> AsyncIterator[AnswerDesk]:
    desk = AnswerDesk("gateway", host="one", run_dir=folder, tcp_host=tcp_host, keys=keys)
    task = asyncio.create_task(desk.serve())
    try:
        yield desk
    finally:
        task.cancel()
        desk.close()


@asynccontextmanager
async def line(host: str, keys: DataPlaneKeys) -> AsyncIterator[AnswerLine]:
    made = AnswerLine(host=host, keys=keys)
    try:
        yield made
    finally:
        made.close()


async def send_all(sender: AnswerLine, to: ReplyTo, pieces: tuple[Answer, ...]) -> int:
    for piece in pieces:
        sender.send(to, piece)
        await asyncio.sleep(0)
    return len(pieces)


async def collect(call: Call, returned: Awaitable[int]) -> list[Answer]:
    return [piece async for piece in call.follow(returned)]


@pytest.mark.parametrize("host", ["one", "another"])
async def test_every_call_gets_its_pieces_in_order(
    tmp_path: Path, keys: DataPlaneKeys, host: str
) -> None:
    async with listening(tmp_path, keys, "127.0.0.1") as desk, line(host, keys) as sender:
        calls = [desk.open() for _ in range(5)]
        got = await asyncio.gather(
            *(
                collect(call, send_all(sender, call.reply_to, (HEAD, *PARTS[: 8 * n])))
                for n, call in enumerate(calls)
            )
        )
    assert got == [[HEAD, *PARTS[: 8 * n]] for n in range(5)]


async def test_what_is_sent_in_one_turn_is_one_message(tmp_path: Path, keys: DataPlaneKeys) -> None:
    async with listening(tmp_path, keys, "") as desk, line("one", keys) as sender:
        calls = [desk.open() for _ in range(3)]
        for call in calls:
            sender.send(call.reply_to, HEAD)
        assert [len(pieces) for pieces in sender._unsent.values()] == [3]

        async def one() -> int:
            return 1

        assert [await collect(call, one()) for call in calls] == [[HEAD]] * 3


async def test_a_call_that_fails_says_why_after_its_pieces(
    tmp_path: Path, keys: DataPlaneKeys
) -> None:
    async with listening(tmp_path, keys, "") as desk, line("one", keys) as sender:
        call, seen = desk.open(), asyncio.Event()

        async def die() -> int:
            sender.send(call.reply_to, HEAD)
            await seen.wait()
            raise PeerLost("the engine died")

        following = call.follow(die())
        assert await anext(following) == HEAD
        seen.set()
        with pytest.raises(PeerLost, match="the engine died"):
            await anext(following)


async def test_pieces_that_do_not_come_are_missed(
    tmp_path: Path, keys: DataPlaneKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LAST_PIECES_S", 0.05)
    async with listening(tmp_path, keys, "") as desk:

        async def two() -> int:
            return 2

        with pytest.raises(PeerLost, match="0 of 2 pieces"):
            await collect(desk.open(), two())


async def test_pieces_of_a_call_that_was_given_up_are_dropped(
    tmp_path: Path, keys: DataPlaneKeys
) -> None:
    async with listening(tmp_path, keys, "") as desk, line("one", keys) as sender:
        left = desk.open()
        following = left.follow(asyncio.Event().wait())
        sender.send(left.reply_to, HEAD)
        assert await anext(following) == HEAD
        await following.aclose()
        sender.send(left.reply_to, PARTS[0])
        stays = desk.open()
        assert await collect(stays, send_all(sender, stays.reply_to, (HEAD,))) == [HEAD]


async def test_another_key_is_refused_on_tcp(
    tmp_path: Path, keys: DataPlaneKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LAST_PIECES_S", 0.5)
    stranger = replace(keys, attention=make_keys().attention)  # knows the gateway's public key
    async with (
        listening(tmp_path, keys, "127.0.0.1") as desk,
        line("another", stranger) as sender,
    ):
        call = desk.open()
        with pytest.raises(PeerLost, match="0 of 1 pieces"):
            await collect(call, send_all(sender, call.reply_to, (HEAD,)))
    with pytest.raises(PeerLost, match="without keys"):
        AnswerDesk("other", host="one", run_dir=tmp_path, tcp_host="127.0.0.1")
