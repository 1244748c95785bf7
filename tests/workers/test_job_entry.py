"""The entry of every Ray job: what becomes of errors, and what is said last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from tide_core.contracts.errors import DataError, FingerprintMismatchError, RetryableScoreError
from tide_core.contracts.job import DataSource, DataSpec, JobSpec, StudentSpec, TeacherSpec, resolve
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AttemptBrief, Failed, Finished, Note
from tide_core.contracts.states import Phase
from workers import main as entry
from workers.cluster import NODE_DIED, NodeLostError, WorkerLostError, lost_worker, own_error
from workers.reporting.control import ControlPlane
from workers.reporting.fake_control import FakeControlPlane
from workers.reporting.http_reporter import HttpReporter


@pytest.fixture
def brief(tmp_path: Path) -> AttemptBrief:
    spec = JobSpec(
        teacher=TeacherSpec(model="/t"),
        student=StudentSpec(model="/s"),
        objective=Variant.NONE,
        data=DataSpec(sources=(DataSource(location="/d"),)),
    )
    resolved = resolve(spec, pipeline=Pipeline.CROSS_TOKENIZER)
    return AttemptBrief(job_id="job-1", attempt=2, phase=Phase.PREPARE, spec=resolved, storage=str(tmp_path))


@pytest.fixture
def control(brief: AttemptBrief, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControlPlane]:
    with FakeControlPlane(brief) as control:
        for name, value in control.environment.items():
            monkeypatch.setenv(name, value)
        yield control


def work(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | Exception) -> None:
    """Let the phase report a note, as phases do, and end so."""

    def phase(brief: AttemptBrief) -> dict[str, Any]:
        with HttpReporter(ControlPlane.from_environment(), brief) as reporter:
            reporter.send(Note(code="seen", message="working"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(entry, "phase_function", lambda _: phase)


def test_a_good_end(control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    work(monkeypatch, {"rows": 3})
    assert entry.main() == 0
    assert control.bodies == [Note(code="seen", message="working"), Finished(result={"rows": 3})]


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (DataError("nothing there", code="empty_dataset"), "empty_dataset", False),
        (RetryableScoreError("busy"), "score_unavailable", True),
        (FingerprintMismatchError("another"), "fingerprint_mismatch", False),
        (WorkerLostError("gone"), "worker_lost", True),
        (NodeLostError("gone"), "node_lost", True),
    ],
)
def test_an_error_of_ours_keeps_its_code(
    control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, retryable: bool
) -> None:
    work(monkeypatch, error)
    assert entry.main() == 1
    assert control.bodies[-1] == Failed(code=code, message=str(error), retryable=retryable)


def test_an_unexpected_error_shows_no_trace(
    control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(monkeypatch, KeyError("secret_internals"))
    assert entry.main() == 1
    last = control.bodies[-1]
    assert isinstance(last, Failed)
    assert (last.code, last.retryable) == ("internal_error", True)
    assert "secret" not in last.message


def test_started_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TIDE_CONTROL_URL", raising=False)
    assert entry.main() == 2
    assert "as a Ray job" in capsys.readouterr().err


def test_a_revoked_attempt_does_nothing(control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_ATTEMPT_TOKEN", "revoked")
    work(monkeypatch, {})
    assert entry.main() == 1
    assert control.bodies == []


class WrappedError(Exception):
    """As Ray Train raises it."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("training failed")
        self.worker_failures = failures


def test_errors_are_found_inside_rays() -> None:
    inner = DataError("x")
    middle = RuntimeError("task failed")
    middle.cause = inner  # type: ignore[attr-defined]
    assert own_error(WrappedError({0: ValueError("y"), 1: middle})) is inner
    assert own_error(WrappedError({0: ValueError("y")})) is None
    assert lost_worker(WrappedError({1: ActorDiedError()})) is not None
    assert lost_worker(WrappedError({1: ValueError("y")})) is None


def actor_died(words: str, node: NodeDeathInfo | None = None) -> ActorDiedError:
    return ActorDiedError(
        ActorDiedErrorContext(error_message=words, actor_id=bytes(16), node_death_info=node)
    )


def test_ray_still_says_so_of_a_node_that_died() -> None:
    server = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    assert NODE_DIED.encode() in server.read_bytes()


TAKEN_AWAY = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (actor_died("The actor died because its node has died. Node Id: 7"), NodeLostError),
        (actor_died("The node was terminated.", TAKEN_AWAY), NodeLostError),
        (NodeDiedError("gone"), NodeLostError),
        (ActorUnavailableError("Socket closed", bytes(16)), NodeLostError),
        (actor_died("The actor is dead because its worker process has died."), WorkerLostError),
    ],
)
def test_a_lost_node_is_told_from_a_lost_process(loss: RayError, kind: type[WorkerLostError]) -> None:
    # As Ray Train wraps what it finds when it asks its workers how they are.
    found = lost_worker(
        WrappedError({0: WorkerHealthCheckFailedError("A worker health check failed.", loss)})
    )
    assert type(found) is kind
