"""The engine of a teacher's replica: one queue for all jobs, one worker thread, no Ray.

In: score requests of any thread. Out: a future for each, which ends with its answer or an error. Requests are
cut into sequences, batched by like lengths across jobs, answered by the worker thread and put together again.
Where the device computes on its own, the next forward is launched before the present one is waited for.

Locks: `_changed` guards the queue, the counters, the quarantine and the end, never during a forward. The
model and the parts of a request that was taken from the queue belong to the worker thread alone.
Invariant: every accepted request ends, also when the engine closes. At most one forward is under way beside
the one that is being prepared. No answer holds a value that is not finite.
Failures: a full queue, a quarantine or the end refuses a request as retryable. A forward that fails is waited
for and halved, until the sequence at fault is alone with its error. A device that is gone fails each request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tide_core.contracts.errors import (
    RetryableScoreError,
    ScoreError,
    TideError,
)
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Values, Want
from tide_core.contracts.working_sizes import CPU_SIZES, working_sizes
from tide_core.models.teachers.adapter import TeacherModel
from tide_core.queueing.fair_queue import Entry, FairQueue
from tide_core.scoring.answers import Slices
from tide_core.scoring.forward import Scored, score_samples
from tide_core.scoring.layouts import ForwardInput, Sample, footprint, forward_input, samples_of
from tide_core.scoring.transport import check_request
from workers.teachers.statistics import EngineStatistics, StatisticsRecorder
from workers.teachers.streams import Landing, Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Sizes of the engine.

    Attributes:
        max_batch_tokens: tokens of one forward, padding included (a longer sequence goes alone).
        max_queued_tokens: tokens that may wait before requests are refused.
        row_slice: masked tokens a time in the LM head.
        vocab_slice: vocabulary entries a time in the LM head.
        threads: intra-op threads of the worker thread; None leaves torch's own number.
    """

    max_batch_tokens: int = CPU_SIZES.batch_tokens
    max_queued_tokens: int = CPU_SIZES.queued_tokens
    row_slice: int = CPU_SIZES.readout_rows
    vocab_slice: int = CPU_SIZES.readout_vocab
    threads: int | None = None

    @classmethod
    def for_device(cls, device: torch.device, *, threads: int | None = None) -> EngineSettings:
        """Larger batches and slices where the device has the memory and needs the parallelism."""
        sizes = working_sizes(is_accelerator=device.type != "cpu")
        return cls(
            max_batch_tokens=sizes.batch_tokens,
            max_queued_tokens=sizes.queued_tokens,
            row_slice=sizes.readout_rows,
            vocab_slice=sizes.readout_vocab,
            threads=threads,
        )


@dataclass(slots=True, eq=False)
class _Pending:
    """A request on its way through the queue."""

    request: ScoreRequest
    future: Future[ScoreResponse]
    submitted: float
    parts: list[Values | Tensor]
    unanswered: int
    is_held: bool = False
    queue_seconds: float | None = None
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Flight:
    """A forward that was launched: its sequences, what it leaves, and when it began."""

    entries: list[Entry[_Part]]
    inputs: ForwardInput
    scored: Scored
    landing: Landing
    launched: float


@dataclass(frozen=True, slots=True)
class _Part:
    """One sequence of a pending request."""

    pending: _Pending
    number: int
    sample: Sample = field(repr=False)


