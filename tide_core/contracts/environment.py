"""Environment of every process that computes: its threads, an allocator that keeps its memory, its caches.

In: a number of threads. Out: variables. The control plane gives them to Ray jobs and to replicas of pools,
workers to the processes that they start, and benchmarks to what they time. They are part of a running pool's
application: other values restart its replicas.
"""

from __future__ import annotations

ALLOCATOR_ENVIRONMENT = {
    # glibc gives large blocks back to the system and faults them in again at every step: on a CPU that
    # costs a quarter of the time. Keep them.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

ENV_CACHE = "TIDE_CACHE"
"""Names the folder of a node's local copies and cached scores."""
ENV_SCORE_CACHE_BYTES = "TIDE_SCORE_CACHE_BYTES"
"""Bound of the score cache on a node's disk; 0 turns it off."""


def compute_environment(threads: int) -> dict[str, str]:
    """Threads of the numeric libraries, and the allocator's settings."""
    return {"OMP_NUM_THREADS": str(max(1, threads))} | ALLOCATOR_ENVIRONMENT
