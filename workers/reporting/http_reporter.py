"""The reporter that delivers: numbered reports in batches from a background thread, spooled in outages.

In: typed reports of a phase. Out: numbered batches to the control plane, each report stored exactly once, and
whether the phase should stop.

Locks: `_changed` guards the reports that wait and the flags, never during a request; `_spooling` guards the
spool file, which the trainer and the delivering thread may both write, and is taken first.
Invariant: a report leaves the queue only when it is stored, was refused alone, or the attempt is over. The
caller never waits for the network, except in `flush` and `close`, which have a deadline.
Failures: no answer: spool, pause, send again. A batch is refused: send its reports one by one, log the one at
fault and leave it out. The attempt is over: deliver nothing more and ask the phase to stop. The disk refuses
the spool: log it and keep the reports in memory. The process dies: the next reporter sends the spool.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from tide.transport.patience import Backoff
from tide_core.contracts.job_folder import spool_name
from tide_core.contracts.reporting import (
    AnyReport,
    AttemptBrief,
    Metrics,
    Report,
    ReportBatch,
    ReportReceipt,
)
from workers.reporting.control import (
    AttemptFencedError,
    ControlPlane,
    ControlUnreachableError,
    ReportRefusedError,
)

log = structlog.get_logger(__name__)

BATCH = 500
HEARTBEAT_SECONDS = 5.0


def spool_path(brief: AttemptBrief, attempt: int | None = None) -> Path:
    """File that keeps undelivered reports of a phase, of the brief's own attempt unless another is named."""
    name = spool_name(brief.job_id, attempt or brief.attempt, brief.phase)
    if "://" in brief.storage:
        return Path(tempfile.gettempdir()) / "tide-spool" / name
    return Path(brief.folder.spool) / name


