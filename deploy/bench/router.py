"""`bench router`: what the decisions cost, on one core, with no process but this one.

Loads are log-normal, as published counts of DeepSeek-V3 are; seeds are fixed by the caller.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from deploy.bench.report import Circumstances, describe, markdown_table
from deploy.progress import Progress
from router import choose, dispatch
from router.choose import Policy, choose_shards
from router.control import ControlSettings, ControlState
from router.dispatch import plan_dispatch
from router.load import max_over_mean
from router.orders import held_experts
from router.placement import ShardRoom, Slots, place
from router.placer import PlacerSettings
from router.table import ReplicaTable, ShardAddress, ShardId, table_of

LAYERS, EXPERTS, CHOICES, TOKENS = 61, 384, 8, 256
SIGMA = 0.7  # of log popularity, DeepSeek-V3 while it decodes
REPEATS = 200
POOLS = ((256, 8, 36), (256, 32, 9), (EXPERTS, 32, 12), (EXPERTS, 32, 24))
"""Experts, shards, slots of a layer on each: 288 slots as deployed for DeepSeek-V3, and more."""


PLACEMENT, NEW_TABLE = "placement, redundancy 2", "a new table"


@dataclass(frozen=True, slots=True)
class Cost:
    """One line. Times are medians."""

    what: str
    size: str
    experts: int
    shards: int
    slots: int  # of a layer, on all shards
    seconds: float
    note: str = ""
    table_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What is written."""

    benchmark: str
    circumstances: Circumstances
    costs: tuple[Cost, ...]


def measure_router(
    around: Circumstances, pools: tuple[int, ...], experts: tuple[int, ...], progress: Progress
) -> RouterReport:
    """All of it; `pools`: shards of the pools that `experts` are placed on."""
    choose.warm_up()
    dispatch.warm_up()
    rng = np.random.default_rng(around.seed)
    costs = [*_choices(rng)]
    for n_experts, n_shards in itertools.product(experts, pools):
        with progress.step(f"placement of {n_experts} experts on {n_shards} shards"):
            costs += _control(rng, n_experts, n_shards)
    return RouterReport("router", around, tuple(costs))


def text_of(report: RouterReport) -> str:
    """A table, with what must be known to repeat it."""
    rows = [(c.what, c.size, shown(c.seconds), c.note) for c in report.costs]
    table = markdown_table(("what", "size", "median", "note"), rows, labels=2)
    return f"{describe(report.circumstances)}\n\n{table}"


def shown(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _choices(rng: np.random.Generator) -> list[Cost]:
    costs = []
    for n_experts, n_shards, slots in POOLS:
        popularity = np.exp(SIGMA * rng.normal(size=(1, n_experts)))
        table = _table(popularity, n_shards, slots, redundancy=1)
        ids = draw(rng, popularity[0], TOKENS, CHOICES)
        load = np.zeros(n_shards, np.float32)
        size = f"{TOKENS} x top-{CHOICES}, {n_experts} experts, {n_shards * slots} slots"
        numbers = (f"{size}, {n_shards} shards", n_experts, n_shards, n_shards * slots)
        for policy in Policy:
            chosen = choose_shards(ids, table.holders[0], table.counts[0], load, policy)
            rows = np.bincount(chosen.ravel(), minlength=n_shards)[None].astype(np.float64)
            costs.append(
                Cost(
                    f"choose, {policy.value}",
                    *numbers,
                    _median(
                        partial(choose_shards, ids, table.holders[0], table.counts[0], load, policy)
                    ),
                    f"max/mean {float(max_over_mean(rows)[0]):.3f}",
                )
            )
        costs.append(Cost("dispatch", *numbers, _median(partial(plan_dispatch, chosen, ids))))
    return costs


def _control(rng: np.random.Generator, n_experts: int, n_shards: int) -> list[Cost]:
    slots = -(-2 * n_experts // n_shards)
    size = f"{LAYERS} x {n_experts} experts, {n_shards} shards of {slots} slots"
    numbers = (size, n_experts, n_shards, n_shards * slots)
    loads = np.exp(SIGMA * rng.normal(size=(LAYERS, n_experts)))
    rooms = [ShardRoom(ShardId(f"s{i:04}"), f"h{i}", slots) for i in range(n_shards)]
    started_s = time.perf_counter()
    placed = place(loads, rooms, redundancy=2)
    placed_s = time.perf_counter() - started_s
    placer = PlacerSettings(n_shards, 2, settle_s=0.0, replacement_grace_s=60.0)
    state = ControlState(ControlSettings(placer, lease_s=1e9, step_interval_s=1.0))
    for room in rooms:
        _report(state, room.shard_id, n_experts, placed[room.shard_id], 0.0)
    started_s = time.perf_counter()
    state.step(2.0)
    step_s = time.perf_counter() - started_s
    assert state.table is not None
    table_bytes = state.table.holders.nbytes + state.table.counts.nbytes
    first = rooms[0].shard_id
    quiet_s = _median(lambda: _report(state, first, n_experts, placed[first], 2.5))
    return [
        Cost(PLACEMENT, *numbers, placed_s),
        Cost(NEW_TABLE, *numbers, step_s, f"{table_bytes / 2**20:.1f} MiB", table_bytes),
        Cost("a report with no news", *numbers, quiet_s),
    ]


def _report(
    state: ControlState, shard_id: ShardId, n_experts: int, held: Slots, now_s: float
) -> None:
    address = ShardAddress(shard_id, "host")
    state.on_shard(address, n_experts=n_experts, held=held, loading=(), now_s=now_s)


def _table(
    loads: NDArray[np.float64], n_shards: int, slots: int, *, redundancy: int
) -> ReplicaTable:
    rooms = [ShardRoom(ShardId(f"s{i:04}"), f"h{i}", slots) for i in range(n_shards)]
    placed = place(loads, rooms, redundancy=redundancy)
    held = np.stack([held_experts(s, loads.shape[1]) for s in placed.values()])
    return table_of(1, tuple(ShardAddress(s, "host") for s in placed), held)


def draw(
    rng: np.random.Generator, popularity: NDArray[np.float64], n_tokens: int, n_choices: int
) -> NDArray[np.int32]:
    """[T, K] distinct experts a token, by popularity [E]."""
    scores = np.log(popularity) + rng.gumbel(size=(n_tokens, popularity.size))
    return np.argpartition(-scores, n_choices - 1, axis=1)[:, :n_choices].astype(np.int32)


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_s)
    return float(np.median(times))
