"""What a teacher replica exports: every event counted once, gauges that follow, series that end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tide_core.contracts.errors import RetryableScoreError
from tide_core.contracts.metrics import TEACHER_METRICS
from tide_core.contracts.scores import ScoreRequest
from tide_core.models.decoder import Decoder
from tide_core.queueing.fair_queue import FairQueue
from workers.reporting.ray_metrics import MemorySink
from workers.teachers.attestation import PROBE_JOB
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.metering import WINDOW_SECONDS, MeteredRecorder, TeacherMeter, memory_in_use

POOL = ("teacher-1", "a/model")


class Bench:
    """A metered engine whose meter's clock is turned by hand."""

    def __init__(self, model: Decoder) -> None:
        self.now = 0.0
        self.sink = MemorySink()
        self.meter = TeacherMeter(self.sink, application=POOL[0], model=POOL[1], clock=lambda: self.now)
        self.engine = TeacherEngine(
            model,
            fingerprint="f",
            tokenizer_fingerprint="t",
            settings=EngineSettings(max_batch_tokens=64, max_queued_tokens=128),
            recorder=MeteredRecorder(self.meter),
        )

    def publish_at(self, now: float) -> dict[str, float]:
        """Set the gauges anew at a time, and give the jobs' rates."""
        self.now = now
        self.sink.values.clear()
        self.meter.publish(self.engine.statistics())
        return {key[3]: value for key, value in self.sink.values.items() if key[0] == _JOB_TOKENS}


_JOB_TOKENS = TEACHER_METRICS.job_tokens.name


@pytest.fixture
def bench(dense_teacher: Decoder) -> Iterator[Bench]:
    made = Bench(dense_teacher)
    yield made
    made.engine.close()


RequestMaker = Callable[..., ScoreRequest]


def test_every_event_is_counted_once(bench: Bench, make_request: RequestMaker) -> None:
    for seed in range(3):
        bench.engine.submit(make_request([20, 10], seed=seed, job_id="a")).result(20)
    statistics, totals = bench.engine.statistics(), bench.sink.totals
    assert totals[TEACHER_METRICS.requests.name, *POOL, "answered"] == statistics.requests == 3
    content = totals[TEACHER_METRICS.tokens.name, *POOL, "content"]
    padding = totals[TEACHER_METRICS.tokens.name, *POOL, "padding"]
    assert (content, content + padding) == (statistics.tokens, statistics.padded_tokens)
    assert padding >= 0
    assert totals[TEACHER_METRICS.compute.name, *POOL] == pytest.approx(statistics.busy_seconds)
    delays = bench.sink.observed[TEACHER_METRICS.queue_delay.name, *POOL]
    assert len(delays) == 3
    assert sum(delays) == pytest.approx(statistics.queue_seconds)
    occupancies = bench.sink.observed[TEACHER_METRICS.batch_occupancy.name, *POOL]
    assert len(occupancies) == statistics.forwards
    assert sum(occupancies) * 64 == pytest.approx(statistics.padded_tokens)


def test_refusals_and_failures_have_outcomes_of_their_own(
    bench: Bench, make_request: RequestMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("workers.teachers.engine.score_samples", broken)
    assert bench.engine.submit(make_request([20], job_id="a")).exception(20) is not None

    def refuse(*_: object, **__: object) -> None:
        raise RetryableScoreError("The queue is full.")

    monkeypatch.setattr(FairQueue, "push", refuse)
    with pytest.raises(RetryableScoreError):
        bench.engine.submit(make_request([20], job_id="a"))
    totals = bench.sink.totals
    assert totals[TEACHER_METRICS.requests.name, *POOL, "failed"] == 1
    assert totals[TEACHER_METRICS.requests.name, *POOL, "refused"] == 1
    assert totals[TEACHER_METRICS.requests.name, *POOL, "answered"] == 0


def test_a_jobs_series_follows_its_last_minute_and_ends_with_it(
    bench: Bench, make_request: RequestMaker
) -> None:
    assert bench.publish_at(0.0) == {}
    for job_id in ("a", "a", "b", PROBE_JOB):
        bench.engine.submit(make_request([20], job_id=job_id)).result(20)
    rates = bench.publish_at(10.0)
    assert rates == {"a": 4.0, "b": 2.0}, (
        "two and one requests of 20 tokens in ten seconds; probes are no job"
    )
    bench.engine.submit(make_request([20], job_id="b")).result(20)
    bench.publish_at(40.0)
    rates = bench.publish_at(10.0 + WINDOW_SECONDS)
    assert rates == {"b": pytest.approx(20 / WINDOW_SECONDS)}, "a asked nothing within the window"
    assert bench.publish_at(41.0 + WINDOW_SECONDS) == {}


def test_attestations_are_counted_and_their_result_stays_known(bench: Bench) -> None:
    bench.meter.count_attestation(True)
    assert bench.publish_at(1.0) == {}
    assert bench.sink.values[TEACHER_METRICS.is_sound.name, *POOL] == 1
    bench.meter.count_attestation(False)
    bench.publish_at(2.0)
    assert bench.sink.values[TEACHER_METRICS.is_sound.name, *POOL] == 0
    assert bench.sink.totals[TEACHER_METRICS.attestations.name, *POOL, "passed"] == 1
    assert bench.sink.totals[TEACHER_METRICS.attestations.name, *POOL, "failed"] == 1


def test_memory_is_that_of_this_process() -> None:
    resident = memory_in_use()["resident"]
    assert 50 << 20 < resident < 64 << 30


def test_on_a_gpu_its_memory_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU needed: torch is made to answer as one with memory in use would."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda: 3)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 5)
    sizes = memory_in_use()
    assert (sizes["gpu_allocated"], sizes["gpu_reserved"]) == (3, 5)
    assert set(sizes) == {"resident", "gpu_allocated", "gpu_reserved"}
