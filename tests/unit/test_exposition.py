"""Snapshots as Prometheus reads them, with its own parser."""

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exposition import exposition
from monitoring.meter import Meter
from monitoring.snapshot import TOP, PerExpert, Snapshot
from monitoring.totals import Key, number

LAYERS, EXPERTS = 3, 20
ROWS: Key = ("expertmesh_expert_rows_total",)
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(snapshot: Snapshot | None, per_expert: PerExpert = "full") -> Series:
    text = exposition(snapshot, per_expert).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    series = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
    assert len(series) == len(samples), "a series stands twice"
    return series


def values(series: Series, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {tuple(sorted(labels)): v for (n, labels), v in series.items() if n == name}


def test_without_a_controller_only_that_is_said() -> None:
    assert read(None) == {("expertmesh_controller_up", frozenset()): 0}


def test_counters_gauges_and_labels() -> None:
    snapshot = Snapshot(
        {
            ("expertmesh_requests_total", "chat", "ok"): number(7),
            ("expertmesh_shard_slots", "0", "free"): number(3),
            ("expertmesh_moves_left",): number(0),
        }
    )
    series = read(snapshot)
    assert values(series, "expertmesh_controller_up") == {(): 1}
    assert values(series, "expertmesh_moves_left") == {(): 0}
    [(labels, count)] = values(series, "expertmesh_requests_total").items()
    assert (dict(labels), count) == ({"route": "chat", "outcome": "ok"}, 7)
    [(labels, count)] = values(series, "expertmesh_shard_slots").items()
    assert (dict(labels), count) == ({"shard": "0", "state": "free"}, 3)


def test_a_histogram_is_cumulative_with_sum_and_count() -> None:
    meter = Meter()
    meter.began("chat").first_token()
    series = read(Snapshot(meter.account("g").totals))
    buckets = values(series, "expertmesh_ttft_seconds_bucket")
    assert set(buckets.values()) == {1}
    assert values(series, "expertmesh_ttft_seconds_count") == {(): 1}
    assert values(series, "expertmesh_ttft_seconds_sum")[()] < 0.02


@pytest.fixture
def rows() -> NDArray[np.float64]:
    return np.arange(LAYERS * EXPERTS, dtype=np.float64).reshape(LAYERS, EXPERTS)


def test_full_shows_every_expert(rows: NDArray[np.float64]) -> None:
    shown = values(read(Snapshot({ROWS: rows})), ROWS[0])
    cells = {(int(dict(k)["layer"]), int(dict(k)["expert"])): v for k, v in shown.items()}
    assert cells == dict(np.ndenumerate(rows))


def test_top_shows_those_with_most_rows_lately_in_each_layer(rows: NDArray[np.float64]) -> None:
    recent = rows[:, ::-1]  # lately it was the others that were hot
    shown = values(read(Snapshot({ROWS: rows}, recent), "top"), ROWS[0])
    assert len(shown) == LAYERS * TOP
    assert {int(dict(k)["expert"]) for k in shown} == set(range(TOP))


def test_off_shows_layers_only(rows: NDArray[np.float64]) -> None:
    totals = {ROWS: rows, ("expertmesh_layer_rows_total",): rows.sum(axis=1)}
    series = read(Snapshot(totals), "off")
    assert values(series, ROWS[0]) == {}
    assert sum(values(series, "expertmesh_layer_rows_total").values()) == rows.sum()
