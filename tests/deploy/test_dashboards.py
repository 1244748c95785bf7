"""The dashboards: every query is answered by a real Prometheus.

A real run answers most of them (tests/end_to_end/test_dashboards_of_a_run.py); here every one of them, those
about failures too, is asked about made-up samples.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.observability.metrics import COUNTED, GAUGES
from tests.support.running_prometheus import Prometheus, running_prometheus
from tide_core.contracts.metrics import TEACHER_METRICS, Metric
from tools import dashboards

ROOT = Path(__file__).parents[2]
FILES = ROOT / "helm" / "tide" / "files"
PATIENCE_SECONDS = 30.0


@pytest.mark.parametrize("name", dashboards.PAGES)
def test_panels_have_a_place_and_a_unit(name: str) -> None:
    panels = json.loads(dashboards.document(name))["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def _exposition(metrics: list[Metric], prefix: str = "") -> bytes:
    """Every metric with a sample, counters and histograms risen from zero with each call."""
    registry = CollectorRegistry()
    value = 1 + int(10 * (time.monotonic() - _BEGAN))
    for metric in metrics:
        name = prefix + metric.name
        labels = tuple(_VALUES.get(label, f"a-{label}") for label in metric.labels)
        match metric.kind:
            case "gauge":
                gauge = Gauge(name, metric.meaning, metric.labels, registry=registry)
                (gauge.labels(*labels) if labels else gauge).set(1.0)
            case "counter":
                counter = Counter(name, metric.meaning, metric.labels, registry=registry)
                (counter.labels(*labels) if labels else counter).inc(value)
            case "histogram":
                histogram = Histogram(name, metric.meaning, metric.labels, registry=registry)
                for _ in range(value):
                    (histogram.labels(*labels) if labels else histogram).observe(0.1)
    return generate_latest(registry)


_BEGAN = time.monotonic()
_VALUES = {"status": "503", "state": "unhealthy"}
"""What the failure queries select."""


class _ControlPlane(http.server.BaseHTTPRequestHandler):
    def page(self) -> bytes:
        """What a control plane with one job exports."""
        return _exposition([*COUNTED.values(), *GAUGES.values()])

    def do_GET(self) -> None:
        body = self.page()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # Prometheus was ended in the middle of a scrape
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class _RayNode(_ControlPlane):
    def page(self) -> bytes:
        """What the agent of a Ray node with one replica exports."""
        return _exposition(list(TEACHER_METRICS), prefix="ray_")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes both kinds of exporter and evaluates our rules."""
    exporters = {"control-plane": _ControlPlane, "ray": _RayNode}
    servers = {
        name: http.server.ThreadingHTTPServer(("127.0.0.1", 0), page) for name, page in exporters.items()
    }
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        targets = {name: server.server_port for name, server in servers.items()}
        with running_prometheus(tmp_path_factory.mktemp("prometheus"), targets, "500ms") as running:
            yield running
    finally:
        for server in servers.values():
            server.shutdown()


def test_every_query_has_an_answer(prometheus: Prometheus) -> None:
    waiting = {
        dashboards.with_variables(query, "a-job_id", "a-application") for query in dashboards.queries()
    }
    assert len(waiting) > 50
    deadline = time.monotonic() + PATIENCE_SECONDS
    while waiting and time.monotonic() < deadline:
        waiting = {query for query in waiting if not prometheus.instant(query)}
        time.sleep(0.5)
    assert not waiting, "these queries return nothing"


def test_every_metric_is_shown_or_watched() -> None:
    shown = " ".join(dashboards.queries()) + (FILES / "rules" / "tide.yaml").read_text()
    metrics = (*COUNTED.values(), *GAUGES.values(), *TEACHER_METRICS)
    unused = {
        metric.name
        for metric in metrics
        if not any(re.search(rf"\b{series}\b", shown) for series in metric.series)
    }
    assert not unused, "on no dashboard and in no rule"
