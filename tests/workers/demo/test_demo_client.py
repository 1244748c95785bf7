"""The demo as a client of the service: requests, errors, live progress, a service of its own."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from tide_core.contracts.errors import NotFoundError
from tide_core.contracts.job import JobSpec
from tide_core.contracts.objective import Variant
from workers.demo import server
from workers.demo.client import DemoClient, ServiceError
from workers.demo.server import DemoServiceError, own_service
from workers.demo.setting import ALL_JOBS, MAIN_JOBS, job_spec
from workers.demo.watching import JobView, watch

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler) -> DemoClient:
    return DemoClient("http://demo", transport=httpx.MockTransport(handler))


def refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(
        status, json={"error": {"message": "No.", "type": "x", "param": None, "code": code}}
    )


def test_submit_posts_a_spec_that_the_contract_takes(tmp_path: Path) -> None:
    posted: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/v1/jobs")
        posted.append(json.loads(request.content))
        return httpx.Response(201, json={"id": "job-1", "status": "queued"})

    spec = job_spec(MAIN_JOBS[0], tmp_path)
    assert client_of(handler).submit(spec)["id"] == "job-1"
    assert JobSpec.model_validate(posted[0]) == spec


def test_a_job_and_its_control_differ_in_the_objective_alone(tmp_path: Path) -> None:
    for distilled, control in ((MAIN_JOBS[0], MAIN_JOBS[1]), (MAIN_JOBS[2], MAIN_JOBS[3])):
        # Baselines are the same in both: they are measured by the distilled job alone.
        differing = {"name", "objective", "metadata", "evaluation"}
        first, second = (
            job_spec(job, tmp_path).model_dump(exclude=differing) for job in (distilled, control)
        )
        assert first == second
        assert job_spec(control, tmp_path).objective == Variant.NONE
        evaluations = [job_spec(job, tmp_path).evaluation for job in (distilled, control)]
        assert evaluations[0] == evaluations[1].model_copy(update={"baselines": True})


def test_all_eight_combinations_have_a_spec(tmp_path: Path) -> None:
    assert len({job_spec(job, tmp_path).name for job in ALL_JOBS}) == 8


def test_the_service_own_message_reaches_the_user() -> None:
    with pytest.raises(ServiceError, match=r"No\. \(bad_thing\)"):
        client_of(lambda request: refusal(422, "bad_thing")).job("x")
    with pytest.raises(NotFoundError):
        client_of(lambda request: refusal(404, "not_found")).job("x")
    with pytest.raises(ServiceError, match="answered 500: oops"):
        client_of(lambda request: httpx.Response(500, text="oops")).job("x")


def test_an_unreachable_service_is_said_so() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServiceError, match="cannot be reached"):
        client_of(handler).job("x")
    assert not client_of(handler).is_ready()


def test_cancel_of_an_ended_job_is_no_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return refusal(409, "conflict")
        return httpx.Response(200, json={"status": "succeeded"})

    client_of(handler).cancel("x")


def story() -> Iterator[dict[str, Any]]:
    progress = {"phase": "train", "stage": "training", "completed": 50, "total": 100, "unit": "steps"}
    yield {"status": "queued", "progress": None}
    yield {"status": "preparing", "progress": progress | {"phase": "prepare", "stage": "tokenising"}}
    yield {"status": "running", "progress": progress}
    yield {"status": "evaluating", "progress": progress | {"phase": "evaluate", "stage": "sampling"}}
    yield {"status": "succeeded", "progress": None, "result": {"answer": 42}}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_watch_shows_every_stage_and_ends_with_the_job(is_terminal: bool) -> None:
    states = story()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/metrics"):
            return httpx.Response(200, json={"data": [{"steps": [9, 50], "values": [3.0, 1.25]}]})
        return httpx.Response(200, json=next(states))

    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)
    view = JobView("job-1", "moe · tide_cross")
    checks: list[int] = []
    with client_of(handler) as client:
        watch(client, [view], console, check=lambda: checks.append(1), interval=0)
    assert view.job["result"] == {"answer": 42}
    assert view.done == 1.0
    assert len(checks) == 4
    shown = output.getvalue()
    assert "succeeded" in shown
    if not is_terminal:
        assert "running · training · step 50 loss 1.250" in shown
        assert len(shown.splitlines()) == 5


FAKE_SERVICE = """#!{python}
import http.server, os, pathlib, signal, sys, threading
arguments = sys.argv[1:]
assert arguments[0] == "up", arguments
port = int(arguments[arguments.index("--port") + 1])
folder = pathlib.Path(arguments[arguments.index("--data-dir") + 1])
if os.environ.get("FAKE_FAILS"):
    print("no Ray here", flush=True)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *a):
        pass
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
def end(*a):
    (folder / "ended").write_text("in order")
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, end)
server.serve_forever()
"""


@pytest.fixture
def fake_tide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tide"
    script.write_text(FAKE_SERVICE.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(server, "_tide_command", lambda: [str(script)])


@pytest.mark.usefixtures("fake_tide")
def test_own_service_is_started_and_ended_in_order(tmp_path: Path) -> None:
    with own_service(tmp_path / "data", active_jobs=2) as service:
        service.check()
    assert service.process is not None
    assert service.process.returncode == 0
    assert (tmp_path / "data" / "ended").read_text() == "in order"
    with pytest.raises(DemoServiceError, match="ended with status 0"):
        service.check()


@pytest.mark.usefixtures("fake_tide")
def test_a_service_that_does_not_start_shows_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "FAKE_FAILS", "1")
    with (
        pytest.raises(DemoServiceError, match=r"(?s)status 3.*no Ray here"),
        own_service(tmp_path / "data", active_jobs=2),
    ):
        pass
