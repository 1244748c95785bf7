"""Traces: one of them from the request through the reconciler to the driver of a phase; none by default."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Settings
from tests.support.otlp_collector import Collector, Received
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.reporting import AttemptBrief, Failed, Finished
from tide_core.contracts.states import Phase
from tide_core.tracing import ENV_TRACEPARENT, ENV_TRACING_ENDPOINT, Tracing, current_traceparent
from workers import main as worker

ROOT = Path(__file__).parents[3]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms; spans leave every five seconds otherwise
    with Collector() as running:
        yield running


@pytest.fixture
def compute() -> FakeCompute:
    return FakeCompute()


@pytest.fixture
async def traced(settings: Settings, collector: Collector, compute: FakeCompute) -> AsyncIterator[FastAPI]:
    """A control plane that sends its spans to the collector."""
    changes = {"tracing_endpoint": collector.endpoint, "reconcile_interval_seconds": 0.05}
    made = create_app(settings.model_copy(update=changes), compute)
    async with made.router.lifespan_context(made):
        yield made


async def _post(app: FastAPI, body: dict[str, Any], **headers: str) -> str:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tide") as client:
        answer = await client.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def _submission(compute: FakeCompute) -> dict[str, str]:
    """Environment of the first Ray job."""
    deadline = time.monotonic() + 20
    while not compute.submissions:
        assert time.monotonic() < deadline, "nothing was submitted"
        await asyncio.sleep(0.02)
    (first,) = compute.submissions.values()
    return dict(first.environment)


def _by_name(spans: list[Received]) -> dict[str, Received]:
    return {span.name: span for span in spans}


def _await_spans(collector: Collector, *names: str) -> dict[str, Received]:
    deadline = time.monotonic() + 20
    while not set(names) <= set(_by_name(collector.spans)):
        assert time.monotonic() < deadline, f"{names} not among {sorted(_by_name(collector.spans))}"
        time.sleep(0.05)
    return _by_name(collector.spans)


async def test_one_trace_spans_request_reconciler_and_driver(
    traced: FastAPI,
    collector: Collector,
    compute: FakeCompute,
    job_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = await _post(traced, job_body)
    environment = await _submission(compute)
    assert environment[ENV_TRACING_ENDPOINT] == collector.endpoint
    await asyncio.to_thread(_drive, environment, job_id, job_body, monkeypatch)
    names = (
        "POST /jobs",
        "reconcile Advance",
        "reconcile Submit",
        "phase prepare",
        "deliver the last report",
    )
    spans = await asyncio.to_thread(_await_spans, collector, *names)
    assert len({spans[name].trace_id for name in names}) == 1
    request, submit, phase = (spans[name] for name in ("POST /jobs", "reconcile Submit", "phase prepare"))
    assert (submit.parent_id, phase.parent_id) == (request.span_id, submit.span_id)
    assert spans["deliver the last report"].parent_id == phase.span_id
    assert {span.service for span in (request, submit)} == {"tide-control-plane"}
    assert phase.service == "tide-worker"
    assert request.attributes["http.response.status_code"] == 201
    assert phase.attributes == {"tide.job_id": job_id, "tide.attempt": 1}
    assert not any(spans[name].is_error for name in names)


def _drive(
    environment: dict[str, str],
    job_id: str,
    job_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    outcome: Finished | Failed | None = None,
) -> None:
    """What the Ray job does, here and now, less the phase itself and the way to the control plane."""
    for name, value in environment.items():
        if name.startswith("TIDE_"):
            monkeypatch.setenv(name, value)
    brief = AttemptBrief.model_construct(job_id=job_id, attempt=1, phase=Phase.PREPARE)

    class Control:
        @classmethod
        def from_environment(cls) -> Control:
            return cls()

        def fetch_brief(self) -> AttemptBrief:
            return brief

        def close(self) -> None:
            """Nothing is open."""

    seen: list[str | None] = []
    monkeypatch.setattr(worker, "ControlPlane", Control)
    monkeypatch.setattr(worker, "phase_function", lambda _: None)
    monkeypatch.setattr(
        worker, "run_phase", lambda *_: seen.append(current_traceparent()) or outcome or Finished()
    )
    monkeypatch.setattr(worker, "deliver_last", lambda _: None)
    assert worker.main() == (1 if isinstance(outcome, Failed) else 0)
    assert seen[0] is not None
    assert seen[0].split("-")[1] == environment[ENV_TRACEPARENT].split("-")[1]


async def test_a_trace_of_the_client_is_continued_and_a_failed_phase_is_marked(
    traced: FastAPI,
    collector: Collector,
    compute: FakeCompute,
    job_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    job_id = await _post(traced, job_body, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    environment = await _submission(compute)
    failed = Failed(code="bad_data", message="no rows", retryable=False)
    await asyncio.to_thread(_drive, environment, job_id, job_body, monkeypatch, failed)
    spans = await asyncio.to_thread(_await_spans, collector, "POST /jobs", "phase prepare")
    assert spans["POST /jobs"].parent_id == "00f067aa0ba902b7"
    assert {spans["POST /jobs"].trace_id, spans["phase prepare"].trace_id} == {trace}
    assert spans["phase prepare"].is_error


async def test_probes_are_not_traced_and_failures_are(traced: FastAPI, collector: Collector) -> None:
    transport = httpx.ASGITransport(traced, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tide") as client:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/jobs/nobody"):
            await client.get(path)
    spans = await asyncio.to_thread(_await_spans, collector, "GET /jobs/{job_id}")
    assert not [name for name in spans if name.endswith(("healthz", "readyz", "metrics"))]
    assert not spans["GET /jobs/{job_id}"].is_error, "404 is the client's failure"


async def test_nothing_is_traced_by_default(settings: Settings, job_body: dict[str, Any]) -> None:
    compute = FakeCompute()
    app = create_app(settings, compute)
    async with app.router.lifespan_context(app):
        await _post(app, job_body, traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        environment = await _submission(compute)
    assert not {ENV_TRACEPARENT, ENV_TRACING_ENDPOINT} & set(environment)


def test_without_an_endpoint_no_package_is_needed() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from tide_core.tracing import Tracing, current_traceparent\n"
        "tracing = Tracing('x', None)\n"
        "with tracing.span('a') as span:\n"
        "    assert span is None and current_traceparent() is None\n"
        "tracing.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidInputError, match=r"tide-distill\[tracing\]"):
        Tracing("x", "http://127.0.0.1:1")


def test_a_collector_that_is_away_costs_nothing_but_the_spans() -> None:
    tracing = Tracing("x", "http://127.0.0.1:9")
    began = time.monotonic()
    with tracing.span("a"):
        assert current_traceparent() is not None
    assert time.monotonic() - began < 1
    tracing.close()
    assert time.monotonic() - began < 15
