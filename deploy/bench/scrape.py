"""`bench scrape`: size and time of `GET /metrics` for a large model, in each mode.

The controller's and the gateway's own code on accounts as processes send them; no process but
this one, and no network.
"""

import gzip
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploy.bench.report import Circumstances, describe, markdown_table
from monitoring.exposition import exposition
from monitoring.meter import Meter
from monitoring.snapshot import PerExpert, Snapshot
from monitoring.totals import Account
from router.control import ControlSettings, ControlState
from router.placement import ShardRoom, place
from router.placer import PlacerSettings
from router.table import ShardAddress, ShardId
from services.attention.layer_times import LayerTimes
from services.attention.traffic import Traffic
from services.controller_metrics import ControllerMetrics
from services.experts.account import WorkerStats, shard_account
from services.messages import ShardReport, ShardStatus
from services.metrics_endpoint import GZIP_LEVEL

LAYERS, EXPERTS, SHARDS, REPLICAS, GATEWAYS = 61, 384, 32, 8, 2
SLOTS = 24
MODES: tuple[PerExpert, ...] = ("full", "top", "off")
REPEATS = 5
NOW_S = 100.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """One mode. seconds: to render, median."""

    mode: str
    series: int
    size_bytes: int
    gzip_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ScrapeReport:
    """What is written."""

    benchmark: str
    circumstances: Circumstances
    setting: str
    account_s: float  # an attention replica's account, taken in by the controller
    snapshot_s: float
    snapshot_bytes: int  # from the controller to the gateway
    scrapes: tuple[Scrape, ...]


class LargePool:
    """A controller of a large pool, with reports of everybody."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        placer = PlacerSettings(SHARDS, 2, settle_s=0, replacement_grace_s=60)
        self.state = ControlState(ControlSettings(placer, lease_s=1e9))
        self.metrics = ControllerMetrics(half_life_s=15, silent_s=1e9, now_s=0)
        self._shards: list[tuple[ShardReport, ShardStatus]] = []
        loads = self.rng.lognormal(0, 0.7, (LAYERS, EXPERTS))
        rooms = [ShardRoom(ShardId(f"s{n:04}"), f"host-{n}", SLOTS) for n in range(SHARDS)]
        for shard_id, held in place(loads, rooms, redundancy=1).items():
            self._shard(shard_id, held)
        for number in range(REPLICAS):
            grown = self.metrics.add(self.replica(number), NOW_S)
            self.state.on_reader(f"r{number}", 1, {}, now_s=NOW_S, expert_rows=grown)
        for number in range(GATEWAYS):
            self.metrics.add(Meter().account(f"g{number}"), NOW_S)
        self.state.step(NOW_S)
        self.metrics.tick(self.state, NOW_S)

    def _shard(self, shard_id: ShardId, held: np.ndarray) -> None:
        rows = self.rng.integers(1, 10**6, LAYERS)
        stats = WorkerStats(rows=int(rows.sum()), batches=10**5, computed_s=99.5, loaded=732)
        account = shard_account(shard_id, 1.0, stats, rows, held)
        address = ShardAddress(shard_id, f"host of {shard_id}")
        self.state.on_shard(address, n_experts=EXPERTS, held=held, loading=(), now_s=NOW_S)
        self.metrics.add(account, NOW_S)
        report = ShardReport(address, EXPERTS, held, resident_bytes=10**10, account=account)
        status = ShardStatus(shard_id, address.host, "serving", 0, 0, 0, (), 0, 0, 0, 0)
        self._shards.append((report, status))

    def replica(self, number: int) -> Account:
        """What an attention replica sends."""
        traffic = Traffic()
        ids = self.rng.integers(0, EXPERTS, (256, 8), dtype=np.int32)
        for layer in range(LAYERS):
            traffic.count(layer, ids, (LAYERS, EXPERTS))
        return Account("replica", f"r{number}", 1.0, traffic.totals(LayerTimes()))

    def snapshot(self) -> Snapshot:
        """As the controller answers."""
        return self.metrics.snapshot(self.state, self._shards, NOW_S)


def measure_scrape(around: Circumstances) -> ScrapeReport:
    """Run it."""
    pool = LargePool(around.seed)
    account, snapshot = pool.replica(0), pool.snapshot()
    return ScrapeReport(
        "scrape",
        around,
        f"{LAYERS} layers of {EXPERTS} experts, {SHARDS} shards, {REPLICAS} attention replicas, "
        f"{GATEWAYS} gateways",
        _median(lambda: pool.metrics.add(account, NOW_S)),
        _median(pool.snapshot),
        len(pickle.dumps(snapshot)),
        tuple(_scrape(snapshot, mode) for mode in MODES),
    )


def _scrape(snapshot: Snapshot, mode: PerExpert) -> Scrape:
    text = exposition(snapshot, mode)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    seconds = _median(lambda: exposition(snapshot, mode))
    return Scrape(mode, series, len(text), len(gzip.compress(text, GZIP_LEVEL)), seconds)


def _median(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_s)
    return float(np.median(times))


def text_of(report: ScrapeReport) -> str:
    """As a person reads it."""
    rows = [
        (
            f"`{s.mode}`",
            f"{s.series:,}",
            f"{s.size_bytes / 1024:,.0f}",
            f"{s.gzip_bytes / 1024:,.0f}",
            f"{s.seconds * 1000:,.0f}",
        )
        for s in report.scrapes
    ]
    head = ("monitoring.per_expert", "series", "KiB", "KiB with gzip", "ms to render")
    return "\n".join(
        [
            describe(report.circumstances),
            "",
            report.setting,
            f"controller: an attention replica's account {report.account_s * 1000:.2f} ms, "
            f"a snapshot {report.snapshot_s * 1000:.1f} ms and "
            f"{report.snapshot_bytes / 1024:,.0f} KiB",
            "",
            markdown_table(head, rows),
        ]
    )
