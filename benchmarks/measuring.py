"""Clock, memory and machine: what every benchmark measures with.

**Time** is a median of several runs behind warm-up runs. What is compared runs in turns, so that a burst of
other work on the machine falls on both sides.

**Memory of a step** on a CPU is taken in a process of its own: once everything that lives as long as the
training (weights, gradients, optimiser states) is there, what was freed goes back to the system, the kernel's
high-water mark is set back (``/proc/self/clear_refs``), and the steps run. The figure is the highest resident
set during them less the resident set before them. On CUDA it is the allocator's own peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tide_core.contracts.environment import compute_environment

ROOT = Path(__file__).resolve().parents[1]
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc settings under which freed tensors leave the resident set at once: it then follows live memory."""


def synchronise() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], *, repeats: int, warmup: int = 1) -> float:
    """Median over ``repeats`` calls behind ``warmup`` calls that do not count."""
    return alternate({"": call}, repeats=repeats, warmup=warmup)[""]


def alternate(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, round after round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            spent = seconds(call)
            if turn >= warmup:
                taken[name].append(spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def matmul_flops(
    *, size: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu", repeats: int = 9
) -> float:
    """This machine's matrix-product peak as measured: FLOP/s of a large square product, the best run."""
    size = size or (2048 if device == "cpu" else 8192)
    generator = torch.Generator(device=device).manual_seed(0)
    left = torch.randn(size, size, generator=generator, device=device).to(dtype)
    right = torch.randn(size, size, generator=generator, device=device).to(dtype)
    torch.mm(left, right)
    best = min(seconds(lambda: torch.mm(left, right)) for _ in range(repeats))
    return 2.0 * size**3 / best


class PeakMemory:
    """Highest memory inside the block above the memory at its start, in bytes."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self.bytes = 0
        self._before = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._device == "cpu":
            give_back_freed_memory()
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")
        else:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device == "cpu":
            peak = _status_bytes("VmHWM")
        else:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        self.bytes = max(0, peak - self._before)


def give_back_freed_memory() -> None:
    """Return freed heap pages to the system (glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def in_a_fresh_process(module: str, arguments: Sequence[str], *, memory: bool = False) -> Any:
    """Run ``python -m module arguments`` and read the JSON that it prints last.

    Args:
        module: of this package.
        arguments: of the command line.
        memory: with glibc settings for exact memory, instead of those that trainers and teachers run with.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    environment = dict(os.environ)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if memory:
        environment |= EXACT_MEMORY
    else:
        environment |= compute_environment(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and when: goes into every result."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
