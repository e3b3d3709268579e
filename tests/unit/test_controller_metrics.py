"""What the controller tells of the pool, with a clock that the test holds."""

from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitoring.metric import INTER_TOKEN_S
from monitoring.snapshot import Snapshot
from monitoring.totals import Account, Key, number
from router.control import ControlSettings, ControlState
from router.placer import PlacerSettings
from router.table import ShardAddress, ShardId
from services.attention.engine_numbers import EngineNumbers
from services.attention.layer_times import LayerTimes
from services.attention.traffic import EXPERT_ROWS, Traffic
from services.controller_metrics import ControllerMetrics
from services.experts.account import WorkerStats, shard_account
from services.messages import ShardReport, ShardStatus

LAYERS, EXPERTS = 2, 3


class Pool:
    """A controller's state and metrics; shards hold what the test says."""

    def __init__(self, redundancy: int = 2) -> None:
        placer = PlacerSettings(2, redundancy, settle_s=0, replacement_grace_s=60)
        self.state = ControlState(ControlSettings(placer, lease_s=5))
        self.now_s = 100.0
        self.metrics = ControllerMetrics(half_life_s=15, silent_s=5, now_s=self.now_s)
        self.reports: dict[str, ShardReport] = {}

    def shard(self, name: str, experts: tuple[int, ...], rows: tuple[int, int] = (0, 0)) -> None:
        held = np.full((LAYERS, EXPERTS), -1, np.int32)
        held[:, : len(experts)] = experts
        address = ShardAddress(ShardId(name), f"host of {name}")
        stats = WorkerStats(rows=sum(rows), computed_s=0.5)
        account = shard_account(name, self.now_s - 100, stats, np.array(rows), held)
        self.reports[name] = ShardReport(
            address, EXPERTS, held, resident_bytes=1000, account=account
        )
        self.state.on_shard(address, n_experts=EXPERTS, held=held, loading=(), now_s=self.now_s)
        self.metrics.add(account, self.now_s)

    def reader(self, version: int, *, rows: float = 0) -> None:
        totals = {EXPERT_ROWS: np.full((LAYERS, EXPERTS), float(rows))}
        account = Account("replica", "attention", self.now_s - 100, totals)
        self.metrics.add(account, self.now_s)
        self.state.on_reader("attention", version, {}, now_s=self.now_s)

    def tick(self, passed_s: float = 0) -> None:
        self.now_s += passed_s
        self.state.step(self.now_s)
        self.metrics.tick(self.state, self.now_s)

    def snapshot(self) -> Snapshot:
        there = [(self.reports[s], self._status(s)) for s in self.state.members.shards]
        return self.metrics.snapshot(self.state, there, self.now_s)

    def _status(self, name: str) -> ShardStatus:
        return ShardStatus(name, f"host of {name}", "serving", 0, 0, 0, (), 0, 0, 0, 0)

    def value(self, name: str, *labels: str) -> float:
        return float(self.snapshot().values[f"expertmesh_{name}", *labels])


@pytest.fixture
def pool() -> Pool:
    pool = Pool()
    pool.shard("a", (0, 1, 2))
    pool.shard("b", (0, 1, 2))
    pool.tick()
    return pool


def test_a_whole_pool_is_not_degraded(pool: Pool) -> None:
    pool.tick(3)
    assert pool.value("experts_below_redundancy") == 0
    assert pool.value("degraded_seconds_total") == 0
    assert pool.value("shards", "serving") == pool.value("shards_wanted") == 2
    assert pool.value("shard_slots", "0", "used") == LAYERS * EXPERTS
    assert pool.value("shard_info", "1", "b", "host of b") == 1


def test_a_dead_shard_degrades_and_its_successor_ends_that(pool: Pool) -> None:
    pool.tick(4)
    pool.shard("a", (0, 1, 2))
    pool.tick(3)  # b is silent for 7 s
    assert pool.value("experts_below_redundancy") == LAYERS * EXPERTS
    assert pool.value("experts_without_replica") == 0
    pool.tick(2)
    degraded_s = pool.value("degraded_seconds_total")
    assert degraded_s == 5
    assert pool.value("unavailable_seconds_total") == 0
    pool.shard("a", (0, 1, 2))
    pool.shard("c", (0, 1, 2))
    pool.tick()
    pool.tick(1)
    assert pool.value("degraded_seconds_total") == degraded_s
    assert pool.value("shard_info", "1", "c", "host of c") == 1
    assert pool.value("process_starts_total", "shard") == 3


def test_without_any_shard_every_expert_is_missing(pool: Pool) -> None:
    pool.tick(6)
    pool.tick(1)
    assert pool.value("experts_without_replica") == LAYERS * EXPERTS
    assert pool.value("unavailable_seconds_total") == 7


def test_a_pool_that_is_being_filled_is_not_unavailable() -> None:
    pool = Pool()
    pool.shard("a", (0,))
    pool.tick(3)
    assert pool.value("unavailable_seconds_total") == 0


