"""The two ends of streams that go past Ray."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.answers import AnswerDesk
from services.gateway.bypass import StreamLine, open_desk
from tests.support.streaming import HOST


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[StreamLine]:
    made = StreamLine(HOST, tmp_path)
    yield made
    made.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[AnswerDesk]:
    opened = open_desk(HOST, tmp_path)
    yield opened
    opened.close()
