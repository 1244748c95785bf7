"""A real Prometheus in a child process, set up as the deployment sets it up."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.fetching import find_program
from tests.support.skips import require

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "tide" / "files" / "rules"


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an answer; None while the server starts."""
        try:
            answer = self._client.get(path, params=parameters)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def instant(self, query: str) -> list[dict[str, Any]]:
        """What a query gives now."""
        found = self.get("/api/v1/query", query=query)
        return found["result"] if found else []

    def during(self, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """What a query gave from start to end (Unix seconds)."""
        found = self.get("/api/v1/query_range", query=query, start=start, end=end, step=step)
        return found["result"] if found else []


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, int], interval: str) -> Iterator[Prometheus]:
    """Prometheus with the deployment's scrape jobs and rules.

    Args:
        folder: for its configuration and data.
        targets: local port to scrape for each scrape job of deploy/prometheus that the test has.
        interval: between scrapes and between evaluations of the rules.
    """
    program = require(find_program, "prometheus")
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    configuration["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    configuration["rule_files"] = [f"{RULES}/*.yaml"]
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert set(targets) <= set(jobs), f"deploy/prometheus knows {set(jobs)}"
    for name, port in targets.items():
        jobs[name]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    configuration["scrape_configs"] = [jobs[name] for name in targets]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    port = find_free_port()
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
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 30
        while prometheus.get("/api/v1/status/runtimeinfo") is None:
            assert process.poll() is None, "prometheus ended"
            assert time.monotonic() < deadline, "prometheus does not answer"
            time.sleep(0.1)
        yield prometheus
    finally:
        process.terminate()
        process.wait(10)
