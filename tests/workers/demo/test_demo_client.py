"""The demo as a client of the service: requests, errors, live progress, a service of its own."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from tests.support.job_objects import MOMENT, job_object
from tests.support.running_app import run_app
from tide.client import Client
from tide.errors import AuthenticationError, UnreachableError
from tide_core.contracts.job import JobSpec
from tide_core.contracts.objective import Variant
from tide_core.contracts.resources import Job, JobProgress
from workers.demo import main, server
from workers.demo.results import DemoJobError
from workers.demo.server import DemoServiceError, own_service
from workers.demo.setting import ALL_JOBS, MAIN_JOBS, job_spec
from workers.demo.watching import WatchedJob, watch


def test_a_spec_is_posted_as_the_contract_takes_it(tmp_path: Path) -> None:
    posted: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        posted.append(json.loads(request.content))
        return httpx.Response(201, text=job_object().model_dump_json())

    spec = job_spec(MAIN_JOBS[0], tmp_path)
    Client("http://demo", transport=httpx.MockTransport(handler)).jobs.create(spec)
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


def cancel_all(client: Client, count: int) -> None:
    """End the demo's jobs as soon as all are there: nothing computes behind them."""
    while len(jobs := list(client.jobs.list())) < count:
        time.sleep(0.05)
    for job in jobs:
        job.cancel()


def test_a_service_that_asks_for_tokens_takes_the_demos_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = f"tide_{'0' * 64}"
    folder = tmp_path / "service"
    monkeypatch.setattr(main, "write_corpus", write_small_corpus)
    with run_app(folder, authentication="tokens", bootstrap_token=token) as url:
        request = main.DemoRequest(tmp_path / "demo", url)
        monkeypatch.delenv("TIDE_TOKEN", raising=False)
        with pytest.raises(AuthenticationError):
            main.run(request)
        assert not (tmp_path / "demo" / "corpus").exists()
        monkeypatch.setenv("TIDE_TOKEN", token)
        ending = threading.Thread(target=cancel_all, args=(Client(url), len(MAIN_JOBS)))
        ending.start()
        with pytest.raises(DemoJobError, match="cancelled"):
            main.run(request)
        ending.join()
        names = {(job.name, job.posted_by) for job in Client(url).jobs.list()}
        assert names == {(demo_job.name, "bootstrap") for demo_job in MAIN_JOBS}


def test_a_wrong_address_is_told_before_anything_is_written(tmp_path: Path) -> None:
    request = main.DemoRequest(tmp_path / "demo", f"http://127.0.0.1:{server.find_free_port()}")
    with pytest.raises(UnreachableError, match="No server answers"):
        main.run(request)
    assert not (tmp_path / "demo" / "corpus").exists()


def write_small_corpus(folder: Path, *_: Any) -> dict[str, Any]:
    """Files where the demo's specs look for them; their rows are never read here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test", "test_tasks"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "a", "response": "b", "kind": "c"}\n')
    return {"splits": {}, "documentation_licence": ""}


def story() -> Iterator[Job]:
    def show(status: str, phase: str, stage: str) -> Job:
        progress = JobProgress(phase=phase, stage=stage, completed=50, total=100, updated_at=MOMENT)
        return job_object(status=status, progress=progress)

    yield job_object()
    yield show("preparing", "prepare", "tokenising")
    yield show("running", "train", "training")
    yield show("evaluating", "evaluate", "sampling")
    yield job_object(status="succeeded", result={"answer": 42})


@pytest.mark.parametrize("is_terminal", [False, True])
def test_watch_shows_every_stage_and_ends_with_the_job(is_terminal: bool) -> None:
    states = story()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/metrics"):
            series = {"name": "loss", "count": 2, "steps": [9, 50], "values": [3.0, 1.25]}
            return httpx.Response(200, json={"job_id": "job-1", "data": [series]})
        return httpx.Response(200, text=next(states).model_dump_json())

    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)
    view = WatchedJob(job_object(), "moe · tide_cross")
    checks: list[int] = []
    with Client("http://demo", transport=httpx.MockTransport(handler)) as client:
        watch(client, [view], console, check=lambda: checks.append(1), interval=0)
    assert view.job.result == {"answer": 42}
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
        self.wfile.write(b'{{"status": "ready", "checks": []}}')
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
    monkeypatch.setattr(server, "find_command", lambda: [str(script)])


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
