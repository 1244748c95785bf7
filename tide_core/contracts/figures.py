"""The figures of a job: what its workers report, what charts draw and what Prometheus shows, each named once.

In: nothing. Out: `Figure` constants; trainers and evaluations write them, the page, the metrics endpoint, the
dashboards and docs/metrics.md read them. A figure with members stands for a family of series,
``<name>/<member>``: a loss has one for each term, the held-out figures one for each measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What a figure is counted in."""

    NATS = "nats"
    NATS_PER_TOKEN = "nats per token"
    RATIO = "ratio"
    SECONDS = "seconds"
    TOKENS_PER_SECOND = "tokens per second"
    BYTES = "bytes"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, or a family of them.

    Attributes:
        name: of its series in reports and in the REST interface.
        title: for a chart, in a few words.
        unit: of its values.
        meaning: one sentence.
        gauge: the gauge of a running job that shows its newest value, without the prefix ``tide_job_``; empty
            where Prometheus does not show it.
        member_label: what its members are called ("term"); empty for a figure without members.
        whole: value of that label for the series without a member; empty where there is no such series.
    """

    name: str
    title: str
    unit: Unit
    meaning: str
    gauge: str = ""
    member_label: str = ""
    whole: str = ""

    @property
    def gauge_name(self) -> str:
        """Full name of its gauge in Prometheus."""
        assert self.gauge, f"{self.name} has no gauge"
        return f"tide_job_{self.gauge}"

    def of(self, member: str) -> str:
        """Name of one member's series."""
        assert self.member_label, f"{self.name} has no members"
        return f"{self.name}/{member}"

    def member_of(self, series: str) -> str | None:
        """Which member a series belongs to, `whole` for the series without one; None for another's series."""
        head, slash, member = series.partition("/")
        if head != self.name or bool(slash) > bool(self.member_label):
            return None
        if slash:
            return member
        return self.whole if self.whole or not self.member_label else None


LOSS = Figure(
    "loss",
    "Loss",
    Unit.NATS,
    'Loss of the newest step, in total (term "total") and by term.',
    "loss",
    member_label="term",
    whole="total",
)
MASK_RATE = Figure(
    "mask_rate", "Mask rate", Unit.RATIO, "Share of the maskable tokens that was masked.", "mask_ratio"
)
LAMBDA = Figure(
    "lambda",
    "Mean lambda of TIDAL",
    Unit.RATIO,
    "Mean lambda of TIDAL (arXiv 2604.26951).",
    "teacher_trust_ratio",
)
GRADIENT_NORM = Figure(
    "gradient_norm",
    "Gradient norm",
    Unit.NONE,
    "Norm of the gradient before clipping.",
    "gradient_norm",
)
LEARNING_RATE = Figure(
    "learning_rate", "Learning rate", Unit.NONE, "Learning rate of the newest step.", "learning_rate"
)
STEP_SECONDS = Figure(
    "step_seconds", "Step time", Unit.SECONDS, "Duration of the newest step.", "step_seconds"
)
TOKENS_PER_SECOND = Figure(
    "tokens_per_second",
    "Throughput",
    Unit.TOKENS_PER_SECOND,
    "Student tokens a second, newest step.",
    "tokens_per_second",
)
PADDING_RATIO = Figure(
    "padding_ratio", "Padding", Unit.RATIO, "Share of the student's positions that are padding."
)
TEACHER_WAIT_SECONDS = Figure(
    "teacher_wait_seconds",
    "Wait for the teacher",
    Unit.SECONDS,
    "Wait for scores in the newest step.",
    "teacher_wait_seconds",
)
FEED_WAIT_SECONDS = Figure(
    "feed_wait_seconds",
    "Wait for data",
    Unit.SECONDS,
    "Wait for data in the newest step.",
    "feed_wait_seconds",
)
TEACHER_QUEUE_SECONDS = Figure(
    "teacher_queue_seconds",
    "Wait in the teacher's queue",
    Unit.SECONDS,
    "Longest wait in a replica's queue of the newest step's requests.",
    "teacher_queue_seconds",
)
TEACHER_COMPUTE_SECONDS = Figure(
    "teacher_compute_seconds",
    "Teacher's compute",
    Unit.SECONDS,
    "Time in the teacher's forwards for the newest step.",
    "teacher_compute_seconds",
)
TEACHER_BYTES = Figure(
    "teacher_bytes",
    "Size of the teacher's answers",
    Unit.BYTES,
    "Size of the newest step's answers.",
    "teacher_answer_bytes",
)
TEACHER_CACHE_HIT_RATIO = Figure(
    "teacher_cache_hit_ratio",
    "Score cache hits",
    Unit.RATIO,
    "Share of the newest step's sequences that the score cache answered.",
    "teacher_cache_hit_ratio",
)
TEACHER_TAIL_MASS = Figure(
    "teacher_tail_mass",
    "Teacher's tail mass",
    Unit.RATIO,
    "Mean share of the teacher's probability that its k likeliest ids leave out, newest step.",
    "teacher_tail_mass_ratio",
    member_label="temperature",
)
HELD_OUT = Figure(
    "held_out",
    "Held-out figures",
    Unit.NONE,
    "Newest held-out figures, of training and of the evaluation.",
    "held_out",
    member_label="figure",
)

