"""The score cache: same answers, asked once, whatever the disk and other writers do."""

import subprocess
import sys
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.score_answers import TOP_K, numbers, top_k_for
from tide_core.contracts.errors import FingerprintMismatchError, ScoreError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.contracts.teacher import TeacherDescription
from tide_core.scoring.transport import ScoreTransport
from workers.scores.cache import CachingTransport, ScoreCache, sample_keys
from workers.scores.local_transport import LocalTransport
from workers.teachers.loading import LoadedTeacher


def request_of(seeds: list[int], want: Want = Want.TARGET_LOG_PROB, **more: object) -> ScoreRequest:
    """One sequence a seed."""
    ids, groups = [], []
    for seed in seeds:
        draws = np.random.default_rng(seed)
        length = 6 + seed % 5
        ids.append(draws.integers(0, 256, length))
        groups.append(draws.integers(0, 3, length))
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])]).astype(np.int64)
    request = ScoreRequest(
        np.concatenate(ids).astype(np.int32),
        offsets,
        np.concatenate(groups).astype(np.uint8),
        Layout.BLOCK_STAIRCASE,
        want,
        block_size=4,
        top_k=top_k_for(want),
    )
    return replace(request, **more)  # type: ignore[arg-type]


class Counting:
    """Notes how many sequences reach the teacher."""

    def __init__(self, inner: ScoreTransport) -> None:
        self.inner = inner
        self.sequences: list[int] = []

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        self.sequences.append(request.batch)
        return self.inner.submit(request)

    def describe(self) -> TeacherDescription:
        return self.inner.describe()

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def local(loaded: dict[str, LoadedTeacher]) -> Counting:
    teacher = loaded["wedlm"]
    return Counting(LocalTransport(teacher.engine, teacher.description))


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores", 10**6)


@pytest.mark.parametrize("want", list(Want))
def test_a_second_job_costs_the_teacher_nothing(local: Counting, cache: ScoreCache, want: Want) -> None:
    transport = CachingTransport(local, cache)
    request = request_of([1, 2, 3], want)
    first = transport.submit(request).result(10)
    again = transport.submit(replace(request, job_id="another", weight=3.0)).result(10)
    np.testing.assert_array_equal(first.values, again.values)
    assert first.values.dtype == again.values.dtype
    assert (first.cache_hits, again.cache_hits) == (0, 3)
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert local.sequences == [3]
    assert cache.statistics().hit_rate == 0.5


@pytest.mark.parametrize("want", list(Want))
def test_a_request_is_split_into_known_and_unknown(local: Counting, cache: ScoreCache, want: Want) -> None:
    transport = CachingTransport(local, cache)
    transport.submit(request_of([2, 5], want)).result(10)
    mixed = request_of([1, 2, 3, 5, 4], want)
    response = transport.submit(mixed).result(10)
    expected = local.inner.submit(mixed).result(10)
    found, wanted = numbers(response.values, mixed), numbers(expected.values, mixed)
    np.testing.assert_allclose(found, wanted, rtol=2**-7, atol=1e-5)
    assert response.cache_hits == 2
    assert local.sequences == [2, 3]


def test_sequences_without_a_mask_are_neither_asked_nor_kept(local: Counting, cache: ScoreCache) -> None:
    request = request_of([1, 2], Want.HIDDEN)
    nothing = replace(request, groups=np.zeros_like(request.groups))
    response = CachingTransport(local, cache).submit(nothing).result(10)
    assert response.values.shape == (0, 32)
    assert local.sequences == []
    assert cache.statistics().misses == 0


def test_keys_tell_apart_what_decides_an_answer_and_nothing_else() -> None:
    request = request_of([1])
    (key,) = sample_keys(request, "weights")
    ids = request.token_ids.copy()
    ids[0] += 1
    groups = request.groups.copy()
    groups[0] = (groups[0] + 1) % 3
    others = [
        replace(request, token_ids=ids),
        replace(request, groups=groups),
        replace(request, layout=Layout.BLOCK_CAUSAL),
        replace(request, block_size=5),
        replace(request, want=Want.HIDDEN),
        replace(request, want=Want.TOP_K, top_k=TOP_K),
        replace(request, want=Want.TOP_K, top_k=replace(TOP_K, k=6)),
    ]
    keys = {sample_keys(other, "weights")[0] for other in others} | {sample_keys(request, "other")[0]}
    assert len(keys | {key}) == 9
    assert sample_keys(replace(request, job_id="x", weight=2.0), "weights") == [key]
    assert sample_keys(request_of([9, 1]), "weights")[1] == key
    flat = replace(request, layout=Layout.BIDIRECTIONAL)
    assert sample_keys(flat, "weights") == sample_keys(replace(flat, block_size=9), "weights")