class TeacherEngine:
    """Answers score requests with one model.

    Args:
        model: the teacher, in evaluation mode on its device.
        fingerprint: of the weights, put on every answer.
        tokenizer_fingerprint: of its tokenizer.
        settings: sizes; by default those that fit the model's device.
        begins_pretoken: which ids do (bool [vocab]); without it requests for boundaries are refused.
        recorder: counts; by default for :meth:`statistics` alone.
        streams: what may happen at once; by default what suits the model's device.

    Use :meth:`close` when done: it ends the worker thread and refuses what still waits.
    """

    def __init__(
        self,
        model: TeacherModel,
        *,
        fingerprint: str,
        tokenizer_fingerprint: str,
        settings: EngineSettings | None = None,
        begins_pretoken: Bool[np.ndarray, " vocab"] | None = None,
        recorder: StatisticsRecorder | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.model = model
        self._device = model.lm_head.weight.device
        self._streams = streams or Streams.of(self._device)
        self._last_landing = 0.0
        self._begins_pretoken = begins_pretoken
        self.fingerprint = fingerprint
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.settings = settings or EngineSettings.for_device(self._device)
        self._slices = Slices(self.settings.row_slice, self.settings.vocab_slice)
        self._queue: FairQueue[_Part] = FairQueue(self.settings.max_queued_tokens)
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: str | None = None
        self._recorder = recorder or StatisticsRecorder()
        self._worker = threading.Thread(target=self._work, name="teacher-engine", daemon=True)
        self._worker.start()

    def submit(
        self, request: ScoreRequest, *, is_probe: bool = False, is_held: bool = False
    ) -> Future[ScoreResponse]:
        """Queue a request. The future gives the answer or a :class:`TideError`.

        Args:
            request: the question.
            is_probe: an attestation: it is taken even when the queue is full or the engine is quarantined.
            is_held: hidden states are held on the model's device, as a bfloat16 tensor; other wants come as
                ever.

        Raises:
            FingerprintMismatchError: the request names another teacher.
            InvalidInputError: ids outside the vocabulary, or a weight or block size that is not positive.
            RetryableScoreError: the queue is full, or the engine is quarantined or closed.
        """
        check_request(
            request,
            fingerprint=self.fingerprint,
            vocab_size=self.model.vocab_size,
            knows_boundaries=self._begins_pretoken is not None,
        )
        is_held = is_held and request.want is Want.HIDDEN
        samples = samples_of(request, is_held=is_held)
        pending = _Pending(
            request=request,
            future=Future(),
            submitted=time.monotonic(),
            parts=[self._empty_values(request, is_held=is_held) for _ in samples],
            unanswered=0,
            is_held=is_held,
        )
        entries = [
            self._make_entry(pending, number, sample)
            for number, sample in enumerate(samples)
            if sample.masked
        ]
        pending.unanswered = len(entries)
        with self._changed:
            self._refuse_if_unavailable(is_probe=is_probe)
            try:
                self._queue.push(entries, is_bounded=not is_probe)
            except RetryableScoreError:
                self._recorder.count_refusal()
                raise
            self._changed.notify()
        if not entries:
            self._finish(pending)
        return pending.future

    async def score(self, request: ScoreRequest, *, is_held: bool = False) -> ScoreResponse:
        """:meth:`submit`, for an event loop; cancelling the task cancels the request while it waits."""
        return await asyncio.wrap_future(self.submit(request, is_held=is_held))

    def statistics(self) -> EngineStatistics:
        """Counters since the start, and what waits now."""
        with self._changed:
            return self._recorder.snapshot(queued_tokens=self._queue.tokens, queued_jobs=self._queue.jobs)

    def quarantine(self, reason: str) -> None:
        """Refuse all requests but probes until :meth:`release`: the answers cannot be trusted."""
        with self._changed:
            self._refusal = reason

    def release(self) -> None:
        """Answer again."""
        with self._changed:
            self._refusal = None

    def close(self, timeout: float = 30.0) -> None:
        """End the worker thread after its present forward; what waits gets a RetryableScoreError."""
        with self._changed:
            self._closed = True
            left = self._queue.drain()
            self._changed.notify_all()
        self._fail(left, RetryableScoreError("The teacher is shutting down: ask another replica."))
        self._worker.join(timeout)

    def _refuse_if_unavailable(self, *, is_probe: bool) -> None:
        if self._closed:
            raise RetryableScoreError("The teacher is shutting down: ask another replica.")
        if self._refusal is not None and not is_probe:
            raise RetryableScoreError(
                f"This replica is quarantined: {self._refusal}", code="replica_quarantined"
            )

    def _make_entry(self, pending: _Pending, number: int, sample: Sample) -> Entry[_Part]:
        size = footprint(sample)
        return Entry(
            job_id=pending.request.job_id,
            weight=pending.request.weight,
            kind=(sample.layout, sample.block_size),
            rows=size.rows,
            length=size.length,
            payload=_Part(pending, number, sample),
        )

    def _work(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        self._streams.enter()
        in_flight: _Flight | None = None
        while (batch := self._take_batch(is_idle=in_flight is None)) is not None:
            in_flight = self._advance(batch, in_flight)
        if in_flight is not None:
            self._land(in_flight)

    def _take_batch(self, *, is_idle: bool) -> list[Entry[_Part]] | None:
        """The next batch, None at the end; while a forward is under way, at once and perhaps empty."""
        with self._changed:
            if is_idle:
                self._changed.wait_for(lambda: self._closed or self._queue.tokens)
            if self._closed:
                return None
            batch = self._queue.take(self.settings.max_batch_tokens) if self._queue.tokens else []
        return [entry for entry in batch if self._begin_request(entry.payload.pending)]

    def _advance(self, batch: list[Entry[_Part]], in_flight: _Flight | None) -> _Flight | None:
        """Launch a batch, then wait for the one before it; what is still under way after both."""
        flight, error = None, None
        try:
            flight = self._launch(batch) if batch else None
        except Exception as failure:
            error = failure
        if in_flight is not None:
            self._land(in_flight)
        if error is not None:
            # The forward before it held memory too: what was alone may fit now.
            self._halve(batch, error, may_repeat=in_flight is not None)
            return None
        if flight is not None and flight.landing.is_ready():
            self._land(flight)
            return None
        return flight

    def _begin_request(self, pending: _Pending) -> bool:
        """Whether a request is still wanted; from its first forward on it cannot be cancelled."""
        if pending.queue_seconds is None:
            if not pending.future.set_running_or_notify_cancel():
                pending.queue_seconds = -1.0
                return False
            pending.queue_seconds = time.monotonic() - pending.submitted
        return not pending.future.done()

    def _launch(self, entries: list[Entry[_Part]]) -> _Flight:
        launched = time.monotonic()
        samples = [entry.payload.sample for entry in entries]
        with self._streams.prepare():
            inputs = forward_input(samples, self.model.mask_token_id, self._device)
        scored = score_samples(self.model, samples, inputs, self._slices, self._begins_pretoken)
        return _Flight(entries, inputs, scored, self._streams.start_landing(scored.on_host()), launched)

    def _serve(self, entries: list[Entry[_Part]]) -> None:
        """Answer a batch with nothing else under way."""
        if not entries:
            return
        try:
            flight = self._launch(entries)
        except Exception as error:
            self._halve(entries, error, may_repeat=False)
        else:
            self._land(flight)

    def _halve(self, entries: list[Entry[_Part]], error: Exception, *, may_repeat: bool) -> None:
        """After a failure: halve the batch until the sequence at fault is alone with its error."""
        try:
            self._streams.settle()
        except Exception as broken:  # the device itself: nothing will run on it any more
            self._fail(entries, _as_score_error(broken))
            return
        finally:
            # Its frames hold the tensors of the forward that failed, perhaps because memory ran out.
            error.__traceback__ = None
        if len(entries) == 1 and not may_repeat:
            self._fail(entries, _as_score_error(error))
            return
        half = len(entries) // 2
        self._serve(entries[:half])
        self._serve([entry for entry in entries[half:] if not entry.payload.pending.future.done()])

    def _land(self, flight: _Flight) -> None:
        """Wait for a forward and hand out its values."""
        try:
            values = flight.scored.parts(flight.landing.wait())
        except Exception as error:  # of the device, which tells of it late
            self._fail(flight.entries, _as_score_error(error))
            return
        now = time.monotonic()
        # While an earlier forward ran, this one only waited for the device.
        seconds = now - max(flight.launched, self._last_landing)
        self._last_landing = now
        entries = flight.entries
        tokens = sum(entry.tokens for entry in entries)
        padded = sum(entry.rows for entry in entries) * max(entry.length for entry in entries)
        with self._changed:
            self._recorder.count_forward(
                entries, padded=padded, budget=self.settings.max_batch_tokens, seconds=seconds
            )
        for entry, part in zip(entries, values, strict=True):
            if isinstance(part, TideError):
                self._fail([entry], part)
            else:
                self._answer(entry, part, seconds * entry.tokens / tokens)

    def _answer(self, entry: Entry[_Part], part: Values | Tensor, seconds: float) -> None:
        """Put one sequence's values into its request, which may be whole then."""
        pending = entry.payload.pending
        pending.parts[entry.payload.number] = part
        pending.compute_seconds += seconds
        pending.unanswered -= 1
        if pending.unanswered or pending.future.done():
            return
        try:
            self._finish(pending)
        except Exception as error:  # too little memory to join what is held on the device
            self._fail([entry], _as_score_error(error))

    def _empty_values(self, request: ScoreRequest, *, is_held: bool) -> Values | Tensor:
        """The values of a sequence in which nothing is masked."""
        if is_held:
            return torch.empty(0, self.model.hidden_size, dtype=torch.bfloat16, device=self._device)
        return request.value_format(self.model.hidden_size).empty()

    def _join_values(self, pending: _Pending) -> Values | Tensor:
        """The values of several sequences, one after the other."""
        if not pending.is_held:
            return cast(Values, np.concatenate(cast(list[Values], pending.parts)))
        return self._streams.join(cast(list[Tensor], pending.parts))

    def _finish(self, pending: _Pending) -> None:
        values = self._join_values(pending)
        with self._changed:
            self._recorder.count_answer(pending.queue_seconds or 0.0)
        pending.future.set_result(
            ScoreResponse(
                values=values,
                fingerprint=self.fingerprint,
                tokenizer_fingerprint=self.tokenizer_fingerprint,
                queue_seconds=pending.queue_seconds or 0.0,
                compute_seconds=pending.compute_seconds,
            )
        )

    def _fail(self, entries: Sequence[Entry[_Part]], error: TideError) -> None:
        for pending in {id(entry.payload.pending): entry.payload.pending for entry in entries}.values():
            if not pending.future.done():
                pending.future.set_exception(error)
                with self._changed:
                    self._recorder.count_failure()


def _as_score_error(error: Exception) -> TideError:
    if isinstance(error, TideError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return ScoreError(
            "The teacher's device has too little memory for a single sequence: shorten data.teacher_length.",
            code="teacher_out_of_memory",
        )
    return ScoreError(f"The teacher's forward failed: {type(error).__name__}: {error}")
