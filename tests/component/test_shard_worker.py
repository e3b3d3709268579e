"""A shard's worker with what waits for it at once: one batch, whoever else asks and for what."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from router.rows import Rows
from router.table import ShardId
from services.experts.threads import SETTLE, TRIAL
from services.experts.worker import MOST_KEPT, ShardWorker
from services.transport.base import Answered, RowsAnswer, RowsRefusal, RowsRequest
from services.transport.inprocess import Hub, InProcessLink
from tests.component.test_remote_pool import HIDDEN, TimesExpert

SHARD = ShardId("a")


def request(number: int, experts: list[int], dtype: type = np.float32) -> RowsRequest:
    """Each pair has a row of its own, whose numbers are those of the request."""
    rows: Rows = np.full((len(experts), HIDDEN), number, dtype)
    places = np.arange(len(experts), dtype=np.int32)
    return RowsRequest(number, 0, rows, places, np.array(experts, np.int32))


@contextmanager
def shard(kernel: TimesExpert, *, threads: int = 1) -> Iterator[tuple[ShardWorker, InProcessLink]]:
    """One that holds experts 0 to 2, and who may ask it."""
    hub = Hub()
    link, port = hub.link(), hub.port(SHARD)
    link.connect([port.address])
    worker = ShardWorker(kernel, port, threads=threads)
    worker.start()
    try:
        worker.load(0, {0: 0, 1: 1, 2: 2})
        yield worker, link
    finally:
        worker.stop()


def next_answers(link: InProcessLink, count: int) -> dict[int, RowsAnswer | RowsRefusal]:
    found: dict[int, RowsAnswer | RowsRefusal] = {}
    while len(found) < count:
        events = link.receive(10.0)
        assert events, f"no answer within 10 s; got {sorted(found)}"
        for event in events:
            assert isinstance(event, Answered)
            found[event.answer.number] = event.answer
    return found


def rows_of(answer: RowsAnswer | RowsRefusal) -> list[float]:
    assert isinstance(answer, RowsAnswer), answer
    assert (answer.rows == answer.rows[:, :1]).all()
    return [float(row[0]) for row in answer.rows]


def test_one_batch_answers_each_its_own_rows_and_refuses_who_asks_for_others() -> None:
    kernel = TimesExpert()
    asked = [request(1, [0, 2]), request(2, [1, 3]), request(3, [2]), request(4, [1], np.float16)]

    def send() -> None:  # in the worker's thread, which finds all of them when it looks again
        for one in asked:
            link.send(SHARD, one)

    with shard(kernel) as (worker, link):
        worker._in_worker(send)
        found = next_answers(link, len(asked))
    assert rows_of(found[1]) == [1.0, 3.0]
    assert found[2] == RowsRefusal(2, "layer 0 experts [3] are not held here")
    assert rows_of(found[3]) == [9.0]
    assert rows_of(found[4]) == [8.0]
    assert len(kernel.threads) == 2  # batches, one of each dtype


@pytest.mark.parametrize("n_pairs", [3, MOST_KEPT + 1])
def test_answers_stay_as_they_are_when_the_next_batch_has_the_same_size(n_pairs: int) -> None:
    kept = []
    with shard(TimesExpert()) as (_, link):
        for number in (1, 2):
            link.send(SHARD, request(number, [1] * n_pairs))
            kept.append(next_answers(link, 1)[number])
    assert [rows_of(answer) for answer in kept] == [[2.0] * n_pairs, [4.0] * n_pairs]


class QuickerAlone(TimesExpert):
    """Another thread makes it slower."""

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        time.sleep(1e-3 * torch.get_num_threads())
        return super().run(layer, rows, slots)


def test_threads_that_gain_nothing_are_used_no_more() -> None:
    kernel, batches = QuickerAlone(), SETTLE + 2 * TRIAL
    with shard(kernel, threads=3) as (_, link):
        for number in range(1, batches + 1):
            link.send(SHARD, request(number, [1]))
            assert rows_of(next_answers(link, 1)[number]) == [2.0 * number]
    assert kernel.threads == [3] * SETTLE + [1] * (batches - SETTLE)
