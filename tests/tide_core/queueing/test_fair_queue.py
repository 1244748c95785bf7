"""Fair shares, bounds and batches of the queue."""

from collections import Counter

import pytest

from tide_core.contracts.errors import RetryableScoreError
from tide_core.queueing.fair_queue import Entry, FairQueue, length_bucket


def entry(job: str, length: int = 16, *, weight: float = 1.0, kind: str = "k", rows: int = 1) -> Entry[int]:
    return Entry(job_id=job, weight=weight, kind=kind, rows=rows, length=length, payload=0)


def served(queue: FairQueue[int], tokens: int, batch: int) -> Counter[str]:
    """Tokens each job got until so many were given out."""
    shares: Counter[str] = Counter()
    while sum(shares.values()) < tokens:
        for each in queue.take(batch):
            shares[each.job_id] += each.tokens
    return shares


@pytest.mark.parametrize("batch", [16, 64, 256])
def test_eight_jobs_keep_their_shares(batch: int) -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    weights = {f"job-{number}": float(1 + number % 4) for number in range(8)}
    for job, weight in weights.items():
        queue.push([entry(job, 16 + 8 * (index % 3), weight=weight) for index in range(2000)])
    shares = served(queue, 100_000, batch)
    total, total_weight = sum(shares.values()), sum(weights.values())
    for job, weight in weights.items():
        assert shares[job] / total == pytest.approx(weight / total_weight, rel=0.1)


def test_jobs_with_other_lengths_and_kinds_keep_their_shares() -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    queue.push([entry("long", 512, kind="staircase") for _ in range(500)])
    queue.push([entry("short", 16, rows=2) for _ in range(10_000)])
    shares = served(queue, 100_000, 1024)
    assert shares["long"] / shares["short"] == pytest.approx(1.0, rel=0.1)


def test_a_newcomer_neither_waits_for_history_nor_catches_up_on_it() -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    queue.push([entry("old") for _ in range(4000)])
    served(queue, 16 * 1000, 64)
    queue.push([entry("new") for _ in range(4000)])
    shares = served(queue, 16 * 1000, 64)
    assert shares["new"] / shares["old"] == pytest.approx(1.0, rel=0.1)


def test_a_job_that_pauses_does_not_shed_its_debt() -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    queue.push([entry("steady") for _ in range(1000)])
    shares: Counter[str] = Counter()
    for _ in range(50):  # "greedy" leaves the queue after every batch and comes back
        queue.push([entry("greedy", 16, rows=4)])
        for each in queue.take(96):
            shares[each.job_id] += each.tokens
    assert shares["greedy"] <= 1.15 * shares["steady"]


def test_a_batch_has_one_kind_and_like_lengths_within_the_budget() -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    for length in (20, 100, 22, 24, 120, 17):
        queue.push([entry("a", length), entry("b", length, kind="other")])
    batches = []
    while queue.tokens:
        batches.append(queue.take(72))
    assert sum(len(batch) for batch in batches) == 12
    for batch in batches:
        assert len({(each.kind, length_bucket(each.length)) for each in batch}) == 1
        padded = sum(each.rows for each in batch) * max(each.length for each in batch)
        assert padded <= 72 or len(batch) == 1


def test_the_oldest_of_a_job_is_never_starved_by_a_popular_length() -> None:
    queue: FairQueue[int] = FairQueue(10**9)
    queue.push([entry("a", 16)])
    queue.push([entry("a", 500)])
    seen = []
    for _ in range(3):
        queue.push([entry("a", 16) for _ in range(8)])
        seen += [each.length for each in queue.take(64)]
    assert 500 in seen


def test_the_bound_refuses_whole_requests_and_leaves_room_for_other_jobs() -> None:
    queue: FairQueue[int] = FairQueue(160)
    queue.push([entry("a") for _ in range(8)])
    with pytest.raises(RetryableScoreError):
        queue.push([entry("a") for _ in range(3)])
    assert queue.tokens == 128
    queue.push([entry("b") for _ in range(5)])  # half of the bound is its own
    with pytest.raises(RetryableScoreError):
        queue.push([entry("b")])
    assert queue.jobs == 2


def test_a_request_above_the_bound_is_taken_once() -> None:
    queue: FairQueue[int] = FairQueue(32)
    queue.push([entry("a", 100)])
    with pytest.raises(RetryableScoreError):
        queue.push([entry("a", 100)])
    assert [each.length for each in queue.take(10)] == [100]


def test_draining_empties() -> None:
    queue: FairQueue[int] = FairQueue(100)
    queue.push([entry("a"), entry("a", kind="x")])
    assert len(queue.drain()) == 2
    assert (queue.tokens, queue.jobs, queue.take(10)) == (0, 0, [])
    queue.push([])


def test_finished_jobs_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue(10**6)
    for number in range(100):
        queue.push([entry(f"job-{number}")])
        queue.take(64)
    assert len(queue._jobs) <= 1


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 16), (16, 16), (17, 24), (24, 24), (25, 32), (40, 48), (769, 1024)]
)
def test_buckets_waste_less_than_a_third(length: int, bucket: int) -> None:
    assert length_bucket(length) == bucket
