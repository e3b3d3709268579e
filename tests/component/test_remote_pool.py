"""An attention worker's pool against shard workers in this process: right rows, whatever fails."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from router.choose import Policy
from router.combine import combine
from router.errors import RoutingError
from router.table import ReplicaTable, ShardId, build_table
from services.attention.feed import WorkerReport
from services.attention.remote_pool import RemotePool
from services.attention.settings import RemoteSettings
from services.attention.traffic import EXPERT_ROWS
from services.experts.kernel import LoadedSlots
from services.experts.worker import ShardWorker
from services.transport.base import Delivery, RowsAnswer, RowsRefusal
from services.transport.inprocess import Hub, InProcessPort

EXPERTS, HIDDEN = 4, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of both sides


class TimesExpert:
    """A kernel whose expert e multiplies by e + 1: a row that went astray shows."""

    n_layers, n_experts, n_slots = 1, EXPERTS, EXPERTS

    device = DEVICE

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.factors = torch.zeros(EXPERTS, device=DEVICE)

    def read(self, layer: int, experts: Mapping[int, int]) -> LoadedSlots:
        return LoadedSlots(layer, experts, None, 0)

    def install(self, loaded: LoadedSlots) -> None:
        for slot, expert in loaded.experts.items():
            self.factors[slot] = expert + 1

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        assert rows.device.type == slots.device.type == DEVICE.type
        self.threads.append(torch.get_num_threads())
        return (rows * self.factors[slots.long()].view(-1, 1)).to(rows.dtype)

    def slot_bytes(self, layer: int, slot: int) -> list[torch.Tensor]:
        return [self.factors[slot : slot + 1]]

    def weight_bytes(self) -> int:
        return 0


class Feed:
    """Tables by hand, reports kept."""

    def __init__(self) -> None:
        self.tables: list[ReplicaTable] = []
        self.reports: list[WorkerReport] = []

    def poll(self) -> ReplicaTable | None:
        return self.tables.pop() if self.tables else None

    def wait(self, timeout_s: float) -> ReplicaTable | None:
        return self.poll()

    def report(self, report: WorkerReport) -> None:
        self.reports.append(report)


class Pool:
    """Shards a, b, … that hold the experts given, and the attention side."""

    def __init__(self, reply_timeout_s: float = 5.0, deadline_s: float = 5.0) -> None:
        self.hub, self.feed = Hub(), Feed()
        self.workers: dict[str, ShardWorker] = {}
        self.version = 0
        self.in_halves = False
        settings = RemoteSettings("", "here", reply_timeout_s, deadline_s, Policy.LEAST_TOKENS)
        self.remote = RemotePool(settings, self.feed, self.hub.link())  # type: ignore[arg-type]

    def add(
        self,
        name: str,
        experts: list[int],
        port: InProcessPort | None = None,
        *,
        kernel: TimesExpert | None = None,
        threads: int = 1,
    ) -> None:
        worker = ShardWorker(
            kernel or TimesExpert(), port or self.hub.port(ShardId(name)), threads=threads
        )
        worker.start()
        worker.load(0, dict(enumerate(experts)))
        self.workers[name] = worker

    def publish(self, *names: str) -> None:
        self.version += 1
        held = [
            (self.workers[n].address, {0: [int(e) for e in self.workers[n].held()[0] if e >= 0]})
            for n in names
        ]
        self.feed.tables.append(build_table(self.version, held, n_layers=1, n_experts=EXPERTS))

    def start(self, *names: str) -> None:
        self.publish(*names)
        self.remote.wait_until_complete(1)

    def wrong(self) -> dict[str, str]:
        """Who was reported to answer wrongly, and why."""
        return {str(s): why for r in self.feed.reports for s, why in r.wrong.items()}

    def compute(self, tokens: int = 6) -> None:
        """Run a layer, or two halves of a step with one, and compare with the dense result."""
        if self.in_halves:
            turns = self.remote.turns
            turns.run(lambda: self.compute_half(tokens), lambda: self.compute_half(tokens + 1))
        else:
            self.compute_half(tokens)
        assert self.remote.open_layers == []

    def compute_half(self, tokens: int) -> None:
        generator = torch.Generator().manual_seed(self.version)
        x = torch.randn(tokens, HIDDEN, generator=generator).to(DEVICE)
        ids = torch.rand(tokens, EXPERTS, generator=generator).argsort(1)[:, :2].to(DEVICE)
        weights = torch.rand(tokens, 2, generator=generator).to(DEVICE)
        shared: list[str] = []
        out = self.remote.compute(
            0, x, weights, ids.int(), meanwhile=lambda: shared.append("shared experts")
        )
        assert shared == ["shared experts"]
        rows = (x[:, None] * (ids + 1)[:, :, None]).view(-1, HIDDEN)
        assert torch.equal(out.cpu(), combine(rows.cpu(), weights.cpu())), "bits, on any device"


@pytest.fixture(params=["whole", "halves"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Every failure is met by whole steps and by those of two halves."""
    pool = Pool()
    pool.in_halves = request.param == "halves"
    yield pool
    for worker in pool.workers.values():
        worker.stop()


