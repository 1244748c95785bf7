"""What workers and the control plane say to each other, over HTTP with an attempt's own token.

A worker fetches its `AttemptBrief` once and sends `ReportBatch`es. Reports carry a sequence number per
(attempt, phase); the control plane stores each number once, so a report may be sent again after any failure.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tide_core.contracts.base import Contract
from tide_core.contracts.errors import RetryableScoreError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.job_folder import JobFolder
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import TeacherLease

ENV_CONTROL_URL = "TIDE_CONTROL_URL"
ENV_ATTEMPT_TOKEN = "TIDE_ATTEMPT_TOKEN"
"""Environment of a Ray job: the control plane's address and a bearer token of this attempt and phase."""
NODE_LOST = "node_lost"
"""Code of a failure that is the platform's: it uses up none of the job's attempts."""
SCORE_DEADLINE = "score_deadline"
"""Code of a failure: a question to the teacher had no answer before its deadline."""
TEACHER_AWAY = frozenset({RetryableScoreError.code, SCORE_DEADLINE})
"""Codes of a failure because the teacher did not answer: the platform's too, for a bounded time."""
STOPPED = "stopped"
"""Key of a phase's result: true when the phase ended early because the control plane asked it to stop."""
DEFAULT_SCORE_DEADLINE_SECONDS = 900.0
"""How long a question to the teacher is asked again and again."""


class AttemptBrief(Contract):
    """All that a Ray job needs to know. `GET /internal/v1/attempt` with the attempt's token."""

    job_id: str
    attempt: int = Field(ge=1)
    phase: Phase
    spec: ResolvedJobSpec
    storage: str
    """Root of the storage: a folder or an fsspec URL."""
    prepared: str | None = None
    """Location of the prepared data set, once prepared."""
    teacher: TeacherLease | None = None
    """The lease, when this phase may ask the teacher."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that this phase's processes may run on; empty is any node."""
    score_deadline_seconds: float = Field(
        default=DEFAULT_SCORE_DEADLINE_SECONDS,
        gt=0,
        # Workers of running jobs may be of the version before, which refuses fields that it does not know.
        exclude_if=lambda seconds: seconds == DEFAULT_SCORE_DEADLINE_SECONDS,
    )
    """How long a teacher may leave a question unanswered before the attempt ends."""
    last_sequence: int = 0
    """Highest report sequence number already stored for this attempt and phase."""

    @property
    def folder(self) -> JobFolder:
        """Where everything of this job lies."""
        return JobFolder.of(self.storage, self.job_id)


class Progress(Contract):
    """How far a phase is: shown as a bar with an ETA."""

    model_config = ConfigDict(allow_inf_nan=True)  # an estimate may be infinite

    type: Literal["progress"] = "progress"
    phase: Phase
    stage: str
    """What is being done, in a word or two: "tokenising", "training", "sampling"."""
    completed: float = Field(ge=0)
    total: float | None = Field(default=None, ge=0)
    unit: str = "steps"
    eta_seconds: float | None = Field(default=None, ge=0)


class Metrics(Contract):
    """Figures of one optimiser step or of one evaluation."""

    model_config = ConfigDict(allow_inf_nan=True)  # a diverged run must be able to say so

    type: Literal["metrics"] = "metrics"
    step: int = Field(ge=0)
    values: dict[str, float]
    """Name -> value, as in "loss", "loss/reverse_calm", "held_out/nelbo", "step_seconds"."""


class CheckpointSaved(Contract):
    """A checkpoint is complete in storage."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int = Field(ge=0)
    location: str
    bytes: int = Field(ge=0)
    is_export: bool = False
    """True for the final model in the Hugging Face layout, false for a training state."""


class CheckpointDeleted(Contract):
    """An old checkpoint was removed by the policy."""

    type: Literal["checkpoint_deleted"] = "checkpoint_deleted"
    step: int = Field(ge=0)
    location: str


class Coverage(Contract):
    """How much of the trained contents of a data set the two tokenisations can be compared on."""

    share: float = Field(ge=0, le=1)
    """Share of the content bytes that lie in chunks, or in aligned positions; 1 where there are none."""
    contents: int = Field(ge=0)
    """Message contents that both sides see."""
    content_bytes: int = Field(ge=0)
    """Bytes of the contents, inside both sides' lengths."""
    chunk_bytes: int = Field(ge=0)
    """Bytes of them in chunks."""
    chunks: int = Field(ge=0)
    student_straddling: int = Field(ge=0)
    """The student's tokens that cross the edge of a content, and are left out."""
    teacher_straddling: int = Field(ge=0)
    special_tokens: int = Field(ge=0)
    """Chunks left out because a special token stands in the content."""
    mismatched: int = Field(ge=0)
    """In a shared tokenizer: same bytes, but other ids."""
    cut_contents: int = Field(ge=0)
    """Contents of which a length limit removed a part."""
    shortened_contents: int = Field(ge=0)
    """Contents of which a template left out a part."""
    student_lengths: dict[int, int]
    """Length of a chunk in the student's tokens -> chunks; the last bin holds all longer ones."""
    teacher_lengths: dict[int, int]


class DatasetPrepared(Contract):
    """The preparation is done (or was found in storage)."""

    type: Literal["prepared"] = "prepared"
    location: str
    content_hash: str
    rows: int = Field(ge=0)
    held_out_rows: int = Field(ge=0)
    rejected: dict[str, int]
    """Rows left out, by reason."""
    coverage: Coverage
    """Of the training split."""
    reused: bool = False


class TeacherAttested(Contract):
    """The teacher that answers this phase, reported before the first question to it.

    Older workers send ``Note(code="teacher.attested", message=fingerprint)`` instead. A control plane
    that is older than the worker refuses this report alone, and the job goes on without it; that happens only
    while an upgrade replaces the control plane, and after a return to the older version.
    """

    type: Literal["teacher_attested"] = "teacher_attested"
    fingerprint: str = Field(min_length=1)
    """Of the teacher, as in `TeacherDescription`."""


class Finished(Contract):
    """The phase ended well; `result` is its outcome in full (an evaluation report, say)."""

    type: Literal["finished"] = "finished"
    result: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_stopped(self) -> bool:
        """Whether the phase ended early because the control plane asked it to stop."""
        return self.result.get(STOPPED) is True


class Failed(Contract):
    """The phase ended badly for a reason that the worker knows."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    retryable: bool
    """True when the same attempt may work later (a node vanished); false when the input must change."""


class Note(Contract):
    """Something worth telling in the job's event log."""

    type: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    code: str
    message: str


AnyReport = Annotated[
    Progress
    | Metrics
    | CheckpointSaved
    | CheckpointDeleted
    | DatasetPrepared
    | TeacherAttested
    | Finished
    | Failed
    | Note,
    Field(discriminator="type"),
]


class Report(Contract):
    """One numbered report."""

    sequence: int = Field(ge=1)
    time: datetime
    body: AnyReport


class ReportBatch(Contract):
    """`POST /internal/v1/reports` with the attempt's token."""

    reports: tuple[Report, ...] = Field(max_length=1000)


class ReportReceipt(Contract):
    """What the control plane answers: everything up to here is stored; and whether to stop."""

    acknowledged: int = Field(ge=0)
    stop_requested: bool = False
    """True once the job is being cancelled or paused: save and end."""
