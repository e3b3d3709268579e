"""Dashboards, rules, alerts and docs speak of the metrics that are declared, and of all of them."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.metrics import GROUPS, METRICS
from monitoring.render_docs import FILE, with_tables
from monitoring.render_grafana import DASHBOARDS, FOLDER, rendered

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "monitoring" / "prometheus"
NAME = re.compile(r"\bexpertmesh_[a-z0-9_]+")
RECORDED = re.compile(r"\bexpertmesh:[a-z0-9_:]+")
EXCUSED: dict[str, str] = {}  # metric → why nothing shows it


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Where a query stands → the query."""
    found = {rule["record"]: rule["expr"] for rule in rules("rules.yml")}
    found |= {rule["alert"]: rule["expr"] for rule in rules("alerts.yml")}
    for name in DASHBOARDS:
        for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{name}/{panel['title']}/{target['refId']}"] = target["expr"]
    return found


def exported() -> set[str]:
    """Names of series."""
    names = set()
    for metric in METRICS.values():
        parts = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        names |= {metric.name + part for part in parts}
    return names


@pytest.mark.parametrize("where", sorted(expressions()))
def test_a_query_names_what_exists(where: str) -> None:
    query = expressions()[where]
    assert set(NAME.findall(query)) <= exported()
    assert set(RECORDED.findall(query)) <= {rule["record"] for rule in rules("rules.yml")}
    assert NAME.findall(query) or RECORDED.findall(query) or re.search(r"\bup\{|\bray_", query)


def test_prose_and_annotations_name_what_exists() -> None:
    texts = [FILE.read_text(), *(str(rule["annotations"]) for rule in rules("alerts.yml"))]
    named = {name for text in texts for name in NAME.findall(text)}
    assert named <= exported() | set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_shown_somewhere_or_excused(name: str) -> None:
    used = {n for query in expressions().values() for n in NAME.findall(query)}
    is_used = name in used or any(f"{name}{part}" in used for part in ("_bucket", "_count"))
    assert is_used != (name in EXCUSED)


def test_every_recording_is_used() -> None:
    used = {n for query in expressions().values() for n in RECORDED.findall(query)}
    assert {rule["record"] for rule in rules("rules.yml")} <= used


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_current(name: str) -> None:
    file = FOLDER / f"{name}.json"
    assert file.read_text() == rendered(name), "run make dashboards"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_imported(name: str) -> None:
    board = json.loads((FOLDER / f"{name}.json").read_text())
    assert {"uid", "title", "schemaVersion", "templating", "panels"} <= set(board)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat", "heatmap", "table")
        assert panel["targets"] and panel["datasource"]["type"] == "prometheus"
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y


def test_the_docs_are_current() -> None:
    text = FILE.read_text()
    assert text == with_tables(text), "run make dashboards"


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_wants_it(metric: Any) -> None:
    assert re.fullmatch(r"expertmesh_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".") and metric.question.endswith("?")


def test_a_metric_is_declared_once() -> None:
    assert sum(map(len, GROUPS.values())) == len(METRICS)