class Wrong(InProcessPort):
    """A shard that answers in a wrong way."""

    def __init__(self, hub: Hub, name: str, spoil: Any) -> None:
        super().__init__(hub, hub.port(ShardId(name)).address)
        hub.ports[ShardId(name)] = self
        self._spoil = spoil

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        super().answer(delivery, self._spoil(answer))


def test_rows_of_two_shards_are_combined_as_a_dense_layer_would(pool: Pool) -> None:
    pool.add("a", [0, 1])
    pool.add("b", [2, 3])
    pool.start("a", "b")
    for tokens in (6, 1, 33, 0):
        pool.compute(tokens)
    assert pool.remote.traffic.resends == 0


def test_each_half_of_a_step_gets_its_own_answers(pool: Pool) -> None:
    pool.in_halves = True
    pool.add("a", [0, 1])
    pool.add("b", [2, 3])
    pool.start("a", "b")
    for _ in range(20):
        pool.compute()
    traffic = pool.remote.traffic
    assert (traffic.resends, traffic.late_answers, traffic.lost, traffic.wrong) == (0, 0, 0, 0)
    assert pool.remote.times.layers == 40


def test_a_shard_leaves_cores_to_the_half_that_computes_meanwhile(pool: Pool) -> None:
    kernel, threads = TimesExpert(), torch.get_num_threads()

    def use_one() -> None:
        torch.get_num_threads()  # a thread's first question would undo what it set before
        torch.set_num_threads(1)

    pool.remote.turns.run(use_one, use_one)  # on the attention side
    pool.add("a", [0, 1, 2, 3], kernel=kernel, threads=3)
    pool.start("a")
    pool.compute()
    torch.set_num_threads(threads)
    assert set(kernel.threads) == ({2} if pool.in_halves else {3})


def test_a_shard_that_goes_away_costs_a_resend_and_is_reported(pool: Pool) -> None:
    pool.add("a", [0, 1, 2, 3])
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    pool.compute()
    pool.workers["a"].stop()
    pool.compute()
    pool.compute()
    assert [list(r.lost) for r in pool.feed.reports if r.lost] == [["a"]]


def test_a_shard_that_came_back_before_the_worker_looked_is_tried_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.attention.remote_pool.FORGIVE_S", 0.1)
    pool.add("a", [0, 1, 2, 3])
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    pool.compute()
    pool.remote.lose(ShardId("a"), "no answer")
    pool.publish("a", "b")  # the table without it was never seen
    pool.compute()
    assert pool.remote.dead == {"a"}
    time.sleep(0.2)
    rows = pool.workers["a"].stats.rows
    pool.compute()
    assert not pool.remote.dead
    assert pool.workers["a"].stats.rows > rows


