"""Variables that every process on the cluster gets from us."""

from __future__ import annotations

from tide_core.tracing import ENV_TRACEPARENT, ENV_TRACING_ENDPOINT, current_traceparent

_ALLOCATOR = {
    # glibc gives large blocks back to the system and faults them in again at every step: on a CPU that
    # costs a quarter of the time. Keep them.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def compute_environment(threads: int) -> dict[str, str]:
    """Threads of the numeric libraries, and an allocator that keeps its memory."""
    return {"OMP_NUM_THREADS": str(max(1, threads))} | _ALLOCATOR


def tracing_environment(endpoint: str | None) -> dict[str, str]:
    """Where a Ray job sends its spans, and the span that it belongs to; empty without tracing."""
    traceparent = current_traceparent()
    if endpoint is None or traceparent is None:
        return {}
    return {ENV_TRACING_ENDPOINT: endpoint, ENV_TRACEPARENT: traceparent}
