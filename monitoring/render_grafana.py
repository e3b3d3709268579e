"""Writes `monitoring/grafana/*.json`: `python -m monitoring.render_grafana`.

Import them in Grafana 10 or newer; each asks for a Prometheus and for the application's job.
"""

import json
from pathlib import Path
from typing import Any

from monitoring.dashboards import CLUSTER, DATA_PLANE, EXPERTS, SERVICE
from monitoring.panels import Panel, Query

FOLDER = Path(__file__).parent / "grafana"
DASHBOARDS = {
    "service": ("ExpertMesh: Service", SERVICE),
    "experts": ("ExpertMesh: Experts", EXPERTS),
    "data-plane": ("ExpertMesh: Data plane", DATA_PLANE),
    "cluster": ("ExpertMesh: Cluster", CLUSTER),
}
HEIGHTS = {"stat": 4, "matrix": 14}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expression(query: Query) -> str:
    """The query as Grafana sends it, but for its variables."""
    filled = query.expr.replace("…", 'job="$job"').replace("[w]", "[$__rate_interval]")
    return filled.replace('"job=', '",job=')


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana imports it."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"expertmesh-{name}",
        "title": title,
        "tags": ["expertmesh"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "links": [
            {
                "type": "dashboards",
                "tags": ["expertmesh"],
                "title": "ExpertMesh",
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": _laid_out(panels),
    }


def _variables() -> list[dict[str, Any]]:
    values = "label_values(expertmesh_controller_up, job)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "label": "Application",
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": values, "refId": "job"},
            "refresh": 2,
            "sort": 1,
        },
    ]


def _laid_out(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    placed, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        height = HEIGHTS.get(panel.kind, 8)
        if x + panel.width > 24:
            x, y, row = 0, y + row, 0
        position = {"x": x, "y": y, "w": panel.width, "h": height}
        placed.append({"id": number, "gridPos": position, **_panel(panel)})
        x, row = x + panel.width, max(row, height)
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    is_now = panel.kind in ("stat", "matrix", "table")
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": DATASOURCE,
            "expr": expression(query),
            "legendFormat": query.legend or "__auto",
            "instant": is_now,
            "range": not is_now,
            "format": {"heatmap": "heatmap", "matrix": "table", "table": "table"}.get(
                panel.kind, "time_series"
            ),
        }
        for i, query in enumerate(panel.queries)
    ]
    return {
        "type": "table" if panel.kind == "matrix" else panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, **_defaults(panel)}, "overrides": []},
        "options": _options(panel),
        "transformations": _matrix() if panel.kind == "matrix" else [],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    if panel.kind == "matrix":
        return {
            "custom": {"cellOptions": {"type": "color-background"}, "width": 56},
            "color": {"mode": "continuous-viridis"},
            "decimals": 1,
        }
    return {"min": 0} if panel.kind == "timeseries" else {}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none"}
    if panel.kind == "heatmap":
        return {"calculate": False, "color": {"scheme": "Viridis"}, "yAxis": {"unit": panel.unit}}
    return {}


def _matrix() -> list[dict[str, Any]]:
    fields = {"columnField": "expert", "rowField": "layer", "valueField": "Value"}
    return [{"id": "groupingToMatrix", "options": fields}]


def rendered(name: str) -> str:
    """The file's text."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(rendered(name))


if __name__ == "__main__":
    main()
