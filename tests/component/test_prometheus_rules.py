"""Prometheus' own tool on the scrape configuration, the rules, and series that fire alerts."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "monitoring" / "prometheus"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROMTOOL or "promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@needs_promtool
def test_the_scrape_configuration_and_its_rules_are_valid() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_a_test_of_the_rules_can_fail(tmp_path: Path) -> None:
    for name in ("rules.yml", "alerts_test.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    hasty = (
        (FOLDER / "alerts.yml").read_text().replace("ratio_rate5m > 0.01", "ratio_rate5m > 0.001")
    )
    (tmp_path / "alerts.yml").write_text(hasty)
    done = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert "ExpertMeshRetries" in done.stdout + done.stderr
    assert done.returncode != 0


def test_every_alert_is_tested_both_ways() -> None:
    quiet, wrong = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    names = {rule["alert"] for rule in alerts()}
    silent = {t["alertname"] for t in quiet["alert_rule_test"] if not t.get("exp_alerts")}
    firing = str(wrong["promql_expr_test"][-1]["exp_samples"])
    assert silent == names
    assert {name for name in names if f'alertname="{name}"' in firing} == names


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert "\n" not in rule["annotations"]["runbook"].strip()
