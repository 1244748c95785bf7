"""Variables that every process on the cluster gets from us."""

from __future__ import annotations

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
