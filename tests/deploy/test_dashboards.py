"""The dashboards: committed JSON is what the code makes, and every query is answered by a real Prometheus."""

from __future__ import annotations

import http.server
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.observability.metrics import GAUGES, REPORTS, Sample, exposition, observe_request

ROOT = Path(__file__).parents[2]
FILES = ROOT / "helm" / "tide" / "files"
PATIENCE_SECONDS = 30.0


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("tide_dashboards", ROOT / "deploy/grafana/dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


dashboards = _module()


@pytest.mark.parametrize("name", dashboards.PAGES)
def test_the_committed_dashboard_is_current(name: str) -> None:
    text = (FILES / "dashboards" / f"{name}.json").read_text()
    assert text == dashboards.document(name), "run: python deploy/grafana/dashboards.py"
    panels = json.loads(text)["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def _page() -> bytes:
    """What a control plane with one job exports: every gauge has a sample."""
    samples = [
        Sample(name, 1.0, tuple("unhealthy" if label == "state" else f"a-{label}" for label in gauge.labels))
        for name, gauge in GAUGES.items()
    ]
    for status in (200, 503):
        observe_request("GET", "/v1/jobs", status, 0.01)
    REPORTS.labels("metrics").inc()
    return exposition(samples)


class _Exporter(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = _page()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus that scrapes an exporter and evaluates our rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus here: install the package prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = _free_port()
    (folder / "prometheus.yaml").write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
        f"rule_files: ['{FILES}/rules/*.yaml']\n"
        "scrape_configs:\n  - job_name: tide\n    static_configs:\n"
        f"      - targets: ['127.0.0.1:{server.server_port}']\n"
    )
    flags = {
        "config.file": folder / "prometheus.yaml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    process = subprocess.Popen(
        [program, *(f"--{name}={value}" for name, value in flags.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()


def test_every_query_has_an_answer(prometheus: str) -> None:
    waiting = {
        query.replace("$job_id", "a-job_id").replace("$application", "a-application")
        for query in dashboards.queries()
    }
    assert len(waiting) > 20
    deadline = time.monotonic() + PATIENCE_SECONDS
    with httpx.Client(base_url=prometheus, trust_env=False) as client:
        while waiting and time.monotonic() < deadline:
            waiting = {query for query in waiting if not _answers(client, query)}
            time.sleep(0.5)
    assert not waiting, "these queries return nothing"


def _answers(client: httpx.Client, query: str) -> bool:
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return False
    if answer.status_code == 503:
        return False
    assert answer.status_code == 200, f"{query}: {answer.text}"
    return bool(answer.json()["data"]["result"])