class HttpReporter:
    """Delivers reports in order and exactly once (the control plane stores each number once).

    One reporter at a time may speak for an attempt's phase: numbers go on from the brief's `last_sequence`.
    While the control plane is down, reports wait in memory and in a spool file; a later reporter of the same
    attempt sends what an earlier one could not. The figures that a lost attempt left in its spool are sent by
    the next attempt as its own: it resumes after those steps and would never measure them again.
    """

    def __init__(self, control: ControlPlane, brief: AttemptBrief, *, interval: float = 0.5) -> None:
        self._control = control
        self._interval = interval
        self._spool = spool_path(brief)
        own = [report for report in _read_spool(self._spool) if report.sequence > brief.last_sequence]
        self._waiting: deque[Report] = deque(own)
        self._next = (self._waiting[-1].sequence if self._waiting else brief.last_sequence) + 1
        self._changed = threading.Condition()
        self._spooling = threading.Lock()
        self._stop_requested = False
        self._is_fenced = False
        self._closing = False
        self._is_urgent = False
        self._inherit(brief)
        self._thread = threading.Thread(target=self._deliver, name="tide-reports", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, body: AnyReport) -> None:
        """Queue one report; returns at once."""
        with self._changed:
            self._waiting.append(Report(sequence=self._next, time=datetime.now(UTC), body=body))
            self._next += 1

    def keep(self) -> None:
        """Write what is not delivered yet to the spool: before a checkpoint, so that a run that resumes after
        these steps still has their figures.
        """
        self._write_spool()

    @property
    def stop_requested(self) -> bool:
        """True once the control plane asks the job to stop, or refuses this attempt."""
        return self._stop_requested

    @property
    def is_fenced(self) -> bool:
        """True when another attempt took over or this one ended: nothing is delivered any more."""
        return self._is_fenced

    def flush(self, deadline_seconds: float) -> bool:
        """Wait until everything sent so far is stored; False when the deadline passed or we are fenced."""
        give_up = time.monotonic() + deadline_seconds
        with self._changed:
            target = self._next
            self._is_urgent = True
            self._changed.notify_all()
            while self._waiting and self._waiting[0].sequence < target and not self._is_fenced:
                remaining = give_up - time.monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(remaining)
            return not self._is_fenced

    def close(self, deadline_seconds: float = 30.0) -> bool:
        """Flush, end the thread, and leave what could not be delivered in the spool file."""
        is_delivered = self.flush(deadline_seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=15.0)
        if not is_delivered and not self._is_fenced:
            self._try_to_spool()
        self._control.close()
        return is_delivered

    def _deliver(self) -> None:
        pauses = Backoff()
        last_contact = time.monotonic()
        while True:
            with self._changed:
                if not self._closing and not self._is_urgent:
                    self._changed.wait(self._interval)
                if self._closing:
                    return
                self._is_urgent = False
                batch = tuple(self._waiting[index] for index in range(min(BATCH, len(self._waiting))))
            if not batch and time.monotonic() - last_contact < HEARTBEAT_SECONDS:
                continue
            try:
                receipt = self._control.post(ReportBatch(reports=batch))
                last_contact = time.monotonic()
                pauses.reset()
                self._acknowledge(receipt)
            except ControlUnreachableError as error:
                self._try_to_spool()
                pause = pauses.next()
                log.warning("reports.delayed", reason=error.message, waiting=len(self._waiting), pause=pause)
                with self._changed:
                    if not self._closing:
                        self._changed.wait(pause)
            except AttemptFencedError as error:
                self._fence(error)
                return
            except ReportRefusedError as error:
                self._drop_refused(batch, error)

    def _acknowledge(self, receipt: ReportReceipt) -> None:
        with self._changed:
            self._stop_requested = self._stop_requested or receipt.stop_requested
            while self._waiting and self._waiting[0].sequence <= receipt.acknowledged:
                self._waiting.popleft()
            self._is_urgent = self._is_urgent or len(self._waiting) >= BATCH
            self._changed.notify_all()
        with self._spooling:  # a report that the trainer keeps at this moment must not be removed
            with self._changed:
                is_empty = not self._waiting
            if is_empty:
                self._spool.unlink(missing_ok=True)

    def _fence(self, error: AttemptFencedError) -> None:
        log.warning("reports.fenced", reason=error.message)
        with self._changed:
            self._is_fenced = self._stop_requested = True
            self._waiting.clear()
            self._changed.notify_all()

    def _drop_refused(self, batch: tuple[Report, ...], error: ReportRefusedError) -> None:
        """A refusal of many is narrowed down to the one at fault, which is logged and left out."""
        for report in batch:
            try:
                self._acknowledge(self._control.post(ReportBatch(reports=(report,))))
            except ReportRefusedError:
                log.error("reports.refused", report=report.model_dump(mode="json"), reason=error.message)
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
            except (ControlUnreachableError, AttemptFencedError):
                return  # the main loop meets it again and knows what to do

    def _try_to_spool(self) -> None:
        """Spool; a full disk is logged, since the reports in memory can still be delivered."""
        try:
            self._write_spool()
        except OSError as error:
            log.error("reports.not_spooled", reason=str(error), waiting=len(self._waiting))

    def _write_spool(self) -> None:
        with self._spooling:  # the trainer and the delivering thread may both write
            with self._changed:
                lines = [report.model_dump_json() for report in self._waiting]
            if not lines:
                return
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            draft = self._spool.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text("\n".join(lines) + "\n")
            draft.replace(self._spool)

    def _inherit(self, brief: AttemptBrief) -> None:
        """Queue the figures that earlier attempts could not deliver, in their order.

        They are in this attempt's spool before they leave the old one, so nothing is lost on the way.
        """
        old = [spool_path(brief, attempt) for attempt in range(1, brief.attempt)]
        for report in (report for path in old for report in _read_spool(path)):
            if isinstance(report.body, Metrics):
                self.send(report.body)
        self._write_spool()
        for path in old:
            path.unlink(missing_ok=True)


def _read_spool(path: Path) -> list[Report]:
    if not path.exists():
        return []
    return [Report.model_validate_json(line) for line in path.read_text().splitlines()]
