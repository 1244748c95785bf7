"""Each report reaches every reporter, whichever of them fails; the control plane alone decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.tiny_runs import tiny_spec
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AnyReport, AttemptBrief, Metrics, Note
from tide_core.contracts.states import Phase
from workers.reporting.fake_control import FakeControlPlane
from workers.reporting.fan_out import FanOutReporter
from workers.reporting.recording import RecordingReporter
from workers.reporting.reporter import Reporter
from workers.reporting.trackers import open_reporter

REPORTS: list[AnyReport] = [Metrics(step=1, values={"loss": 1.0}), Note(code="seen", message="working")]


class Broken(RecordingReporter):
    """Remembers what it was asked, and fails at everything."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: list[float] = []
        self.kept = 0

    def send(self, body: AnyReport) -> None:
        super().send(body)
        raise ConnectionError("no tracker there")

    def keep(self) -> None:
        self.kept += 1
        raise OSError("disk full")

    def flush(self, deadline_seconds: float) -> bool:
        self.deadlines.append(deadline_seconds)
        raise TimeoutError

    def close(self, deadline_seconds: float = 30.0) -> bool:
        return self.flush(deadline_seconds)


def tell_everything(reporter: Reporter) -> list[bool]:
    for report in REPORTS:
        reporter.send(report)
    reporter.keep()
    return [reporter.flush(5.0), reporter.close(7.0)]


def test_one_that_fails_keeps_nothing_from_the_others_and_is_logged_once() -> None:
    control, broken, other = RecordingReporter(), Broken(), RecordingReporter()
    with capture_logs() as logs:
        answers = tell_everything(FanOutReporter(control, {"broken": broken, "other": other}))
    assert answers == [True, True]
    assert control.bodies == other.bodies == REPORTS
    assert broken.bodies == REPORTS, "it is told the next report all the same"
    assert broken.kept == 1
    assert [0.0 < seconds <= most for seconds, most in zip(broken.deadlines, (5.0, 7.0), strict=True)]
    assert [(line["event"], line["tracker"], line["reason"]) for line in logs] == [
        ("tracker.failed", "broken", "no tracker there")
    ]


def test_a_failure_of_the_control_plane_is_the_phases_and_trackers_hear_the_report() -> None:
    broken, tracker = Broken(), RecordingReporter()
    reporter = FanOutReporter(broken, {"tracker": tracker})
    with pytest.raises(ConnectionError, match="no tracker there"):
        reporter.send(REPORTS[0])
    with pytest.raises(OSError, match="disk full"):
        reporter.keep()
    for wait in (reporter.flush, reporter.close):
        with pytest.raises(TimeoutError):
            wait(0.0)
    assert tracker.bodies == REPORTS[:1]


def test_only_the_control_plane_stops_a_phase() -> None:
    control, tracker = RecordingReporter(), RecordingReporter()
    reporter = FanOutReporter(control, {"tracker": tracker})
    tracker.request_stop()
    assert not reporter.stop_requested
    control.request_stop()
    assert reporter.stop_requested


@pytest.fixture
def brief(tmp_path: Path) -> AttemptBrief:
    spec = tiny_spec(Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER)
    return AttemptBrief(job_id="job-1", attempt=1, phase=Phase.TRAIN, spec=spec, storage=str(tmp_path))


def test_an_attempt_tells_the_control_plane_and_the_trackers_that_its_job_asks_for(
    brief: AttemptBrief, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = RecordingReporter()

    def refuse(_: AttemptBrief) -> Reporter:
        raise ModuleNotFoundError("no such tracker installed")

    trackers = {"asked": lambda _: tracker, "not_asked": lambda _: None, "missing": refuse}
    with FakeControlPlane(brief) as control, capture_logs() as logs:
        for name, value in control.environment.items():
            monkeypatch.setenv(name, value)
        with open_reporter(brief, trackers=trackers) as reporter:
            for report in REPORTS:
                reporter.send(report)
            assert reporter.flush(10.0)
        assert control.bodies == tracker.bodies == REPORTS
    (line,) = [line for line in logs if line["event"].startswith("tracker.")]
    assert (line["event"], line["tracker"]) == ("tracker.not_opened", "missing")