def test_imbalance_is_of_the_rows_that_shards_computed(pool: Pool) -> None:
    pool.shard("a", (0, 1, 2), rows=(30, 10))
    pool.shard("b", (0, 1, 2), rows=(10, 10))
    found = pool.snapshot().values["expertmesh_layer_imbalance_ratio",]
    np.testing.assert_allclose(found, [1.5, 1.0])
    assert pool.value("shard_rows_total", "0") == 40


def test_rows_of_experts_are_summed_for_layers_and_returned_as_growth(pool: Pool) -> None:
    pool.reader(1, rows=4)
    layers = pool.snapshot().values["expertmesh_layer_rows_total",]
    np.testing.assert_array_equal(layers, [12, 12])
    again = Account("replica", "attention", 1, {EXPERT_ROWS: np.full((LAYERS, EXPERTS), 4.0)})
    assert pool.metrics.add(again, pool.now_s) is None, "no traffic since"


def test_a_replica_that_does_not_follow_is_told_by_its_age(pool: Pool) -> None:
    pool.reader(1)
    assert pool.value("table_behind_seconds", "0") == 0
    pool.shard("b", (0, 1))
    pool.tick()
    pool.now_s += 3
    assert pool.value("table_version", "controller") == 2
    assert pool.value("table_version", "attention-0") == 1
    assert pool.value("table_behind_seconds", "0") == 3
    pool.reader(2)
    assert pool.value("table_behind_seconds", "0") == 0


def test_every_key_is_a_declared_metric_with_its_labels(pool: Pool) -> None:
    from monitoring.metrics import METRICS

    pool.reader(1, rows=1)
    for (name, *labels), value in pool.snapshot().values.items():
        metric = METRICS[name]
        dims = 0 if metric.kind == "histogram" else value.ndim
        assert len(labels) + dims == len(metric.labels), name


def test_traffic_counts_rows_and_activated_experts() -> None:
    traffic, times = Traffic(), LayerTimes()
    traffic.count(1, np.array([[0, 2], [2, 0]], np.int32), (LAYERS, EXPERTS))
    traffic.count(1, np.array([[1, 2]], np.int32), (LAYERS, EXPERTS))
    traffic.seconds.observe(times.add((0, 1, 3, 6, 10, 15), (0.5, 2.0)))
    totals = traffic.totals(times)
    np.testing.assert_array_equal(totals[EXPERT_ROWS], [[0, 0, 0], [2, 1, 3]])
    np.testing.assert_array_equal(totals["expertmesh_layer_activated_experts_total",], [0, 4])
    np.testing.assert_array_equal(totals["expertmesh_layer_steps_total",], [0, 2])
    stage = "expertmesh_dispatch_stage_seconds_total"
    parts = [float(n) for key, n in totals.items() if key[0] == stage]
    assert parts == [1, 2, 3, 4, 5]
    assert totals["expertmesh_dispatch_seconds",][-1] == sum(parts) == 15


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    labels: Any = {"labelnames": ("engine",), "registry": registry}
    Counter("vllm:generation_tokens", "", **labels).labels("0").inc(7)
    Counter("vllm:other", "", **labels).labels("0").inc(1)
    Gauge("vllm:kv_cache_usage_perc", "", **labels).labels("0").set(0.25)
    return registry


def inter_token(registry: CollectorRegistry, bounds: tuple[float, ...]) -> None:
    name = "vllm:inter_token_latency_seconds"
    histogram = Histogram(name, "", ("engine",), registry=registry, buckets=bounds)
    for value in (0.02, 0.3, 0.3, 500):
        histogram.labels("0").observe(value)


def test_the_engines_figures_are_taken_over(registry: CollectorRegistry) -> None:
    inter_token(registry, INTER_TOKEN_S)
    totals, states = EngineNumbers(registry).read()
    assert totals["expertmesh_output_tokens_total",] == 7
    assert states == {("expertmesh_kv_cache_used_ratio",): number(0.25)}
    counts = totals["expertmesh_inter_token_seconds",]
    assert counts[-1] == pytest.approx(500.62)
    at = INTER_TOKEN_S.index
    assert {i: n for i, n in enumerate(counts[:-1]) if n} == {at(0.025): 1, at(0.3): 2, 19: 1}


def test_a_histogram_with_other_bounds_is_left_out_and_said_once(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    inter_token(registry, (1.0, 2.0))
    numbers = EngineNumbers(registry)
    for _ in range(2):
        totals, _ = numbers.read()
        assert cast(Key, ("expertmesh_inter_token_seconds",)) not in totals
    assert caplog.text.count("is not exported") == 1


def test_before_the_engine_starts_there_are_no_figures() -> None:
    assert EngineNumbers(CollectorRegistry()).read() == ({}, {})


def test_scaling_says_how_many_shards_there_should_be(pool: Pool) -> None:
    assert pool.value("shards_wanted") == 2
    pool.state.placer.expected = 1
    assert pool.value("shards_wanted") == 1
