"""Is this replica still the teacher? Golden masked prompts, asked before serving and every few minutes.

A replica can answer nonsense without an error: weights that did not arrive after waking, a broken device, a
dtype too narrow. Training on such answers would go on without an error, so the answers are judged: a NaN, a
flat distribution, hidden states that do not depend on the input, or a drift against the first answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tide_core.contracts.errors import ScoreError, TideError, TokenizerError
from tide_core.contracts.scores import FIRST_VIEW, SECOND_VIEW, Layout, ScoreRequest, ScoreResponse, Want
from workers.teachers.engine import TeacherEngine

PROBE_JOB = "attestation"
GOLDEN_TEXTS = (
    "The river was high that spring, and the ferry did not run for nine days.",
    "def area(width, height):\n    return width * height\n\nprint(area(6, 7))  # 42",
    "Q: If 3 boxes hold 12 apples, how many apples do 5 boxes hold? A: 20, since 12 / 3 * 5 = 20.",
    "Größe, naïve, 水, здравствуй: not every text is ASCII.",
)
LONGEST_PROBE = 96
MASK_PERIOD = 3
"""Every third token is masked, alternately in the first and the second view."""
FLAT_MARGIN = 0.01
"""Nats: all log-probabilities as close as this to ``-log(vocabulary)`` mean a flat distribution."""
COLLAPSED_SPREAD = 1e-4
"""Hidden states that differ by less than this share of their size do not depend on the input."""
DRIFT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Nats, mean over the golden tokens: batches of other shapes round differently, and no more than this."""


class AttestationError(ScoreError):
    """The replica's answers cannot be the teacher's: it must not serve."""

    code = "teacher_unhealthy"


def golden_requests(tokenizer: Tokenizer) -> tuple[ScoreRequest, ...]:
    """Masked prompts that are the same for every teacher with this tokenizer.

    Returns:
        Log-probabilities in two layouts, and hidden states in one.

    Raises:
        TokenizerError: the tokenizer makes too few tokens of the prompts.
    """
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids[:LONGEST_PROBE] for text in GOLDEN_TEXTS]
    encoded = [ids for ids in encoded if len(ids) >= 2 * MASK_PERIOD]
    if not encoded:
        raise TokenizerError(
            "The teacher's tokenizer makes too few tokens of the golden prompts: is it the right one?",
            param="tokenizer",
        )
    groups = np.concatenate([_golden_groups(len(ids)) for ids in encoded])
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
    token_ids = np.concatenate(encoded).astype(np.int32)
    asked = (
        (Layout.BIDIRECTIONAL, Want.TARGET_LOG_PROB),
        (Layout.BLOCK_STAIRCASE, Want.TARGET_LOG_PROB),
        (Layout.BIDIRECTIONAL, Want.HIDDEN),
    )
    return tuple(
        ScoreRequest(token_ids, offsets, groups, layout=layout, want=want, job_id=PROBE_JOB, weight=1000.0)
        for layout, want in asked
    )


def judge(
    responses: Sequence[ScoreResponse],
    first: Sequence[ScoreResponse] | None,
    *,
    vocab_size: int,
    drift_tolerance: float,
) -> None:
    """Refuse answers to :func:`golden_requests` that no sound teacher gives.

    Args:
        responses: the answers, in the order of the requests.
        first: the answers when the replica started; None for the start itself.
        vocab_size: entries of the teacher's vocabulary.
        drift_tolerance: mean difference of log-probabilities that rounding explains, in nats.

    Raises:
        AttestationError: ``teacher_not_finite``, ``teacher_flat``, ``teacher_collapsed``, ``teacher_drift``.
    """
    log_probs = _log_probs(responses)
    hidden = _join_hidden(responses)
    if not (np.isfinite(log_probs).all() and np.isfinite(hidden).all()):
        raise AttestationError(
            "The answers to the golden prompts hold a NaN or an infinity.", code="teacher_not_finite"
        )
    if np.abs(log_probs + math.log(vocab_size)).max() < FLAT_MARGIN:
        raise AttestationError(
            "The teacher gives every token the same probability: its weights are not what they were.",
            code="teacher_flat",
        )
    if np.ptp(hidden, axis=0).max() < COLLAPSED_SPREAD * np.abs(hidden).max():
        raise AttestationError(
            "The teacher's hidden states do not depend on the input: its weights are not what they were.",
            code="teacher_collapsed",
        )
    if first is not None:
        drift = float(np.abs(log_probs - _log_probs(first)).mean())
        if drift > drift_tolerance:
            raise AttestationError(
                f"The answers to the golden prompts moved by {drift:.3g} nats a token since the replica "
                f"started; {drift_tolerance:g} is tolerated.",
                code="teacher_drift",
            )