def test_a_silent_shard_is_left_at_its_deadline_and_its_late_answer_dropped() -> None:
    pool = Pool(reply_timeout_s=0.3)
    held_back: list[tuple[Delivery, RowsAnswer | RowsRefusal]] = []

    class Slow(InProcessPort):
        def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
            held_back.append((delivery, answer))

    slow = Slow(pool.hub, pool.hub.port(ShardId("a")).address)
    pool.hub.ports[ShardId("a")] = slow
    pool.add("a", [0, 1, 2, 3], slow)
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    started_s = time.monotonic()
    pool.compute()
    assert 0.3 <= time.monotonic() - started_s < 3
    for delivery, answer in held_back:
        InProcessPort.answer(slow, delivery, answer)
    pool.compute()
    assert pool.remote.traffic.late_answers == len(held_back) > 0
    for worker in pool.workers.values():
        worker.stop()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: RowsAnswer(a.number, a.rows[:-1]),
        lambda a: RowsAnswer(a.number, a.rows.astype(np.float64)),
        lambda a: RowsRefusal(a.number, "not held here"),
    ],
    ids=["too few rows", "another dtype", "refusal"],
)
def test_a_wrong_answer_goes_to_the_other_replica(pool: Pool, spoil: Any) -> None:
    pool.add("a", [0, 1, 2, 3], Wrong(pool.hub, "a", spoil))
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    pool.compute()
    assert pool.remote.traffic.resends > 0
    is_refusal = isinstance(spoil(RowsAnswer(1, np.zeros((1, HIDDEN), np.float32))), RowsRefusal)
    assert list(pool.wrong()) == ([] if is_refusal else ["a"])
    assert (pool.remote.traffic.refused > 0) == is_refusal
    assert (pool.remote.traffic.wrong, pool.remote.traffic.lost) == (not is_refusal, 0)


def test_a_number_that_was_never_sent_names_the_shard_at_once(pool: Pool) -> None:
    spoil = lambda a: RowsAnswer(a.number + 10_000, a.rows)  # noqa: E731
    pool.add("a", [0, 1, 2, 3], Wrong(pool.hub, "a", spoil))
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    started_s = time.monotonic()
    pool.compute()
    assert time.monotonic() - started_s < pool.remote.settings.reply_timeout_s / 2
    assert "which was never sent" in pool.wrong()["a"]


def not_numbers(answer: RowsAnswer | RowsRefusal) -> RowsAnswer | RowsRefusal:
    if isinstance(answer, RowsAnswer):
        answer.rows[-1] = float("nan")
    return answer


def test_nan_from_one_replica_is_put_right_by_the_other_which_names_it(pool: Pool) -> None:
    pool.add("a", [0, 1, 2, 3], Wrong(pool.hub, "a", not_numbers))
    pool.add("b", [0, 1, 2, 3])
    pool.start("a", "b")
    pool.compute()
    assert list(pool.wrong()) == ["a"]
    assert "layer 0 with NaN or infinity where another replica has none" in pool.wrong()["a"]
    assert pool.remote.dead == {"a"}
    pool.compute()


def test_nan_that_every_replica_answers_is_the_models_own(pool: Pool) -> None:
    for name in ("a", "b"):
        pool.add(name, [0, 1, 2, 3])
    pool.start("a", "b")
    x = torch.ones(4, HIDDEN)
    x[2] = float("inf")
    ids = torch.tensor([[0, 1]] * 4, dtype=torch.int32)
    weights = torch.ones(4, 2)
    out = pool.remote.compute(0, x, weights, ids, meanwhile=lambda: None)
    assert torch.isfinite(out).all(dim=1).tolist() == [True, True, False, True]
    assert pool.wrong() == {}
    assert not pool.remote.dead


