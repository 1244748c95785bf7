"""The alerts: promtool's own tests, a runbook for each, and only metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.observability.metrics import COUNTED, GAUGES
from tests.support.fetching import find_program
from tests.support.skips import require
from tide_core.contracts.metrics import TEACHER_METRICS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "tide" / "files" / "rules" / "tide.yaml"
UNIT_TESTS = Path(__file__).parent / "rules" / "tide_test.yaml"


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in _rules() if "alert" in rule}


@pytest.fixture(scope="session")
def promtool() -> str:
    """Path of promtool, which checks rules and configurations."""
    return require(find_program, "promtool")


def test_promtool_accepts_the_rules(promtool: str) -> None:
    result = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    for path in (RULES, UNIT_TESTS):
        shutil.copy(path, tmp_path)
    command = [promtool, "test", "rules", UNIT_TESTS.name]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_fires_in_a_test() -> None:
    cases = [
        case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_a_summary_and_a_runbook_that_names_it(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"]
    page = ROOT / alert["annotations"]["runbook_url"]
    assert name in page.read_text().splitlines()[0]


def test_rules_ask_for_metrics_that_exist() -> None:
    metrics = (*COUNTED.values(), *GAUGES.values(), *TEACHER_METRICS)
    exported = {series for metric in metrics for series in metric.series}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    for rule in _rules():
        asked = set(re.findall(r"(?<![:\w])tide_\w+", rule["expr"]))
        assert asked <= exported, f"{asked - exported} in {rule}"
        assert set(re.findall(r"\w+:tide_\w+:\w+", rule["expr"])) <= recorded