@dataclass(slots=True)
class Attestor:
    """Asks an engine the golden prompts now and then, and quarantines it when the answers are bad.

    Attributes:
        engine: the teacher.
        requests: the golden prompts.
        dtype: of its weights: decides how much drift rounding explains.
        interval_seconds: between two probes.
        clock: monotonic seconds.
        on_result: told after each round whether the teacher is sound.
    """

    engine: TeacherEngine
    requests: Sequence[ScoreRequest]
    dtype: str
    interval_seconds: float = 180.0
    clock: Callable[[], float] = time.monotonic
    on_result: Callable[[bool], None] | None = None
    _first: list[ScoreResponse] | None = None
    _due: float = 0.0
    _probes: list[Future[ScoreResponse]] | None = None
    _finding: TideError | None = None

    def attest(self, timeout: float = 600.0) -> None:
        """Ask now and wait: before serving.

        Raises:
            AttestationError: the teacher must not serve.
            ScoreError: it could not even answer.
        """
        self._probes = self._ask()
        for probe in self._probes:
            probe.exception(timeout)
        self._collect()
        self._raise_finding()

    def check(self) -> None:
        """Never waits: judges answers that have come, asks again when it is time.

        Raises:
            AttestationError, ScoreError: what was found; from then on, each time.
        """
        if self._probes is not None and all(probe.done() for probe in self._probes):
            self._collect()
        self._raise_finding()
        if self._probes is None and self.clock() >= self._due:
            self._probes = self._ask()

    def _ask(self) -> list[Future[ScoreResponse]]:
        return [self.engine.submit(request, is_probe=True) for request in self.requests]

    def _collect(self) -> None:
        assert self._probes is not None
        probes, self._probes = self._probes, None
        self._due = self.clock() + self.interval_seconds
        try:
            responses = [probe.result(0) for probe in probes]
            judge(
                responses,
                self._first,
                vocab_size=self.engine.model.vocab_size,
                drift_tolerance=DRIFT_TOLERANCE[self.dtype],
            )
        except TideError as error:
            self._finding = error
            self.engine.quarantine(error.message)
        else:
            self._first = self._first or responses
        if self.on_result is not None:
            self.on_result(self._finding is None)

    def _raise_finding(self) -> None:
        if self._finding is not None:
            raise self._finding


def _golden_groups(length: int) -> npt.NDArray[np.uint8]:
    groups = np.zeros(length, np.uint8)
    masked = np.arange(1, length, MASK_PERIOD)
    groups[masked] = np.where(np.arange(masked.size) % 2 == 0, FIRST_VIEW, SECOND_VIEW)
    return groups


def _log_probs(responses: Sequence[ScoreResponse]) -> npt.NDArray[np.float32]:
    return np.concatenate([each.array for each in responses if each.array.ndim == 1]).astype(np.float32)


def _join_hidden(responses: Sequence[ScoreResponse]) -> npt.NDArray[np.float32]:
    bits = np.concatenate([each.array for each in responses if each.array.ndim == 2])
    return (bits.astype(np.uint32) << 16).view(np.float32)