def test_other_weights_are_never_answered_from_the_cache(local: Counting, cache: ScoreCache) -> None:
    transport = CachingTransport(local, cache)
    transport.submit(request_of([1])).result(10)
    with pytest.raises(FingerprintMismatchError):
        transport.submit(request_of([1], fingerprint="other")).result(10)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_broken_file_is_a_miss_and_is_replaced(
    cache: ScoreCache, tmp_path: Path, damage: bytes | None
) -> None:
    values = np.arange(6, dtype=np.float32)
    cache.put("ab12", values)
    (path,) = (tmp_path / "scores" / "ab").iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content) if damage is None else damage)
    assert cache.get("ab12") is None
    assert not path.exists()
    assert cache.statistics().broken == 1
    cache.put("ab12", values)
    np.testing.assert_array_equal(cache.get("ab12"), values)


def test_every_byte_of_a_file_is_checked(cache: ScoreCache, tmp_path: Path) -> None:
    cache.put("ab12", np.arange(4, dtype=np.uint16).reshape(2, 2))
    (path,) = (tmp_path / "scores" / "ab").iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0x40
        path.write_bytes(bytes(broken))
        assert cache.get("ab12") is None, f"byte {place}"
    path.write_bytes(whole)
    assert cache.get("ab12") is not None


def test_the_bound_holds_and_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores", 10_000)
    values = np.zeros(200, np.float32)
    for number in range(40):
        cache.put(f"{number:04x}", values)
        assert cache.get("0000") is not None, "just used"
        total = sum(path.stat().st_size for path in (tmp_path / "scores").glob("*/*"))
        assert total <= 10_000
    assert cache.get("0001") is None
    assert cache.get("0027") is not None
    assert cache.statistics().evicted > 20
    cache.put("ffff", np.zeros(10_000, np.float32))
    assert cache.get("ffff") is None


def test_the_cache_is_found_again(cache: ScoreCache, tmp_path: Path) -> None:
    cache.put("ab12", np.ones(3, np.float32))
    again = ScoreCache(tmp_path / "scores", 10**6)
    np.testing.assert_array_equal(again.get("ab12"), np.ones(3, np.float32))


def test_a_disk_that_refuses_costs_nothing_but_the_cache(
    local: Counting, cache: ScoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("workers.scores.cache.os.replace", full)
    transport = CachingTransport(local, cache)
    assert transport.submit(request_of([1])).result(10).cache_hits == 0
    assert transport.submit(request_of([1])).result(10).cache_hits == 0


HAMMER = """
import sys
from pathlib import Path
import numpy as np
from workers.scores.cache import ScoreCache

def hammer(folder, seed):
    cache = ScoreCache(Path(folder), 20_000)
    draws = np.random.default_rng(seed)
    for _ in range(300):
        number = int(draws.integers(0, 64))
        found = cache.get(f"{number:04x}")
        if found is None:
            cache.put(f"{number:04x}", np.full(100, number, np.float32))
        else:
            assert found.shape == (100,)
            assert (found == number).all()
    assert cache.statistics().broken == 0
"""


def test_several_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    command = [sys.executable, "-c", f"{HAMMER}\nhammer(sys.argv[1], int(sys.argv[2]))", str(folder)]
    processes = [subprocess.Popen([*command, str(seed)]) for seed in range(2)]
    scope: dict[str, Any] = {}
    exec(HAMMER, scope)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(scope["hammer"], [folder, folder], [10, 11]))
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sum(path.stat().st_size for path in folder.glob("*/*")) <= 2 * 20_000


class ByHand:
    """An inner transport whose one future the test fills."""

    def __init__(self, description: TeacherDescription) -> None:
        self.description = description
        self.future: Future[ScoreResponse] = Future()

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        return self.future

    def describe(self) -> TeacherDescription:
        return self.description

    def close(self) -> None:
        self.future.cancel()


def test_errors_and_cancelling_pass_through(cache: ScoreCache, loaded: dict[str, LoadedTeacher]) -> None:
    inner = ByHand(loaded["wedlm"].description)
    failing = CachingTransport(inner, cache).submit(request_of([1]))
    inner.future.set_exception(ScoreError("gone"))
    with pytest.raises(ScoreError, match="gone"):
        failing.result(1)

    inner = ByHand(loaded["wedlm"].description)
    dropped = CachingTransport(inner, cache).submit(request_of([1]))
    assert dropped.cancel()
    assert inner.future.cancelled()
    with pytest.raises(CancelledError):
        dropped.result(1)

    inner = ByHand(loaded["wedlm"].description)
    transport = CachingTransport(inner, cache)
    left = transport.submit(request_of([1]))
    transport.close()
    with pytest.raises(ScoreError):
        left.result(1)
