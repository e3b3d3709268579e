"""The controller's scaler, its settings, and how its wish reaches Serve."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge
from ray.serve._private.common import TimeStampedValue

from deploy.memory import GIB, MemoryNeeds, check_memory
from monitoring.totals import Account
from router.errors import ConfigError
from router.planning import ShardPace
from router.table import ShardId
from services import autoscaling
from services.attention.engine_numbers import STATES, EngineNumbers
from services.config import DeploymentConfig, load_config
from services.scaler import EngineLoad, Scaler, engine_load

CONFIGS = Path(__file__).parents[2] / "deploy" / "configs"
POOL = {"min_shards": 2, "max_shards": 5, "grow_after_s": 2.0, "shrink_after_s": 20.0}
REPLICAS = {"max_replicas": 3, "target_requests": 8.0, "grow_after_s": 0.0, "shrink_after_s": 5.0}


def config_of(**overrides: object) -> DeploymentConfig:
    return load_config(None, {"model.path": "m"} | overrides)


@dataclass
class Pool:
    """Shards that are busy for a part of their time, at a thousand rows a second."""

    shards: int = 2
    now_s: float = 0.0
    done_s: float = 0.0
    waiting: int = 0

    def run(self, scaler: Scaler, busy_ratio: float, seconds: int, requests: float = 0.0) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.done_s += busy_ratio
            pace = ShardPace(rows=round(1000 * self.done_s), busy_s=self.done_s)
            paces = {ShardId(str(i)): pace for i in range(self.shards)}
            scaler.look(paces, {"r": EngineLoad(requests, 0.1)}, self.waiting, self.now_s)


def test_without_autoscaling_nothing_is_wanted() -> None:
    scaler = Scaler(config_of())
    Pool().run(scaler, 0.9, 30)
    assert (scaler.wanted_shards, scaler.wanted_replicas, scaler.said) == (0, 0, ())


def test_busy_shards_become_more_and_idle_ones_fewer() -> None:
    scaler, pool = Scaler(config_of(**{"pool.autoscaling": POOL})), Pool()
    pool.run(scaler, 0.1, 3)
    assert scaler.wanted_shards == 2
    assert scaler.said == ("shards: 2 wanted, as at the start",)
    pool.run(scaler, 0.9, 10)
    assert scaler.wanted_shards == 3
    assert "rows/s, a shard can do 1000, aim 60% of that" in scaler.said[0]
    pool.shards = 3
    pool.run(scaler, 0.0, 40)
    assert scaler.wanted_shards == 2


def test_replicas_follow_requests_apart_from_the_pool() -> None:
    scaler, pool = Scaler(config_of(**{"attention.autoscaling": REPLICAS})), Pool()
    pool.run(scaler, 0.9, 5, requests=20.0)
    assert (scaler.wanted_shards, scaler.wanted_replicas) == (0, 3)
    pool.run(scaler, 0.9, 8, requests=3.0)
    assert scaler.wanted_replicas == 1
    pool.waiting = 9
    pool.run(scaler, 0.9, 2, requests=3.0)
    assert (scaler.wanted_replicas, scaler.said[0]) == (
        2,
        "attention replicas: 2 wanted, 12 requests, aim 8 a replica",
    )


def test_a_controller_that_comes_back_wants_what_there_is() -> None:
    scaler = Scaler(config_of(**{"pool.autoscaling": POOL}))
    Pool(shards=4).run(scaler, 0.55, 10)
    assert scaler.wanted_shards == 4


def points(*values: tuple[float, float]) -> list[TimeStampedValue]:
    return [TimeStampedValue(at_s, value) for at_s, value in values]


def test_serve_follows_the_newest_wish() -> None:
    raw = {
        "wanted": {"a": points((1.0, 2.0), (5.0, 4.0)), "b": points((4.0, 3.0))},
        "other": {"a": points((9.0, 9.0))},
    }
    context: Any = SimpleNamespace(raw_metrics=raw, target_num_replicas=2)
    assert autoscaling.follow(context) == (4, {})


@pytest.mark.parametrize("raw", [None, {}, {"wanted": {"a": points((1.0, 0.0))}}])
def test_serve_changes_nothing_until_the_controller_has_a_wish(raw: Any) -> None:
    context: Any = SimpleNamespace(raw_metrics=raw, target_num_replicas=2)
    assert autoscaling.follow(context) == (2, {})


def test_what_a_replica_tells_serve_is_a_number_from_the_first_answer_on() -> None:
    assert autoscaling.told(0) == {"wanted": 0.0}
    assert autoscaling.told(3) == {autoscaling.WANTED: 3.0}


def test_the_options_are_what_serve_takes() -> None:
    found = autoscaling.options(autoscaling.Bounds(least=1, first=2, most=4, drain_s=60))
    scaling = found["autoscaling_config"]
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (1, 2, 4)
    assert found["graceful_shutdown_timeout_s"] == 60
    assert scaling.policy.get_policy()(
        SimpleNamespace(raw_metrics=None, target_num_replicas=7)
    ) == (7, {})


def test_an_engine_tells_requests_and_kv_cache() -> None:
    registry = CollectorRegistry()
    engine = EngineNumbers(registry)
    assert engine_load(None) == EngineLoad()
    assert engine_load(Account("replica", "a", 1.0, *engine.read())) == EngineLoad()
    for name, value in zip(STATES, (3, 2, 0.25), strict=True):
        Gauge(name, "", ["engine"], registry=registry).labels("0").set(value)
    assert engine_load(Account("replica", "a", 1.0, *engine.read())) == EngineLoad(5.0, 0.25)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"pool.autoscaling": {"min_shards": 3}}, "shards is 2, outside autoscaling's bounds 3 to"),
        ({"pool.autoscaling": {"min_shards": 9}}, "min_shards is 9, above max_shards 4"),
        (
            {"pool.autoscaling": {"min_shards": 1}, "pool.redundancy": 2},
            "set min_shards to at least 2",
        ),
        ({"pool.autoscaling": {"max_shard": 3}}, 'did you mean "max_shards"?'),
        ({"pool.autoscaling": {"target_busy_ratio": 1.5}}, "pool.autoscaling.target_busy_ratio"),
        ({"attention.autoscaling": {"min_replicas": 3}}, "min_replicas is 3, above max_replicas 2"),
        (
            {"attention.autoscaling": {"max_replicas": 3}, "attention.replicas": 4},
            "replicas is 4, outside autoscaling's bounds 1 to 3",
        ),
        ({"attention.autoscaling": 3}, "but it is a section"),
        ({"pool.max_shards_per_host": 0}, "pool.max_shards_per_host is 0"),
        ({"pool.resources": {"experts": 0.0}}, "pool.resources.experts is 0"),
    ],
)
def test_wrong_settings_are_refused_with_what_to_write(
    overrides: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**overrides)
    assert text in str(caught.value)


def test_slots_are_for_the_fewest_shards_and_memory_for_the_most() -> None:
    config = config_of(**{"pool.autoscaling": POOL, "pool.shards": 4, "pool.redundancy": 2})
    assert config.pool.slots_for(8) == 8
    needs = MemoryNeeds(0, 0, shard_weight_bytes=GIB)
    check_memory(needs, config, 5 * needs.shard_bytes + needs.attention_bytes)
    with pytest.raises(ConfigError, match="memory is too small"):
        check_memory(needs, config, 5 * needs.shard_bytes + needs.attention_bytes - 1)


def test_the_reference_file_shows_every_key_of_the_sections_at_its_default() -> None:
    text = (CONFIGS / "reference.yaml").read_text()
    lines = iter(text.splitlines())
    shown = []
    for line in lines:
        if line.strip().startswith("autoscaling: null"):
            shown.append(yaml.safe_load(next(lines).strip(" #") + next(lines).strip(" #")))
    config = config_of(**{"attention.autoscaling": {}, "pool.autoscaling": {}})
    assert config.attention.autoscaling is not None
    assert config.pool.autoscaling is not None
    assert shown == [
        config.attention.autoscaling.model_dump(),
        config.pool.autoscaling.model_dump(),
    ]
