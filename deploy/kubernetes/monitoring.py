"""Rules and dashboards as Kubernetes takes them, made from monitoring/; `make dashboards` runs it.

The rules are wrapped into a PrometheusRule, which Kustomize cannot do; of the dashboards only a
list is written, from which Kustomize makes a ConfigMap for Grafana's side-car.
"""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "k8s" / "monitoring" / "rules.yaml"
DASHBOARDS = ROOT / "monitoring" / "grafana" / "kustomization.yaml"
HEADER = "# Written by `make dashboards`; change what it is made from in monitoring/.\n"


def prometheus_rule() -> dict[str, Any]:
    """The recording rules and alerts as one object of the Prometheus operator."""
    folder = ROOT / "monitoring" / "prometheus"
    groups: list[Any] = []
    for name in ("rules.yml", "alerts.yml"):
        groups += yaml.safe_load((folder / name).read_text())["groups"]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "expertmesh"},
        "spec": {"groups": groups},
    }


def dashboards() -> dict[str, Any]:
    """What makes one ConfigMap of the dashboards beside it."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "configMapGenerator": [
            {
                "name": "expertmesh-dashboards",
                "files": sorted(file.name for file in DASHBOARDS.parent.glob("*.json")),
                "options": {
                    "disableNameSuffixHash": True,
                    "labels": {"grafana_dashboard": "1"},
                },
            }
        ],
    }


def files() -> dict[Path, str]:
    """Every file that this writes, with its text."""
    return {
        file: HEADER + yaml.safe_dump(content, sort_keys=False, width=100)
        for file, content in ((RULES, prometheus_rule()), (DASHBOARDS, dashboards()))
    }


def main() -> None:
    for file, text in files().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