FIGURES: tuple[Figure, ...] = (
    LOSS,
    MASK_RATE,
    LAMBDA,
    GRADIENT_NORM,
    LEARNING_RATE,
    STEP_SECONDS,
    TOKENS_PER_SECOND,
    PADDING_RATIO,
    TEACHER_WAIT_SECONDS,
    FEED_WAIT_SECONDS,
    TEACHER_QUEUE_SECONDS,
    TEACHER_COMPUTE_SECONDS,
    TEACHER_BYTES,
    TEACHER_CACHE_HIT_RATIO,
    TEACHER_TAIL_MASS,
    HELD_OUT,
)
"""Every figure that a worker reports, in reading order."""


class Measure(StrEnum):
    """Members of `HELD_OUT`: what an evaluation measures of a model on held-out sequences."""

    NELBO = "nelbo"
    """The same as `NELBO_PER_TOKEN`: the name that charts and `Metrics` of running jobs use."""
    NELBO_PER_TOKEN = "nelbo_per_token"
    """Nats, over every trained token, closing ones included."""
    CONTENT_NELBO_PER_TOKEN = "content_nelbo_per_token"
    """Nats, over what student and teacher both see: aligned tokens, or the tokens of chunks."""
    CONTENT_NELBO_PER_BYTE = "content_nelbo_per_byte"
    """Nats."""
    MASKED_TOKEN_ACCURACY = "masked_token_accuracy"
    """Share of the masked content tokens whose likeliest token is the right one."""
    FORWARD_KL_TO_TEACHER = "forward_kl_to_teacher"
    """Nats per masked aligned position, over the shared vocabulary."""
    REVERSE_KL_TO_TEACHER = "reverse_kl_to_teacher"
    FORWARD_CHUNK_KL_TO_TEACHER = "forward_chunk_kl_to_teacher"
    """Nats per masked chunk (Bernoulli)."""
    REVERSE_CHUNK_KL_TO_TEACHER = "reverse_chunk_kl_to_teacher"
    EXACT_MATCH = "exact_match"
    """Share of the prompts whose sampled answer equals the reference."""


def figure_of(series: str) -> tuple[Figure, str] | None:
    """The figure that a series belongs to, and its member ("" where it has none); None for an unknown one."""
    found = ((figure, figure.member_of(series)) for figure in FIGURES)
    return next(((figure, member) for figure, member in found if member is not None), None)


def gauges() -> Iterator[tuple[str, Figure]]:
    """The gauges of running jobs, by their full names in Prometheus."""
    return ((figure.gauge_name, figure) for figure in FIGURES if figure.gauge)
