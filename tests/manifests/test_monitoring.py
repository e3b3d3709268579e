"""What the component k8s/monitoring takes from monitoring/."""

import json

from deploy.kubernetes.monitoring import ROOT, files
from tests.support.overlays import find, rendered


def test_rules_and_dashboards_are_current() -> None:
    for file, text in files().items():
        assert file.read_text() == text, "write them again: make dashboards"


def test_prometheus_gets_every_rule_and_grafana_every_dashboard() -> None:
    documents = rendered("gpu")
    rules = json.dumps(find(documents, "PrometheusRule"))
    for name in ("ExpertMeshControllerGone", "ExpertMeshNotScraped"):
        assert name in rules
    there = {file.name for file in (ROOT / "monitoring" / "grafana").glob("*.json")}
    assert set(find(documents, "ConfigMap", "expertmesh-dashboards")["data"]) == there


def test_jobs_have_the_names_that_prometheus_yml_gives_them() -> None:
    text = (ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text()
    for name, job in (("expertmesh", "expertmesh"), ("expertmesh-ray", "ray")):
        (endpoint,) = find(rendered("gpu"), "PodMonitor", name)["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
        assert f"job_name: {job}\n" in text
