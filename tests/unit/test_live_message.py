"""What the page is told, from what the controller says."""

import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from monitoring.metric import PREFIX, TTFT_S
from monitoring.snapshot import Snapshot
from monitoring.totals import Key, Values, number
from services.live.condition import judge
from services.live.message import Look, heat, holdings_message, state_message
from services.live.rates import Mark, per_second, quantile
from tests.support.scene import EXAMPLE, Scene

TOKENS: Key = (f"{PREFIX}output_tokens_total",)
TTFT = f"{PREFIX}ttft_seconds"


async def look(scene: Scene, at_s: float = 10.0, values: Values | None = None) -> Look:
    """What the scene says now. values: instead of its own."""
    status, snapshot = await scene.status(), await scene.metrics(1)
    if values is not None:
        snapshot = replace(snapshot, values={**snapshot.values, **values})
    return Look(at_s, status, snapshot)


def ttft(**counts: int) -> Mark:
    """counts: `le_0_1=3` are three requests up to 0.1 s and above the bound before."""
    bounds = [f"le_{bound:g}".replace(".", "_") for bound in TTFT_S]
    cells = [counts.pop(bound, 0) for bound in bounds]
    return Mark(10, {(TTFT,): np.array([*cells, counts.pop("above", 0), 0.0])})


async def test_rates_are_increases_over_the_time_between_two_looks() -> None:
    scene = Scene(tokens_per_s=5)
    rows = (f"{PREFIX}shard_rows_total", "1")
    before = await look(scene, 10, {TOKENS: number(100), rows: number(40)})
    now = await look(scene, 14, {TOKENS: number(160), rows: number(40)})
    told = json.loads(state_message(now, before.mark.for_later(), None))
    assert told["output_per_s"] == 15
    assert [s["place"] for s in told["shards"]] == ["0", "1", "2"]
    assert told["shards"][1]["rows_per_s"] == 0
    assert told["ttft_p50_s"] is None, "nothing to compare with"


def test_a_counter_that_began_anew_has_no_rate() -> None:
    assert per_second(Mark(2, {TOKENS: number(3)}), Mark(1, {TOKENS: number(9)}), TOKENS) is None
    assert per_second(Mark(2, {TOKENS: number(3)}), None, TOKENS) is None
    assert per_second(Mark(2, {TOKENS: number(3)}), Mark(1, {}), TOKENS) == 3


@pytest.mark.parametrize(
    ("counts", "median_s"),
    [
        ({"le_0_1": 4}, 0.075),
        ({"le_0_1": 1, "le_0_2": 1, "le_80": 2}, 0.2),
        ({"le_0_02": 2}, 0.01),
        ({"above": 1}, 80.0),
        ({}, None),
    ],
)
def test_a_median_lies_within_its_bucket(counts: dict[str, int], median_s: float | None) -> None:
    found = quantile(ttft(**counts), Mark(5, ttft().values), TTFT, 0.5)
    assert found == (None if median_s is None else pytest.approx(median_s))


def test_only_what_came_since_counts_for_the_median() -> None:
    now = ttft(le_0_02=100, le_10=1)
    before = Mark(5, ttft(le_0_02=100).values)
    assert quantile(now, before, TTFT, 0.5) == pytest.approx(7.5)


@pytest.mark.parametrize("hottest", [1.0, 40.0, 1e5])
def test_the_heat_of_each_cell_can_be_read_back(hottest: float, rng: np.random.Generator) -> None:
    rows = rng.lognormal(0, 0.7, (5, 64))
    rows[2, 7] *= hottest
    rows[4] = 0
    told = heat(rows)
    assert told is not None
    cells = np.frombuffer(b64decode(told["cells"]), np.uint8).reshape(5, 64)
    read = told["peak"] * (cells / 255) ** 2
    ratios = rows[:4] / rows[:4].mean(axis=1, keepdims=True)
    assert np.abs(np.sqrt(read[:4]) - np.sqrt(ratios)).max() <= np.sqrt(told["peak"]) / 509
    assert not read[4].any()


def test_an_even_load_is_not_shown_as_a_peak() -> None:
    told = heat(np.ones((2, 4)))
    assert told is not None
    assert told["peak"] == 4
    assert set(b64decode(told["cells"])) == {128}
    assert heat(np.zeros((2, 4))) is None
    assert heat(None) is None


def unpack(message: dict[str, Any], shard: str) -> list[list[int]]:
    packed = message["shards"][shard]
    experts = np.frombuffer(b64decode(packed["experts"]), "<u2")
    return [part.tolist() for part in np.split(experts, np.cumsum(packed["counts"])[:-1])]


async def test_holdings_say_who_has_what() -> None:
    scene = Scene(layers=3, experts=300, drops={"s1": 2})
    told = json.loads(holdings_message(await look(scene)))
    assert {shard: unpack(told, shard) for shard in told["shards"]} == {
        shard: scene.held(shard) for shard in ("s0", "s1", "s2")
    }
    replicas = np.frombuffer(b64decode(told["replicas"]), np.uint8).reshape(3, 300)
    assert (replicas == scene.replicas()).all()


async def test_before_there_is_a_table_nothing_is_held() -> None:
    status = replace(await Scene().status(), table_version=0, shards=(), waiting_for="3 shards")
    told = json.loads(holdings_message(Look(1, status, Snapshot({}))))
    assert (told["layers"], told["shards"]) == (0, {})
    assert judge(status, Snapshot({})).level == "starting"
    assert judge(status, Snapshot({})).problems == ("Waiting for 3 shards.",)


async def condition(scene: Scene) -> tuple[str, list[str]]:
    told = json.loads(state_message(await look(scene), None, None))
    return told["level"], told["problems"]


async def test_a_whole_pool_is_good() -> None:
    assert await condition(Scene(decision=EXAMPLE)) == ("good", [])


async def test_a_lost_shard_degrades() -> None:
    scene = Scene()
    scene.lose("s1")
    assert await condition(scene) == (
        "degraded",
        [
            "22 experts are below the redundancy of 2.",
            "2 of 3 shards there; Serve starts what is missing.",
        ],
    )
    scene.regain("s1")
    assert await condition(scene) == ("good", [])


async def test_an_expert_without_a_replica_is_named_first() -> None:
    scene = Scene(layers=1, experts=9, redundancy=1)
    scene.lose("s1")
    level, problems = await condition(scene)
    assert level == "unavailable"
    assert problems[0] == (
        "3 experts are without a replica; requests that need one wait: layer 0 expert 1, "
        "layer 0 expert 4, layer 0 expert 7."
    )
    scene.lose("s2")
    _, problems = await condition(scene)
    assert problems[0].startswith("6 experts")
    scene.lose("s0")
    assert (await condition(scene))[1][0].endswith("expert 5 and 3 more.")


async def test_what_is_the_matter_with_a_shard_is_said() -> None:
    scene = Scene(states={"s0": "suspected", "s2": "leaving"})
    level, problems = await condition(scene)
    assert level == "degraded"
    assert problems == [
        "2 of 3 shards there; Serve starts what is missing.",
        "Shard s0 does not answer.",
    ]
