"""Every query of the dashboards, asked of a real Prometheus that scraped a real run of the embedded system.

With TIDE_WRITE_PICTURES=1 the pictures of this run become those of docs/dashboards.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import COUNTED, GAUGES
from service.orchestrator.embedded_ray import read_record
from tests.support.fetching import find_program
from tests.support.otlp_collector import Collector
from tests.support.running_prometheus import Prometheus, running_prometheus
from tests.support.running_tide import Service, job_spec
from tests.support.skips import require
from tide_core.contracts.metrics import TEACHER_METRICS, Metric
from tide_core.contracts.states import JobState
from tools import dashboards
from tools import render_dashboards as render

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "dashboards"
LARGEST_PICTURE = 200_000
STEPS = 600
EXPORT_SECONDS = 25.0
"""Ray's agents hear of their workers every ten seconds; Prometheus asks each second."""


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and who watched it."""

    service: Service
    prometheus: Prometheus
    collector: Collector
    ray_port: int
    job_id: str
    application: str
    start: float
    end: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A job from its post to its report, scraped all the while."""
    require(find_program, "prometheus")  # before minutes of work that would be lost
    folder = tmp_path_factory.mktemp("watched")
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(Collector())
        service = Service(folder / "data", "--tracing-endpoint", collector.endpoint)
        stack.callback(service.end)
        service.start()
        record = read_record(folder / "data")
        assert record is not None
        port = int(service.url.rsplit(":", 1)[1])
        targets = {"control-plane": port, "ray": record.metrics_port}
        prometheus = stack.enter_context(running_prometheus(folder, targets, "1s"))
        start = time.time()
        job_id = _run(service, folder)
        (pool,) = service.client.teachers.list()
        time.sleep(EXPORT_SECONDS)
        yield Watched(
            service=service,
            prometheus=prometheus,
            collector=collector,
            ray_port=record.metrics_port,
            job_id=job_id,
            application=pool.id,
            start=start,
            end=time.time(),
        )


def _run(service: Service, folder: Path) -> str:
    spec = job_spec(folder, steps=STEPS, evaluation={"enabled": True, "every_steps": 200, "timesteps": 2})
    spec["data"]["held_out"] = {"fraction": 0.3}
    spec["teacher"]["top_k"] = 16
    spec["hyperparameters"]["global_batch_size"] = 8
    # What an earlier run of this test asked is in the cache: the teacher would have nothing to do.
    spec["resources"] = {"score_cache": False}
    job = service.client.jobs.create(spec).wait(400)
    assert job.status is JobState.SUCCEEDED, job.error
    return job.id


def _has_data(watched: Watched, query: str) -> bool:
    asked = dashboards.with_variables(query, watched.job_id, watched.application)
    series = watched.prometheus.during(asked, watched.start, watched.end, 1.0)
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


def test_every_query_has_data(watched: Watched) -> None:
    queries = dashboards.queries()
    silent = [query for query, absent in queries.items() if absent is None and not _has_data(watched, query)]
    assert not silent
    excused = {query: absent for query, absent in queries.items() if absent is not None}
    assert len(excused) <= 3, "what a good run does not show is the exception"
    spoke = [query for query in excused if _has_data(watched, query)]
    assert not spoke, "they are excused for a reason that does not hold"


def test_every_rule_was_evaluated(watched: Watched) -> None:
    groups = watched.prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 12
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    assert not [rule["name"] for rule in rules if rule.get("alerts")], "an alert about a good run"


def test_a_scrape_of_every_exporter_parses(watched: Watched) -> None:
    """The exporters' own pages, and what the dashboards may take for granted of them."""
    control_plane = _types(f"{watched.service.url}/metrics")
    for metric in COUNTED.values():
        assert control_plane[metric.name.removesuffix("_total")] == metric.kind
    unshown = set(GAUGES) - set(control_plane)
    assert not unshown
    ray = _types(f"http://127.0.0.1:{watched.ray_port}/metrics")
    for metric in TEACHER_METRICS:
        if metric not in _ENDS_WITH_THE_JOB:
            name = f"ray_{metric.name}".removesuffix("_total")
            assert ray[name] == metric.kind, name
    assert any(name.startswith("ray_") and "tide" not in name for name in ray)


_ENDS_WITH_THE_JOB: tuple[Metric, ...] = (TEACHER_METRICS.job_tokens,)


def _types(url: str) -> dict[str, str]:
    text = httpx.get(url, timeout=20, trust_env=False).raise_for_status().text
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def test_one_trace_spans_the_job(watched: Watched) -> None:
    spans = watched.collector.spans
    (post,) = (span for span in spans if span.name == "POST /jobs")
    of_job = [span for span in spans if span.trace_id == post.trace_id]
    by_id = {span.span_id: span for span in of_job}
    parents = {span.name: by_id[span.parent_id] for span in of_job if span.name.startswith("phase ")}
    assert set(parents) == {"phase prepare", "phase train", "phase evaluate"}
    for name, submit in parents.items():
        assert (submit.name, submit.parent_id) == ("reconcile Submit", post.span_id), name
    assert {span.service for span in of_job} == {"tide-control-plane", "tide-worker"}
    assert not [span for span in of_job if span.is_error]


def test_the_jobs_series_have_ended(watched: Watched) -> None:
    text = httpx.get(f"{watched.service.url}/metrics", timeout=20).text
    assert watched.job_id not in text


@pytest.mark.soak  # a minute of waiting; tests/workers/teachers/test_metering.py holds the same without Ray
def test_the_jobs_series_in_ray_have_ended(watched: Watched) -> None:
    deadline = time.monotonic() + 90  # a job's share is taken over a minute
    while time.monotonic() < deadline:
        text = httpx.get(f"http://127.0.0.1:{watched.ray_port}/metrics", timeout=20, trust_env=False).text
        left = [line for line in text.splitlines() if re.search(rf'\bjob_id="{watched.job_id}"', line)]
        if not left:
            return
        time.sleep(2)
    raise AssertionError(f"still exported: {left}")


def test_the_dashboards_can_be_drawn(watched: Watched, tmp_path: Path) -> None:
    target = PICTURES if os.environ.get("TIDE_WRITE_PICTURES") else tmp_path
    window = render.Window(
        watched.prometheus.url, watched.start, watched.end, watched.job_id, watched.application
    )
    for name in dashboards.PAGES:
        render.render(name, window, target / f"{name}.png")
        picture = (target / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert 20_000 < len(picture) < LARGEST_PICTURE
        assert (PICTURES / f"{name}.png").exists(), "a dashboard without its picture in docs/dashboards"
