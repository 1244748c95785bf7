"""The score cache: what a teacher answered once it need not compute again.

Masks come from counter streams, so the jobs of a study ask the very same questions. Answers are kept sequence
by sequence under a hash of everything that decides them: the teacher's fingerprint, the ids, the groups, the
layout with its block size, and what is wanted.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import structlog

from tide_core.contracts.errors import RetryableScoreError
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Values
from tide_core.contracts.teacher import TeacherDescription
from tide_core.scoring.transport import ScoreTransport

logger = structlog.get_logger(__name__)

_MAGIC = b"TIDESC01"
_HEADER = struct.Struct("<8sBII")
"""Magic, dtype number, rows, width (0 for one number a row). A checksum of it and the payload follows."""
_CHECKSUM_BYTES = 16
_DTYPES = tuple(map(np.dtype, (np.float32, np.uint16, np.uint8)))
_KEEP_AFTER_EVICTION = 0.9
"""Share of the bound that is left after an eviction, so that not every write evicts."""

READOUT_VERSION = 2
"""Raised when a teacher's answers change in digits that matter, so that older ones are not mixed in.

2: log-sum-exps in float64."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Counters of one cache object: sequences found and not found, files found broken, files evicted."""

    hits: int = 0
    misses: int = 0
    broken: int = 0
    evicted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that found something."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class ScoreCache:
    """Arrays by key in a folder of this machine. Any number of processes and threads may share the folder.

    A file appears whole or not at all, and is checked against its checksum when read. When the files together
    exceed the bound, those that were not used for the longest time go.

    Args:
        folder: made when it is not there.
        max_bytes: bound of the files together; passed for a moment when several processes write.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._statistics = CacheStatistics()
        folder.mkdir(parents=True, exist_ok=True)
        self._bytes = sum(size for _, size, _ in self._files())

    def statistics(self) -> CacheStatistics:
        """The counters now."""
        with self._lock:
            return self._statistics

    def get(self, key: str) -> Values | None:
        """The array of a key, or None. A broken file counts as not there, and is removed."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            self._count(misses=1)
            return None
        values = _decode(content)
        with suppress(OSError):
            if values is None:
                path.unlink()
            else:
                os.utime(path)  # used just now: the last to be evicted
        self._count(hits=values is not None, misses=values is None, broken=values is None)
        return values

    def put(self, key: str, values: Values) -> None:
        """Keep an array, if the disk lets it. One that is larger than the whole cache is not kept."""
        content = _encode(values)
        if len(content) > self._max_bytes:
            return
        try:
            self._write(self._path(key), content)
        except OSError as error:  # a full disk costs the cache its use, not a training its run
            logger.warning("score_cache.write_failed", error=str(error))
            return
        with self._lock:
            self._bytes += len(content)
            is_full = self._bytes > self._max_bytes
        if is_full:
            self._evict()

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _evict(self) -> None:
        """Look at what really lies there, other writers' files included, and remove the longest unused."""
        with self._lock:
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            evicted = 0
            for _, size, path in files:
                if total <= _KEEP_AFTER_EVICTION * self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
                evicted += 1
            self._bytes = total
            self._statistics = replace(self._statistics, evicted=self._statistics.evicted + evicted)

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, size and path of every file, half-written ones of dead processes too."""
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _count(self, *, hits: int = 0, misses: int = 0, broken: int = 0) -> None:
        with self._lock:
            now = self._statistics
            self._statistics = replace(
                now, hits=now.hits + hits, misses=now.misses + misses, broken=now.broken + broken
            )


@dataclass(slots=True, eq=False)
class _CutRequest:
    """A request, cut into what is known and what must be asked."""

    request: ScoreRequest
    keys: list[str]
    parts: list[Values | None]
    masked: list[int]
    future: Future[ScoreResponse] = field(default_factory=Future)

    @property
    def missing(self) -> list[int]:
        return [number for number, part in enumerate(self.parts) if part is None]


class CachingTransport:
    """A transport that asks the teacher only what the cache does not know.

    Args:
        inner: the way to the teacher; closed with this one.
        cache: where answers are kept.
    """

    def __init__(self, inner: ScoreTransport, cache: ScoreCache) -> None:
        self._inner = inner
        self._cache = cache
        self._lock = threading.Lock()
        self._description: TeacherDescription | None = None

    def describe(self) -> TeacherDescription:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`."""
        with self._lock:
            if self._description is None:
                self._description = self._inner.describe()
            return self._description

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`; ``cache_hits`` counts sequences found."""
        teacher = self.describe()
        if request.fingerprint not in (None, teacher.fingerprint):
            return self._inner.submit(request)  # which refuses it
        question = self._look_up(request, teacher)
        if not question.missing:
            question.future.set_result(_join_parts(question, teacher, None))
            return question.future
        inner = self._inner.submit(_subset(request, question.missing))
        question.future.add_done_callback(lambda outer: inner.cancel() if outer.cancelled() else None)
        inner.add_done_callback(lambda done: self._pass_on(question, teacher, done))
        return question.future

    def close(self) -> None:
        """See :class:`~tide_core.scoring.transport.ScoreTransport`."""
        self._inner.close()

    def _look_up(self, request: ScoreRequest, teacher: TeacherDescription) -> _CutRequest:
        masked = request.masked_counts.tolist()
        keys = sample_keys(request, teacher.fingerprint)
        nothing: Values = request.value_format(teacher.hidden_size).empty()
        parts = [self._cache.get(key) if rows else nothing for key, rows in zip(keys, masked, strict=True)]
        return _CutRequest(request, keys, parts, masked)

    def _pass_on(
        self, question: _CutRequest, teacher: TeacherDescription, inner: Future[ScoreResponse]
    ) -> None:
        """Keep and pass on what the teacher answered; runs in the inner transport's thread."""
        if not question.future.set_running_or_notify_cancel():
            return
        if inner.cancelled():
            question.future.set_exception(
                RetryableScoreError("The request was cancelled.", code="score_cancelled")
            )
            return
        error = inner.exception()
        if error is not None:
            question.future.set_exception(error)
            return
        question.future.set_result(self._keep(question, teacher, inner.result()))

    def _keep(
        self, question: _CutRequest, teacher: TeacherDescription, response: ScoreResponse
    ) -> ScoreResponse:
        missing = question.missing
        complete = _join_parts(question, teacher, response)
        for number in missing:
            part = question.parts[number]
            assert part is not None
            self._cache.put(question.keys[number], part)
        return complete


def sample_keys(request: ScoreRequest, fingerprint: str) -> list[str]:
    """A key for each sequence: 40 hexadecimal digits over everything that decides its answer."""
    # Bidirectional attention knows no blocks: their size does not decide anything.
    block_size = 0 if request.layout is Layout.BIDIRECTIONAL else request.block_size
    asked = f"{request.layout}\0{block_size}\0{request.want}\0{request.top_k}"
    head = f"{READOUT_VERSION}\0{fingerprint}\0{asked}\0".encode()
    keys = []
    for start, end in pairwise(request.offsets.tolist()):
        digest = hashlib.blake2b(head, digest_size=20)
        digest.update(np.ascontiguousarray(request.token_ids[start:end], dtype="<i4").tobytes())
        digest.update(b"\0")
        digest.update(np.ascontiguousarray(request.groups[start:end]).tobytes())
        keys.append(digest.hexdigest())
    return keys


def _subset(request: ScoreRequest, numbers: Sequence[int]) -> ScoreRequest:
    """The same request for some of its sequences."""
    if len(numbers) == request.batch:
        return request
    spans = [slice(int(request.offsets[n]), int(request.offsets[n + 1])) for n in numbers]
    lengths = [span.stop - span.start for span in spans]
    return replace(
        request,
        token_ids=np.concatenate([request.token_ids[span] for span in spans]),
        groups=np.concatenate([request.groups[span] for span in spans]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _join_parts(
    question: _CutRequest, teacher: TeacherDescription, response: ScoreResponse | None
) -> ScoreResponse:
    """Known and asked parts in the order of the request."""
    missing = question.missing
    if response is not None:
        ends = np.cumsum([question.masked[number] for number in missing])
        for number, end in zip(missing, ends.tolist(), strict=True):
            question.parts[number] = response.array[end - question.masked[number] : end]
    parts = [part for part in question.parts if part is not None]
    found = sum(1 for rows in question.masked if rows) - len(missing)
    values = _join_values(parts)
    if response is None:
        return ScoreResponse(values, teacher.fingerprint, teacher.tokenizer_fingerprint, cache_hits=found)
    return replace(response, values=values, cache_hits=response.cache_hits + found)


def _join_values(parts: Sequence[Values]) -> Values:
    return np.concatenate(parts)  # type: ignore[return-value]


def _encode(values: Values) -> bytes:
    payload = np.ascontiguousarray(values).tobytes()
    width = values.shape[1] if values.ndim == 2 else 0
    head = _HEADER.pack(_MAGIC, _DTYPES.index(values.dtype), values.shape[0], width)
    return head + _checksum(head, payload) + payload


def _decode(content: bytes) -> Values | None:
    """The array, or None when the file is not whole."""
    start = _HEADER.size + _CHECKSUM_BYTES
    head, checksum, payload = content[: _HEADER.size], content[_HEADER.size : start], content[start:]
    if len(content) < start or _checksum(head, payload) != checksum:
        return None
    magic, dtype, rows, width = _HEADER.unpack(head)
    if magic != _MAGIC:
        return None
    values = np.frombuffer(payload, _DTYPES[dtype])
    return values.reshape(rows, width) if width else values


def _checksum(head: bytes, payload: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=_CHECKSUM_BYTES)
    digest.update(payload)
    return digest.digest()
