"""The reporter against a control plane that goes down, fences and refuses."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from tide.transport.patience import Backoff
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import DataSource, DataSpec, JobSpec, StudentSpec, TeacherSpec, resolve
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AttemptBrief, Metrics, Progress
from tide_core.contracts.states import Phase
from workers.reporting.control import AttemptFencedError, ControlPlane, ControlUnreachableError
from workers.reporting.http_reporter import HttpReporter, spool_path
from workers.reporting.recording import RecordingReporter
from workers.reporting.reporter import ProgressMeter


def make_brief(storage: Path, last_sequence: int = 0, attempt: int = 1) -> AttemptBrief:
    spec = JobSpec(
        teacher=TeacherSpec(model="/t"),
        student=StudentSpec(model="/s"),
        objective=Variant.NONE,
        data=DataSpec(sources=(DataSource(location="/d"),)),
    )
    return AttemptBrief(
        job_id="job-1",
        attempt=attempt,
        phase=Phase.TRAIN,
        spec=resolve(spec, pipeline=Pipeline.CROSS_TOKENIZER),
        storage=str(storage),
        last_sequence=last_sequence,
    )


class Server:
    """A control plane in a function: stores each number once, as the real one does."""

    def __init__(self) -> None:
        self.stored: dict[int, dict[str, object]] = {}
        self.posts = 0
        self.is_down = False
        self.status = 200
        self.stop = False
        self.lost_answers = 0
        self.refuses: set[float] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        if self.is_down:
            raise httpx.ConnectError("down")
        if self.status != 200:
            return httpx.Response(self.status, text="no")
        self.posts += 1
        reports = json.loads(request.content)["reports"]
        if any(r["body"].get("step") in self.refuses for r in reports):
            return httpx.Response(422, text="bad report")
        for report in reports:
            self.stored.setdefault(report["sequence"], report["body"])
        if self.lost_answers:
            self.lost_answers -= 1
            raise httpx.ReadError("connection reset")
        top = max(self.stored, default=0)
        return httpx.Response(200, json={"acknowledged": top, "stop_requested": self.stop})

    def control(self) -> ControlPlane:
        return ControlPlane("http://control", "secret", transport=httpx.MockTransport(self))

    @property
    def steps(self) -> list[object]:
        return [self.stored[number]["step"] for number in sorted(self.stored)]


def metric(step: int) -> Metrics:
    return Metrics(step=step, values={"loss": 1.0})


def test_everything_arrives_once_and_in_order(tmp_path: Path) -> None:
    server = Server()
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    for step in range(1200):
        reporter.send(metric(step))
    assert reporter.close(10)
    assert server.steps == list(range(1200))
    assert sorted(server.stored) == list(range(1, 1201))
    assert server.posts < 60, "reports go in batches"


def test_a_lost_answer_does_not_store_twice(tmp_path: Path) -> None:
    server = Server()
    server.lost_answers = 2
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    for step in range(10):
        reporter.send(metric(step))
    assert reporter.close(10)
    assert server.steps == list(range(10))


def test_sending_does_not_wait_for_a_dead_control_plane(tmp_path: Path) -> None:
    server = Server()
    server.is_down = True
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    began = time.monotonic()
    for step in range(100):
        reporter.send(metric(step))
    assert time.monotonic() - began < 0.5
    assert not reporter.flush(0.2)
    server.is_down = False
    assert reporter.close(10)
    assert server.steps == list(range(100))
    assert not spool_path(make_brief(tmp_path)).exists()


def test_a_full_disk_does_not_end_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    server = Server()
    server.is_down = True
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    with monkeypatch.context() as full, capture_logs() as logs:
        full.setattr(Path, "write_text", refuse)
        reporter.send(metric(0))
        assert not reporter.flush(0.2)
    assert "reports.not_spooled" in {line["event"] for line in logs}
    server.is_down = False
    assert reporter.close(10)
    assert server.steps == [0]


def test_a_report_that_is_kept_while_the_spool_is_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    remove = Path.unlink
    is_removing, is_kept = threading.Event(), threading.Event()
    kept_meanwhile: list[bool] = []

    def keep() -> None:
        reporter.send(metric(1))
        reporter.keep()
        is_kept.set()

    def remove_meanwhile(path: Path, missing_ok: bool = False) -> None:
        if path == spool_path(make_brief(tmp_path)) and not is_removing.is_set():
            is_removing.set()
            server.is_down = True
            threading.Thread(target=keep).start()
            kept_meanwhile.append(is_kept.wait(0.2))  # long enough, unless it has to wait for this removal
        remove(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", remove_meanwhile)
    reporter.send(metric(0))
    assert reporter.flush(5)
    assert is_kept.wait(10)
    assert kept_meanwhile == [False], "what is kept is written after the removal"
    assert '"step":1' in spool_path(make_brief(tmp_path)).read_text()
    server.is_down = False
    assert reporter.close(10)
    assert server.steps == [0, 1]


def test_the_next_reporter_sends_what_the_last_one_could_not(tmp_path: Path) -> None:
    server = Server()
    first = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    first.send(metric(0))
    assert first.flush(5)
    server.is_down = True
    first.send(metric(1))
    assert not first.close(0.3)
    assert spool_path(make_brief(tmp_path)).exists()
    server.is_down = False
    second = HttpReporter(server.control(), make_brief(tmp_path, last_sequence=1), interval=0.01)
    second.send(metric(2))
    assert second.close(5)
    assert server.steps == [0, 1, 2]


def test_spooled_reports_that_did_arrive_are_not_sent_again(tmp_path: Path) -> None:
    server = Server()
    server.is_down = True
    first = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    first.send(metric(0))
    first.send(metric(1))
    first.close(0.2)
    server.is_down = False
    second = HttpReporter(server.control(), make_brief(tmp_path, last_sequence=1), interval=0.01)
    assert second.close(5)
    assert sorted(server.stored) == [2]


def test_stop_is_heard_from_a_receipt(tmp_path: Path) -> None:
    server = Server()
    server.stop = True
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    assert not reporter.stop_requested
    reporter.send(metric(0))
    assert reporter.flush(5)
    assert reporter.stop_requested
    reporter.close(5)


@pytest.mark.parametrize("status", [401, 403, 404, 409])
def test_a_fenced_attempt_stops_and_delivers_nothing(tmp_path: Path, status: int) -> None:
    server = Server()
    server.status = status
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.01)
    reporter.send(metric(0))
    assert not reporter.flush(5)
    assert reporter.is_fenced
    assert reporter.stop_requested
    assert not reporter.close(1)
    assert not spool_path(make_brief(tmp_path)).exists()


def test_one_refused_report_does_not_hold_back_the_others(tmp_path: Path) -> None:
    server = Server()
    server.refuses = {3}
    reporter = HttpReporter(server.control(), make_brief(tmp_path), interval=0.05)
    for step in range(6):
        reporter.send(metric(step))
    assert reporter.close(10)
    assert server.steps == [0, 1, 2, 4, 5]


def test_the_brief_is_waited_for(tmp_path: Path) -> None:
    brief = make_brief(tmp_path)
    answers = iter([httpx.Response(503), httpx.Response(200, content=brief.model_dump_json())])
    control = ControlPlane("http://control", "secret", transport=httpx.MockTransport(lambda _: next(answers)))
    assert control.fetch_brief(sleep=lambda _: None) == brief


def test_the_brief_gives_up_and_a_revoked_token_does_not_wait() -> None:
    down = ControlPlane("http://c", "x", transport=httpx.MockTransport(lambda _: httpx.Response(503)))
    with pytest.raises(ControlUnreachableError):
        down.fetch_brief(deadline_seconds=0.0, sleep=lambda _: None)
    revoked = ControlPlane("http://c", "x", transport=httpx.MockTransport(lambda _: httpx.Response(401)))
    with pytest.raises(AttemptFencedError):
        revoked.fetch_brief()


def test_started_by_hand_says_so() -> None:
    with pytest.raises(InvalidInputError, match="TIDE_CONTROL_URL"):
        ControlPlane.from_environment({})


def test_pauses_grow_to_a_bound() -> None:
    backoff = Backoff(first=1.0, longest=4.0)
    pauses = [backoff.next() for _ in range(20)]
    assert 0.5 <= pauses[0] <= 1.0
    assert all(2.0 <= pause <= 4.0 for pause in pauses[3:])
    backoff.reset()
    assert backoff.next() <= 1.0


def test_progress_is_throttled_and_has_an_eta() -> None:
    now = [0.0]
    recorder = RecordingReporter()
    meter = ProgressMeter(recorder, Phase.TRAIN, "training", 100, min_interval=1.0, clock=lambda: now[0])
    for step in range(101):
        meter.update(step)
        now[0] += 0.25
    sent = recorder.of_type(Progress)
    assert [p.completed for p in sent][:3] == [0, 4, 8]
    assert sent[0].eta_seconds is None
    assert sent[1].eta_seconds == pytest.approx(96 * 0.25)
    assert sent[-1].completed == 100
    assert sent[-1].eta_seconds == 0


def test_the_next_attempt_delivers_the_figures_that_a_killed_one_had_kept(tmp_path: Path) -> None:
    server = Server()
    server.is_down = True
    killed = HttpReporter(server.control(), make_brief(tmp_path))
    for step in (1, 2, 3):
        killed.send(metric(step))
    killed.send(Progress(phase=Phase.TRAIN, stage="training", completed=3))
    killed.keep()  # what comes after the last checkpoint is measured again and need not be kept
    assert killed.close(deadline_seconds=0.1) is False
    server.is_down = False
    next_brief = make_brief(tmp_path, attempt=2)
    with HttpReporter(server.control(), next_brief) as reporter:
        reporter.send(metric(4))
        assert reporter.flush(5.0)
    assert server.steps == [1, 2, 3, 4]
    assert not spool_path(next_brief, 1).exists()
    with HttpReporter(server.control(), make_brief(tmp_path, len(server.stored), attempt=3)):
        pass
    assert len(server.stored) == 4, "they are inherited once"
