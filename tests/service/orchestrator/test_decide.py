"""The policy as a table: every state against every kind of observation."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from service.jobs.outcomes import AttemptEnd, PhaseOutcome
from service.orchestrator.actions import (
    AcquireLease,
    Action,
    Advance,
    Fail,
    NextAttempt,
    ReleaseLease,
    Stop,
    Submit,
    Wait,
)
from service.orchestrator.compute import (
    ApplicationState,
    ApplicationStatus,
    SubmissionState,
    SubmissionStatus,
)
from service.orchestrator.decide import JobSnapshot, Limits, Observed, PhaseSnapshot, decide
from tide_core.contracts.reporting import NODE_LOST, TEACHER_AWAY
from tide_core.contracts.states import JobState, Phase, is_allowed

S, T = JobState, SubmissionStatus
READY = ApplicationState(ApplicationStatus.RUNNING, ready_replicas=1)
WORK = {S.PREPARING: Phase.PREPARE, S.RUNNING: Phase.TRAIN, S.EVALUATING: Phase.EVALUATE}
RETRY_IN = {S.PREPARING: None, S.RUNNING: S.PROVISIONING, S.EVALUATING: None}
BACKOFF_CAP = Limits().longest_backoff


def job(state: JobState, **changes: object) -> JobSnapshot:
    return dataclasses.replace(JobSnapshot(state, is_prepared=True, has_lease=True), **changes)


def working(
    state: JobState, status: SubmissionStatus, exit_code: int | None = None, **known: object
) -> Action:
    """What is decided for a state with a phase whose submission stands so."""
    phase = WORK[state]
    snapshot = job(state, phases={phase: PhaseSnapshot(was_submitted=True, **known)})
    return decide(
        snapshot, Observed(submissions={phase: SubmissionState(status, "", exit_code)}, teacher=READY)
    )


@pytest.mark.parametrize("state", list(WORK))
class TestEveryWorkingState:
    def test_submits_once(self, state: JobState) -> None:
        assert decide(job(state), Observed(teacher=READY)) == Submit(WORK[state])

    def test_unreachable_waits(self, state: JobState) -> None:
        assert isinstance(decide(job(state), Observed(is_reachable=False)), Wait)

    @pytest.mark.parametrize("status", [T.PENDING, T.RUNNING])
    def test_waits_while_it_runs(self, state: JobState, status: SubmissionStatus) -> None:
        assert isinstance(working(state, status), Wait)

    @pytest.mark.parametrize(
        ("status", "exit_code"),
        [(T.NOT_FOUND, None), (T.STOPPED, None), (T.FAILED, None)],
    )
    def test_platform_losses_do_not_count(
        self, state: JobState, status: SubmissionStatus, exit_code: int | None
    ) -> None:
        action = working(state, status, exit_code)
        assert isinstance(action, NextAttempt)
        assert not action.end.counts
        assert action.target is RETRY_IN[state]

    @pytest.mark.parametrize(("exit_code", "word"), [(1, "exit code 1"), (-9, "memory"), (137, "memory")])
    def test_a_crash_without_a_word_counts(self, state: JobState, exit_code: int, word: str) -> None:
        action = working(state, T.FAILED, exit_code)
        assert isinstance(action, NextAttempt)
        assert action.end.counts
        assert word in action.reason

    def test_success_without_a_report_is_a_loss(self, state: JobState) -> None:
        assert isinstance(working(state, T.SUCCEEDED, 0), NextAttempt)

    @pytest.mark.parametrize("status", list(T))
    def test_final_failure_ends_the_job(self, state: JobState, status: SubmissionStatus) -> None:
        known = {"ending": PhaseOutcome.FAILED, "error_code": "bad_data", "error_message": "no rows"}
        assert working(state, status, **known) == Fail("bad_data", "no rows")

    def test_retryable_failure_uses_up_attempts(self, state: JobState) -> None:
        known = PhaseSnapshot(True, PhaseOutcome.FAILED, "oom", "out of memory", is_retryable=True)
        first = job(state, phases={WORK[state]: known}, own_failures=0, max_attempts=2)
        assert decide(first, Observed()) == NextAttempt(
            AttemptEnd.JOB_FAULT, "out of memory", RETRY_IN[state]
        )
        last = decide(dataclasses.replace(first, own_failures=1), Observed())
        assert isinstance(last, Fail)
        assert last.code == "oom"
        assert "2 failed attempts" in last.message

    def test_a_lost_node_uses_up_no_attempt(self, state: JobState) -> None:
        known = PhaseSnapshot(True, PhaseOutcome.FAILED, NODE_LOST, "its node went away", is_retryable=True)
        last = job(state, phases={WORK[state]: known}, own_failures=1, max_attempts=2)
        assert decide(last, Observed()) == NextAttempt(
            AttemptEnd.PLATFORM_LOSS, "its node went away", RETRY_IN[state]
        )

    @pytest.mark.parametrize("code", sorted(TEACHER_AWAY))
    def test_a_teacher_that_is_away_uses_up_no_attempt_for_a_bounded_time(
        self, state: JobState, code: str
    ) -> None:
        limits = Limits(teacher_loss=3600)
        known = PhaseSnapshot(True, PhaseOutcome.FAILED, code, "no answer", is_retryable=True)
        last = job(state, phases={WORK[state]: known}, own_failures=1, max_attempts=2)
        for away in (0.0, 1.0, 3600.0):
            action = decide(dataclasses.replace(last, teacher_away_seconds=away), Observed(), limits)
            assert action == NextAttempt(AttemptEnd.TEACHER_AWAY, "no answer", RETRY_IN[state]), away
        action = decide(dataclasses.replace(last, teacher_away_seconds=3601.0), Observed(), limits)
        assert isinstance(action, Fail)
        assert action.code == "teacher_lost"
        assert "no answer" in action.message
        assert "teacher_loss_timeout_seconds (3600)" in action.message

    def test_lost_attempts_are_retried_ever_more_slowly(self, state: JobState) -> None:
        soon = job(state, platform_losses=3, attempt_age_seconds=7.9)
        assert isinstance(decide(soon, Observed(teacher=READY)), Wait)
        assert isinstance(
            decide(dataclasses.replace(soon, attempt_age_seconds=8), Observed(teacher=READY)), Submit
        )
        much = job(state, platform_losses=50, attempt_age_seconds=BACKOFF_CAP)
        assert isinstance(decide(much, Observed(teacher=READY)), Submit)


class TestTheGoodCourse:
    def test_queue(self) -> None:
        assert decide(job(S.QUEUED), Observed()) == Advance(
            S.PREPARING, "The job has started; its data is being prepared."
        )
        assert isinstance(decide(job(S.QUEUED), Observed(has_room=False)), Wait)
        assert isinstance(decide(job(S.QUEUED), Observed(is_reachable=False)), Wait)

    @pytest.mark.parametrize(
        ("state", "is_evaluated", "target"),
        [
            (S.PREPARING, True, S.PROVISIONING),
            (S.RUNNING, True, S.EVALUATING),
            (S.RUNNING, False, S.SUCCEEDED),
            (S.EVALUATING, True, S.SUCCEEDED),
        ],
    )
    def test_finished_phases(self, state: JobState, is_evaluated: bool, target: JobState) -> None:
        phases = {WORK[state]: PhaseSnapshot(True, PhaseOutcome.FINISHED)}
        for reachable in (True, False):  # what SQL knows needs no cluster
            action = decide(
                job(state, phases=phases, is_evaluated=is_evaluated), Observed(is_reachable=reachable)
            )
            assert isinstance(action, Advance)
            assert action.target is target

    def test_a_preparation_that_names_no_data_is_no_end(self) -> None:
        phases = {Phase.PREPARE: PhaseSnapshot(True, PhaseOutcome.FINISHED)}
        action = decide(job(S.PREPARING, is_prepared=False, phases=phases), Observed())
        assert isinstance(action, NextAttempt)


class TestTeacher:
    def test_leases_then_waits_then_runs(self) -> None:
        waiting = job(S.PROVISIONING)
        assert decide(dataclasses.replace(waiting, has_lease=False), Observed()) == AcquireLease()
        starting = Observed(teacher=ApplicationState(ApplicationStatus.STARTING))
        assert isinstance(decide(waiting, starting), Wait)
        action = decide(waiting, Observed(teacher=READY))
        assert isinstance(action, Advance)
        assert action.target is S.RUNNING

    def test_a_cluster_that_is_too_small_is_said(self) -> None:
        action = decide(job(S.PROVISIONING), Observed(teacher=READY, shortage="It needs 9 CPUs."))
        assert isinstance(action, Advance)
        assert action.message.endswith("It needs 9 CPUs.")

    def test_a_pool_that_grows_is_ready(self) -> None:
        growing = ApplicationState(ApplicationStatus.STARTING, ready_replicas=1)
        assert isinstance(decide(job(S.PROVISIONING), Observed(teacher=growing)), Advance)

    def test_no_teacher_no_lease(self) -> None:
        alone = job(S.PROVISIONING, training_needs_teacher=False)
        assert isinstance(decide(alone, Observed(is_reachable=False)), ReleaseLease)
        assert isinstance(decide(dataclasses.replace(alone, has_lease=False), Observed()), Advance)

    @pytest.mark.parametrize("state", [S.PROVISIONING, S.EVALUATING])
    def test_a_teacher_that_cannot_start_fails_the_job_with_its_words(self, state: JobState) -> None:
        failed = ApplicationState(ApplicationStatus.FAILED, "ValueError: no weights")
        action = decide(job(state), Observed(teacher=failed))
        assert isinstance(action, Fail)
        assert action.code == "teacher_failed_to_start"
        assert "no weights" in action.message

    @pytest.mark.parametrize(
        "status", [ApplicationStatus.STARTING, ApplicationStatus.ABSENT, ApplicationStatus.UNHEALTHY]
    )
    def test_waiting_is_bounded(self, status: ApplicationStatus) -> None:
        teacher = ApplicationState(status, "needs 50 CPUs")
        limits = Limits(teacher_start=60)
        patient = Observed(teacher=teacher, teacher_waited_seconds=59)
        assert isinstance(decide(job(S.PROVISIONING), patient, limits), Wait)
        action = decide(job(S.PROVISIONING), dataclasses.replace(patient, teacher_waited_seconds=61), limits)
        assert isinstance(action, Fail)
        assert action.code == "teacher_not_ready"
        assert "needs 50 CPUs" in action.message

    def test_a_node_that_is_missing_is_waited_for_as_long(self) -> None:
        starting = ApplicationState(ApplicationStatus.STARTING)
        limits = Limits(teacher_start=60)
        early = Observed(teacher=starting, teacher_unplaced="No such node.", teacher_waited_seconds=59)
        assert decide(job(S.PROVISIONING), early, limits) == Wait("No such node.")
        late = dataclasses.replace(early, teacher_waited_seconds=61)
        action = decide(job(S.PROVISIONING), late, limits)
        assert action == Fail("no_node_for_teacher", "After 61 s: No such node.")
        serving = dataclasses.replace(late, teacher=READY)
        assert isinstance(decide(job(S.PROVISIONING), serving, limits), Advance)

    @pytest.mark.parametrize("state", [S.PROVISIONING, S.EVALUATING])
    @pytest.mark.parametrize(
        "status", [ApplicationStatus.STARTING, ApplicationStatus.ABSENT, ApplicationStatus.UNHEALTHY]
    )
    def test_a_teacher_that_went_away_is_waited_for_longer_than_one_that_starts(
        self, state: JobState, status: ApplicationStatus
    ) -> None:
        limits = Limits(teacher_start=60, teacher_loss=3600)
        teacher = ApplicationState(status, "needs a GPU")
        away = job(state, teacher_away_seconds=3600)
        observed = Observed(teacher=teacher, teacher_waited_seconds=3000)
        assert isinstance(decide(away, observed, limits), Wait)
        later = dataclasses.replace(away, teacher_away_seconds=3601)
        action = decide(later, observed, limits)
        assert isinstance(action, Fail)
        assert action.code == "teacher_lost"
        assert "needs a GPU" in action.message
        unplaced = decide(later, dataclasses.replace(observed, teacher_unplaced="No such node."), limits)
        assert isinstance(unplaced, Fail)
        assert "No such node." in unplaced.message
        assert not isinstance(decide(later, Observed(teacher=READY), limits), Fail | Wait)

    def test_too_large_is_known_before_anything_is_deployed(self) -> None:
        action = decide(job(S.PROVISIONING, has_lease=False), Observed(teacher_problem="9 GiB of 8 GiB"))
        assert action == Fail("teacher_too_large", "9 GiB of 8 GiB")

    def test_evaluation_without_a_teacher_gives_the_lease_back(self) -> None:
        alone = job(S.EVALUATING, evaluation_needs_teacher=False)
        assert isinstance(decide(alone, Observed()), ReleaseLease)
        assert decide(dataclasses.replace(alone, has_lease=False), Observed()) == Submit(Phase.EVALUATE)

    def test_evaluation_takes_a_lease_that_training_did_not_need(self) -> None:
        assert decide(job(S.EVALUATING, has_lease=False), Observed()) == AcquireLease()

    def test_a_running_evaluation_does_not_ask_whether_the_teacher_is_ready(self) -> None:
        phases = {Phase.EVALUATE: PhaseSnapshot(was_submitted=True)}
        running = {Phase.EVALUATE: SubmissionState(T.RUNNING)}
        absent = Observed(submissions=running, teacher=ApplicationState(ApplicationStatus.FAILED))
        assert isinstance(decide(job(S.EVALUATING, phases=phases), absent), Wait)


class TestPausing:
    @pytest.mark.parametrize("ending", list(PhaseOutcome))
    def test_ends_however_training_ended(self, ending: PhaseOutcome) -> None:
        phases = {Phase.TRAIN: PhaseSnapshot(True, ending)}
        assert isinstance(decide(job(S.PAUSING, phases=phases), Observed()), ReleaseLease)
        action = decide(job(S.PAUSING, phases=phases, has_lease=False), Observed(is_reachable=False))
        assert isinstance(action, Advance)
        assert action.target is S.PAUSED

    def test_waits_for_the_trainer_and_then_stops_it(self) -> None:
        running = Observed(submissions={Phase.TRAIN: SubmissionState(T.RUNNING)})
        limits = Limits(pause=10)
        assert isinstance(decide(job(S.PAUSING, state_age_seconds=9), running, limits), Wait)
        assert isinstance(decide(job(S.PAUSING, state_age_seconds=11), running, limits), Stop)

    def test_a_lost_trainer_is_paused_too(self) -> None:
        action = decide(job(S.PAUSING, has_lease=False), Observed())
        assert isinstance(action, Advance)

    def test_resuming_never_reuses_a_submission(self) -> None:
        phases = {Phase.TRAIN: PhaseSnapshot(True, PhaseOutcome.STOPPED)}
        assert isinstance(decide(job(S.PROVISIONING, phases=phases), Observed(teacher=READY)), NextAttempt)


class TestCancelling:
    @pytest.mark.parametrize("phase", list(Phase))
    def test_stops_whatever_runs(self, phase: Phase) -> None:
        observed = Observed(submissions={phase: SubmissionState(T.RUNNING)})
        action = decide(job(S.CANCELLING), observed)
        assert isinstance(action, Stop)
        assert action.phase is phase

    def test_then_gives_the_lease_back_then_ends(self) -> None:
        assert isinstance(decide(job(S.CANCELLING), Observed()), ReleaseLease)
        action = decide(job(S.CANCELLING, has_lease=False), Observed())
        assert isinstance(action, Advance)
        assert action.target is S.CANCELLED


@pytest.mark.parametrize("state", [S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED])
def test_at_rest_only_a_lease_is_given_back(state: JobState) -> None:
    assert isinstance(decide(job(state), Observed()), ReleaseLease)
    assert isinstance(decide(job(state, has_lease=False), Observed()), Wait)


def _all_situations() -> itertools.product:
    endings = [None, *PhaseOutcome]
    return itertools.product(
        JobState, endings, SubmissionStatus, ApplicationStatus, (True, False), (True, False), (True, False)
    )


def test_every_pair_gives_an_allowed_action_and_unreachable_never_fails_what_runs() -> None:
    """No situation raises, leaves the table of transitions, or blames the job for the cluster's silence."""
    for state, ending, status, teacher, reachable, submitted, lease in _all_situations():
        phases = {phase: PhaseSnapshot(submitted, ending) for phase in Phase}
        observed = Observed(
            is_reachable=reachable,
            submissions={phase: SubmissionState(status) for phase in Phase} if reachable else {},
            teacher=ApplicationState(teacher),
        )
        action = decide(job(state, phases=phases, has_lease=lease), observed)
        where = (state, ending, status, teacher, reachable, submitted, lease, action)
        match action:
            case Advance():
                assert is_allowed(state, action.target), where
                assert action.target is not S.FAILED, where
            case NextAttempt():
                assert action.target is None or is_allowed(state, action.target), where
            case Fail():
                assert is_allowed(state, S.FAILED), where
                assert reachable or ending is PhaseOutcome.FAILED, where
            case Submit() | Stop() | AcquireLease():
                assert reachable, where
            case Wait() | ReleaseLease():
                pass
