"""What the reconciler does next for a job: its whole policy, without a clock, a database or a network.

In: what SQL knows of the job (`JobSnapshot`) and what the cluster says (`Observed`). Out: one `Action`.

In: a `JobSnapshot` out of SQL and an `Observed` of the cluster. Out: one `Action`.

The rules in short:

- SQL says what should be; the cluster only says how far it got. A cluster that does not answer is waited for.
- A phase is one submission. Its outcome is what its worker reported; a submission that ended or vanished
  without a report is lost, and a lost attempt is followed by the next one, from the last checkpoint.
- The job's own failures use up `max_attempts`; losses by the platform (a node, the cluster, the teacher) do
  not, but are retried more slowly. Without its teacher a job goes on for a bounded time.
- A job holds a lease on its teacher exactly while a phase needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.jobs.outcomes import RESUMED_MESSAGE, AttemptEnd, PhaseOutcome
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
from tide_core.contracts.reporting import NODE_LOST, TEACHER_AWAY
from tide_core.contracts.states import JobState, Phase

PHASE_OF_STATE = {
    JobState.PREPARING: Phase.PREPARE,
    JobState.RUNNING: Phase.TRAIN,
    JobState.PAUSING: Phase.TRAIN,
    JobState.EVALUATING: Phase.EVALUATE,
}
"""The phase that a state works on; the other states have none."""


@dataclass(frozen=True, slots=True)
class PhaseSnapshot:
    """What SQL knows of one phase of the present attempt.

    Attributes:
        was_submitted: whether the cluster took it.
        ending: how it ended, None while it runs.
        error_code, error_message, is_retryable: of a FAILED ending.
    """

    was_submitted: bool = False
    ending: PhaseOutcome | None = None
    error_code: str = "worker_failed"
    error_message: str = ""
    is_retryable: bool = False


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """What SQL knows of a job, as far as the policy depends on it.

    Attributes:
        attempt_age_seconds, state_age_seconds: time in the present attempt and state.
        platform_losses: attempts lost without the job's fault.
        teacher_away_seconds: time since the last step, where the newest attempts ended without the
            teacher's answers; else 0.
        training_needs_teacher, evaluation_needs_teacher, is_evaluated: from the spec.
        phases: of the present attempt.
    """

    state: JobState
    has_lease: bool = False
    is_prepared: bool = False
    own_failures: int = 0
    max_attempts: int = 3
    platform_losses: int = 0
    teacher_away_seconds: float = 0.0
    attempt_age_seconds: float = 0.0
    state_age_seconds: float = 0.0
    training_needs_teacher: bool = True
    evaluation_needs_teacher: bool = True
    is_evaluated: bool = True
    phases: Mapping[Phase, PhaseSnapshot] = field(default_factory=dict)

    def phase(self, phase: Phase) -> PhaseSnapshot:
        """What is known of a phase, also before it began."""
        return self.phases.get(phase, PhaseSnapshot())


@dataclass(frozen=True, slots=True)
class Observed:
    """What the cluster says.

    Attributes:
        is_reachable: whether it answers; the other fields mean nothing otherwise.
        submissions: of the present attempt, by phase; absent ones are NOT_FOUND.
        teacher: the pool's application.
        teacher_waited_seconds: how long the pool has not been ready.
        teacher_problem: why the teacher can never run here, with the figures; None when it can.
        teacher_unplaced: which node it needs and the cluster does not have (yet), in words; None otherwise.
        shortage: what the next phase asks for and the cluster does not have (yet), in words; None otherwise.
        has_room: whether the service may start one more job.
    """

    is_reachable: bool = True
    submissions: Mapping[Phase, SubmissionState] = field(default_factory=dict)
    teacher: ApplicationState = ApplicationState(ApplicationStatus.ABSENT)  # noqa: RUF009
    teacher_waited_seconds: float = 0.0
    teacher_problem: str | None = None
    teacher_unplaced: str | None = None
    shortage: str | None = None
    has_room: bool = True

    def submission(self, phase: Phase) -> SubmissionState:
        """How a phase's submission stands."""
        return self.submissions.get(phase, _NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on waiting, in seconds."""

    teacher_start: float = 1800.0
    """For a pool to become ready."""
    teacher_loss: float = 21_600.0
    """For a teacher that stopped answering a running job to answer again."""
    pause: float = 120.0
    """For a trainer to save and end after it was asked to."""
    longest_backoff: float = 60.0
    """Between attempts that the platform loses."""


_NOT_FOUND = SubmissionState(SubmissionStatus.NOT_FOUND)
_DEFAULT_LIMITS = Limits()


def decide(job: JobSnapshot, observed: Observed, limits: Limits = _DEFAULT_LIMITS) -> Action:
    """The one next thing to do for a job. Pure: the same arguments give the same action."""
    match job.state:
        case JobState.QUEUED:
            return _decide_queued(observed)
        case JobState.PREPARING:
            return _decide_preparing(job, observed, limits)
        case JobState.PROVISIONING:
            return _decide_provisioning(job, observed, limits)
        case JobState.RUNNING:
            return _decide_running(job, observed, limits)
        case JobState.EVALUATING:
            return _decide_evaluating(job, observed, limits)
        case JobState.PAUSING:
            return _decide_pausing(job, observed, limits)
        case JobState.CANCELLING:
            return _decide_cancelling(job, observed)
        case JobState.PAUSED | JobState.CANCELLED | JobState.SUCCEEDED | JobState.FAILED:
            return _decide_at_rest(job)


def _decide_queued(observed: Observed) -> Action:
    if not observed.is_reachable:
        return Wait("the cluster does not answer")
    if not observed.has_room:
        return Wait("the limit of running jobs is reached")
    return Advance(
        JobState.PREPARING, _add_shortage("The job has started; its data is being prepared.", observed)
    )


def _decide_preparing(job: JobSnapshot, observed: Observed, limits: Limits) -> Action:
    if job.is_prepared and job.phase(Phase.PREPARE).ending is PhaseOutcome.FINISHED:
        return Advance(JobState.PROVISIONING, "The data is prepared.")
    return _work_on(job, observed, Phase.PREPARE, limits, retry_in=None)


def _decide_provisioning(job: JobSnapshot, observed: Observed, limits: Limits) -> Action:
    if job.phase(Phase.TRAIN).ending is not None:  # resumed after a pause: that submission id is used up
        return NextAttempt(AttemptEnd.RESUMED, RESUMED_MESSAGE)
    if job.training_needs_teacher:
        obstacle = _await_teacher(job, observed, limits)
        if obstacle is not None:
            return obstacle
        return Advance(JobState.RUNNING, _add_shortage("The teacher is ready; training starts.", observed))
    if job.has_lease:
        return ReleaseLease("training needs no teacher")
    return Advance(
        JobState.RUNNING, _add_shortage("Training starts; its objective needs no teacher.", observed)
    )


def _add_shortage(message: str, observed: Observed) -> str:
    """Say what the cluster lacks: it may grow, so that is no failure, but a user must see why a job waits."""
    return message if observed.shortage is None else f"{message} {observed.shortage}"


def _decide_running(job: JobSnapshot, observed: Observed, limits: Limits) -> Action:
    train = job.phase(Phase.TRAIN)
    if train.ending is PhaseOutcome.FINISHED:
        if job.is_evaluated:
            return Advance(JobState.EVALUATING, "Training is done; the student is being evaluated.")
        return Advance(JobState.SUCCEEDED, "Training is done.")
    return _work_on(job, observed, Phase.TRAIN, limits, retry_in=JobState.PROVISIONING)


def _decide_evaluating(job: JobSnapshot, observed: Observed, limits: Limits) -> Action:
    evaluate = job.phase(Phase.EVALUATE)
    if evaluate.ending is PhaseOutcome.FINISHED:
        return Advance(JobState.SUCCEEDED, "The student is evaluated.")
    if job.has_lease and not job.evaluation_needs_teacher:
        return ReleaseLease("the evaluation needs no teacher")
    if evaluate.ending is None and not evaluate.was_submitted and job.evaluation_needs_teacher:
        obstacle = _await_teacher(job, observed, limits)
        if obstacle is not None:
            return obstacle
    return _work_on(job, observed, Phase.EVALUATE, limits, retry_in=None)


def _decide_pausing(job: JobSnapshot, observed: Observed, limits: Limits) -> Action:
    """The trainer learns of the pause by its reports, saves and ends; one that does not is stopped."""
    if job.phase(Phase.TRAIN).ending is None:
        if not observed.is_reachable:
            return Wait("the cluster does not answer")
        submission = observed.submission(Phase.TRAIN)
        if submission.status in (SubmissionStatus.PENDING, SubmissionStatus.RUNNING):
            if job.state_age_seconds < limits.pause:
                return Wait("the trainer is saving")
            return Stop(Phase.TRAIN, "the trainer did not end by itself in time")
    if job.has_lease:
        return ReleaseLease("the job is paused")
    return Advance(JobState.PAUSED, "The job is paused.")


def _decide_cancelling(job: JobSnapshot, observed: Observed) -> Action:
    if not observed.is_reachable:
        return Wait("the cluster does not answer")
    for phase in Phase:
        if observed.submission(phase).status in (SubmissionStatus.PENDING, SubmissionStatus.RUNNING):
            return Stop(phase, "the job is being cancelled")
    if job.has_lease:
        return ReleaseLease("the job is cancelled")
    return Advance(JobState.CANCELLED, "The job is cancelled.")


def _decide_at_rest(job: JobSnapshot) -> Action:
    if job.has_lease:
        return ReleaseLease(f"the job is {job.state}")
    return Wait(f"the job is {job.state}")


def _await_teacher(job: JobSnapshot, observed: Observed, limits: Limits) -> Action | None:
    """What stands between a job and its teacher; None when the teacher is ready."""
    if not observed.is_reachable:
        return Wait("the cluster does not answer")
    if observed.teacher_problem is not None:
        return Fail("teacher_too_large", observed.teacher_problem)
    if not job.has_lease:
        return AcquireLease()
    teacher = observed.teacher
    if teacher.is_serving:
        return None
    said = teacher.message or "no message from its replicas"
    if teacher.status is ApplicationStatus.FAILED:
        return Fail("teacher_failed_to_start", f"The teacher cannot start: {said}")
    if job.teacher_away_seconds > 0:  # it answered before: this is no slow start
        reason = observed.teacher_unplaced or f"the teacher is {teacher.status}: {said}"
        return _give_up(job, reason, limits) or Wait(reason)
    if observed.teacher_waited_seconds > limits.teacher_start:
        waited = f"{observed.teacher_waited_seconds:.0f} s"
        if observed.teacher_unplaced is not None:
            return Fail("no_node_for_teacher", f"After {waited}: {observed.teacher_unplaced}")
        return Fail(
            "teacher_not_ready", f"The teacher was not ready after {waited} ({teacher.status}): {said}"
        )
    return Wait(observed.teacher_unplaced or f"the teacher is {teacher.status}")


def _work_on(
    job: JobSnapshot, observed: Observed, phase: Phase, limits: Limits, *, retry_in: JobState | None
) -> Action:
    """Bring a phase to its end: submit it, wait for it, or start over after a failure or a loss."""
    known = job.phase(phase)
    match known.ending:
        case PhaseOutcome.FAILED:
            return _answer_failure(job, known, retry_in, limits)
        case PhaseOutcome.STOPPED | PhaseOutcome.FINISHED:
            # FINISHED without its outcome (a preparation that names no data set) is no end to build on.
            return NextAttempt(AttemptEnd.PLATFORM_LOSS, f"the {phase} phase ended early", retry_in)
    if not observed.is_reachable:
        return Wait("the cluster does not answer")
    submission = observed.submission(phase)
    if submission.status is SubmissionStatus.NOT_FOUND and not known.was_submitted:
        return _submit_or_back_off(job, phase, limits)
    if submission.status in (SubmissionStatus.PENDING, SubmissionStatus.RUNNING):
        return Wait(f"the {phase} phase is {submission.status}")
    return _answer_loss(job, phase, submission, retry_in)


def _submit_or_back_off(job: JobSnapshot, phase: Phase, limits: Limits) -> Action:
    if job.platform_losses:
        pause = min(float(2**job.platform_losses), limits.longest_backoff)
        if job.attempt_age_seconds < pause:
            return Wait(f"the last attempt was lost; the next starts within {pause:.0f} s")
    return Submit(phase)


def _answer_failure(
    job: JobSnapshot, known: PhaseSnapshot, retry_in: JobState | None, limits: Limits
) -> Action:
    if not known.is_retryable:
        return Fail(known.error_code, known.error_message)
    if known.error_code == NODE_LOST:
        return NextAttempt(AttemptEnd.PLATFORM_LOSS, known.error_message, retry_in)
    if known.error_code in TEACHER_AWAY:
        again = NextAttempt(AttemptEnd.TEACHER_AWAY, known.error_message, retry_in)
        return _give_up(job, known.error_message, limits) or again
    return _count_failure(job, known.error_code, known.error_message, retry_in)


def _give_up(job: JobSnapshot, reason: str, limits: Limits) -> Fail | None:
    """The end of a job that went on without its teacher for too long."""
    if job.teacher_away_seconds <= limits.teacher_loss:
        return None
    return Fail(
        "teacher_lost",
        f"The teacher went away and has not answered for {job.teacher_away_seconds:.0f} s, longer than "
        f"teacher_loss_timeout_seconds ({limits.teacher_loss:.0f}). Last: {reason}",
    )


def _count_failure(job: JobSnapshot, code: str, message: str, retry_in: JobState | None) -> Action:
    if job.own_failures + 1 >= job.max_attempts:
        return Fail(code, f"{message} (after {job.own_failures + 1} failed attempts)")
    return NextAttempt(AttemptEnd.JOB_FAULT, message, retry_in)


def _answer_loss(
    job: JobSnapshot, phase: Phase, submission: SubmissionState, retry_in: JobState | None
) -> Action:
    if submission.is_own_failure:
        if submission.was_killed:
            message = f"The process of the {phase} phase was killed; most likely it took too much memory."
            return _count_failure(job, "worker_killed", message, retry_in)
        message = f"The {phase} phase ended with exit code {submission.exit_code} and without a report."
        return _count_failure(job, "worker_crashed", message, retry_in)
    if submission.status is SubmissionStatus.NOT_FOUND:
        reason = f"the cluster lost the {phase} phase"
    else:
        reason = f"the {phase} phase ended ({submission.status}) without a report"
    return NextAttempt(AttemptEnd.PLATFORM_LOSS, reason, retry_in)
