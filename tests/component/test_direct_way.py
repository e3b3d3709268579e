"""A pool over Unix sockets: plain layers go the short way on both sides, and all others get there.

What a shard's death in the middle of a layer does is seen with real processes in `test_kills`.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from router.combine import combine
from router.table import ShardId
from services.attention import direct_layer
from services.attention.layer_step import LayerStep
from services.attention.remote_pool import NOTED_AT_ONCE
from services.attention.traffic import EXPERT_ROWS
from services.experts.worker import ShardWorker
from services.transport.direct_link import MOST_BYTES
from services.transport.sockets import SocketLink, SocketPort
from tests.component.test_remote_pool import EXPERTS, HIDDEN, Pool, TimesExpert


class Ways:
    """How many layers and batches went which way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers = self.taken_over = self.batches = self.long_batches = 0
        self._follow(monkeypatch, direct_layer, "launch", "layers")
        self._follow(monkeypatch, LayerStep, "was_sent", "taken_over")
        self._follow(monkeypatch, ShardWorker, "_note", "batches")
        self._follow(monkeypatch, ShardWorker, "_serve_batch", "long_batches")

    def _follow(self, monkeypatch: pytest.MonkeyPatch, of: object, name: str, count: str) -> None:
        own = getattr(of, name)

        def counting(*args: object, **kwargs: object) -> object:
            found = own(*args, **kwargs)
            if name != "launch" or found is not None:
                setattr(self, count, getattr(self, count) + 1)
            return found

        monkeypatch.setattr(of, name, counting)
        if name == "launch":
            monkeypatch.setattr("services.attention.remote_pool.launch", counting)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


@pytest.fixture
def pool(ways: Ways, tmp_path: Path) -> Iterator[Pool]:
    """Two shards, each with all experts."""
    pool = Pool()
    pool.remote.link = SocketLink(host="here")
    for name in ("a", "b"):
        port = SocketPort(ShardId(name), host="here", run_dir=tmp_path)
        pool.add(name, list(range(EXPERTS)), port)  # type: ignore[arg-type]
    pool.start("a", "b")
    yield pool
    pool.remote.link.close()
    for worker in pool.workers.values():
        worker.stop()


def test_after_the_first_layer_all_go_the_short_way(pool: Pool, ways: Ways) -> None:
    for tokens in (6, 1, 33, 6, 0, 2):
        pool.compute(tokens)
    assert (ways.layers, ways.taken_over) == (5, 0), "one had no rows"
    assert ways.long_batches <= 2, "each shard learns from one what rows are like"
    assert ways.batches > ways.long_batches
    traffic = pool.remote.traffic
    assert (traffic.resends, traffic.late_answers, traffic.lost, traffic.wrong) == (0, 0, 0, 0)
    assert traffic.rows_returned == 2 * (6 + 1 + 33 + 6 + 2)
    assert traffic.bytes_returned == 4 * HIDDEN * traffic.rows_returned
    assert traffic.rows_sent * 4 * HIDDEN == traffic.bytes_sent
    assert traffic.sends == ways.batches
    assert int(np.sum(traffic.expert_rows)) == traffic.rows_returned  # type: ignore[arg-type]
    assert (
        0
        < traffic.row_s
        <= traffic.rows_returned
        * (pool.remote.times.send_s + pool.remote.times.shared_s + pool.remote.times.wait_s)
    )
    pool.remote._send_report()
    assert EXPERT_ROWS in pool.feed.reports[-1].totals


def test_layers_are_noted_some_at_once_and_all_when_a_step_ends(pool: Pool) -> None:
    remote, last = pool.remote, pool.remote._last_layer
    pool.compute()
    remote._last_layer = last + 1
    untold = []
    for _ in range(3 * NOTED_AT_ONCE):
        pool.compute()
        untold.append(len(remote._untold))
    assert max(untold) == NOTED_AT_ONCE
    assert untold.count(1) == 3
    remote._last_layer = last
    pool.compute()
    assert not remote._untold
    assert remote.times.layers == 2 + 3 * NOTED_AT_ONCE
    assert remote.traffic.rows_returned == int(np.sum(remote.traffic.expert_rows))  # type: ignore[arg-type]


def test_halves_and_large_layers_go_the_long_way_and_the_next_is_short(
    pool: Pool, ways: Ways
) -> None:
    pool.compute()
    pool.in_halves = True
    pool.compute()
    pool.in_halves = False
    pool.compute(tokens=MOST_BYTES // (2 * 4 * HIDDEN))
    assert ways.layers == 1
    pool.compute()
    assert ways.layers == 2
    assert ways.taken_over == 0


def test_a_shard_that_goes_away_is_met_on_the_long_way(pool: Pool, ways: Ways) -> None:
    pool.compute()
    pool.workers["a"].stop()
    pool.compute()
    assert ways.taken_over == 1
    assert pool.remote.dead == {"a"}
    pool.publish("b")
    pool.compute()
    assert ways.layers == 3, "a table without it has the short way again"
    assert [list(r.lost) for r in pool.feed.reports if r.lost] == [["a"]]


def test_a_silent_shard_is_left_when_its_time_is_over(pool: Pool, ways: Ways) -> None:
    for _ in range(3):
        pool.compute()
    pool.remote.settings = replace(pool.remote.settings, reply_timeout_s=0.5)
    resume = threading.Event()

    def hold() -> None:
        resume.wait(10)

    pool.workers["a"]._tasks.put(hold)
    pool.workers["a"]._port.wake()
    time.sleep(0.2)
    started_s = time.monotonic()
    pool.compute()
    took_s = time.monotonic() - started_s
    resume.set()
    assert 0.49 < took_s < 0.8, "the short way's wait counts"
    assert ways.taken_over == 1
    assert pool.remote.dead == {"a"}
    assert pool.remote.traffic.row_s > 0.49


def test_an_expert_that_has_moved_is_refused_and_found_elsewhere(pool: Pool, ways: Ways) -> None:
    for _ in range(3):
        pool.compute()
    worker = pool.workers["a"]
    worker._in_worker(lambda: worker._forget(0, {0: 0, 1: 1, 2: 2, 3: 3}))
    pool.compute()
    assert ways.taken_over == 1
    assert pool.remote.traffic.refused == 1
    assert not pool.remote.dead


def test_a_kernel_that_fails_refuses_and_the_worker_goes_on(
    pool: Pool, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        pool.compute()

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("out of luck")

    monkeypatch.setattr(TimesExpert, "run", fail)
    pool.compute()
    assert pool.remote.traffic.refused == 1
    pool.compute()
    assert pool.remote.traffic.resends == 1


def test_not_numbers_are_put_right_by_the_other_replica(pool: Pool, ways: Ways) -> None:
    for _ in range(3):
        pool.compute()
    pool.workers["a"]._kernel.factors[:] = float("nan")  # type: ignore[attr-defined]
    pool.compute(tokens=33)
    assert list(pool.wrong()) == ["a"]
    assert pool.remote.open_layers == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_other_types_go_the_short_way(pool: Pool, ways: Ways, dtype: torch.dtype) -> None:
    x = torch.randn(5, HIDDEN).to(dtype)
    ids = torch.tensor([[0, 3], [1, 2], [2, 0], [3, 1], [0, 1]], dtype=torch.int32)
    weights = torch.rand(5, 2)
    for _ in range(3):
        out = pool.remote.compute(0, x, weights, ids, meanwhile=lambda: None)
        rows = (x[:, None] * (ids + 1)[:, :, None]).view(-1, HIDDEN)
        assert torch.equal(out, combine(rows, weights).to(dtype))
    assert ways.layers == 3
    assert ways.taken_over == 0