def test_nan_of_an_expert_with_one_replica_stays_and_nobody_is_blamed(pool: Pool) -> None:
    pool.add("a", [0, 1, 2, 3], Wrong(pool.hub, "a", not_numbers))
    pool.start("a")
    ids, weights = torch.tensor([[0, 1]], dtype=torch.int32), torch.ones(1, 2)
    out = pool.remote.compute(0, torch.ones(1, HIDDEN), weights, ids, meanwhile=lambda: None)
    assert out.isnan().all()
    assert pool.wrong() == {}


def test_a_shard_that_takes_longer_gets_fewer_rows(pool: Pool) -> None:
    def slowly(answer: RowsAnswer | RowsRefusal) -> RowsAnswer | RowsRefusal:
        assert isinstance(answer, RowsAnswer)
        return RowsAnswer(answer.number, answer.rows, computed_us=3000 * answer.rows.shape[0])

    def quickly(answer: RowsAnswer | RowsRefusal) -> RowsAnswer | RowsRefusal:
        assert isinstance(answer, RowsAnswer)
        return RowsAnswer(answer.number, answer.rows, computed_us=1000 * answer.rows.shape[0])

    pool.add("a", [0, 1, 2, 3], Wrong(pool.hub, "a", slowly))
    pool.add("b", [0, 1, 2, 3], Wrong(pool.hub, "b", quickly))
    pool.start("a", "b")
    for _ in range(100):
        pool.compute(tokens=32)
    before = {name: worker.stats.rows for name, worker in pool.workers.items()}
    for _ in range(50):
        pool.compute(tokens=32)
    rows = {name: worker.stats.rows - before[name] for name, worker in pool.workers.items()}
    assert rows["b"] / rows["a"] == pytest.approx(3, rel=0.15)


def test_lost_experts_are_waited_for_until_a_table_has_them(pool: Pool) -> None:
    pool.add("a", [0, 1])
    pool.add("b", [2, 3])
    pool.start("a", "b")
    pool.workers["b"].stop()
    pool.add("c", [2, 3])
    pool.publish("a", "c")
    pool.feed.tables.insert(0, pool.feed.tables.pop())
    pool.compute()


def test_experts_that_stay_lost_are_named_when_the_deadline_is_over() -> None:
    pool = Pool(deadline_s=0.2)
    pool.add("a", [0, 1])
    pool.add("b", [2, 3])
    pool.start("a", "b")
    pool.workers["b"].stop()
    with pytest.raises(RoutingError, match=r"no live shard holds experts \[.*lost_expert_deadline"):
        pool.compute()
    told = [r.stranded for r in pool.feed.reports if r.stranded]
    assert "layer 0: no live shard holds experts" in told[0], "the server process knows at once"
    pool.workers["a"].stop()


def test_the_rows_of_every_expert_are_counted_for_the_controller(pool: Pool) -> None:
    pool.add("a", [0, 1, 2, 3])
    pool.start("a")
    pool.compute_half(tokens=50)
    pool.remote._send_report()
    counted = pool.feed.reports[-1].totals
    assert int(np.sum(counted[EXPERT_ROWS])) == 50 * 2
    row_bytes = HIDDEN * 4
    for name, sent, returned in (("rows", 50, 100), ("bytes", 50 * row_bytes, 100 * row_bytes)):
        assert counted[f"expertmesh_dispatch_{name}_total", "sent"] == sent
        assert counted[f"expertmesh_dispatch_{name}_total", "returned"] == returned
    assert counted["expertmesh_dispatch_sends_total",] == 1
    away_s = pool.remote.times.send_s + pool.remote.times.shared_s + pool.remote.times.wait_s
    assert 0 < counted["expertmesh_dispatch_row_seconds_total",] <= 100 * away_s


def test_a_pool_of_another_checkpoint_is_refused(pool: Pool) -> None:
    pool.add("a", [0, 1, 2, 3])
    pool.publish("a")
    with pytest.raises(RoutingError, match="serves 1 MoE layers and this model has 7"):
        pool.remote.wait_until_complete(7)
