"""What this machine's device can do, measured: the figures of a `DeviceKind`, for `tide plan --cluster`.

Kernels alone are timed, never a training step: a plan made with these figures predicts steps, and
`benchmarks/plan_check.py` holds that prediction against real ones.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from tide_core.contracts.plan import DeviceKind
from tide_core.planning.traffic import RUNNING

Clock = Callable[[], float]


@dataclass(frozen=True)
class _Stopwatch:
    """Times calls on a device."""

    device: torch.device
    clock: Clock

    def seconds(self, run: Callable[[], object], repeats: int = 7) -> float:
        """Median time of a call after a warm-up."""
        run()
        times = []
        for _ in range(repeats):
            self._synchronise()
            start = self.clock()
            run()
            self._synchronise()
            times.append(self.clock() - start)
        return statistics.median(times)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class _KernelSizes:
    """Of the kernels timed: large enough to keep the device busy, small enough to end soon.

    Attributes:
        matrix: rows and columns of the square product that gives the peak.
        copied: numbers of the copy that gives the bandwidth, beyond any cache.
        tokens, hidden: of the decoder-like products and element-wise kernels.
    """

    matrix: int
    copied: int
    tokens: int
    hidden: int


_CPU_SIZES = _KernelSizes(matrix=1024, copied=2**25, tokens=2048, hidden=256)
_GPU_SIZES = _KernelSizes(matrix=8192, copied=2**30, tokens=16384, hidden=2048)
_LINK_BYTES = 2**26
_TILE = (512, 512)
"""Rows and ids of a CPU's tile: as a teacher's readout, and as many as one of the losses'."""


def measure_device(
    device: torch.device, *, threads: int | None = None, clock: Clock = time.perf_counter
) -> DeviceKind:
    """Time this process's device.

    Args:
        device: ``cpu`` or a CUDA device.
        threads: intra-op threads on a CPU, as the processes to be planned will have; None leaves torch's own.
            The process's own number is restored.
        clock: seconds that go by; ``time.thread_time`` on one thread leaves out what other processes took.

    Returns:
        A kind named after the device. On a CPU its memory is the machine's, shared by all processes.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return _measure_kind(_Stopwatch(device, clock))
    finally:
        torch.set_num_threads(before)


def _measure_kind(watch: _Stopwatch) -> DeviceKind:
    device = watch.device
    is_gpu = device.type == "cuda"
    sizes = _GPU_SIZES if is_gpu else _CPU_SIZES
    peaks = {dtype: _matrix_peak(watch, dtype, sizes.matrix) for dtype in (torch.float32, torch.bfloat16)}
    usual = torch.bfloat16 if is_gpu else torch.float32
    bandwidth = _copy_bandwidth(watch, sizes.copied)
    name = torch.cuda.get_device_name(device) if is_gpu else f"cpu, {torch.get_num_threads()} threads"
    return DeviceKind(
        name=name[:64],
        memory_bytes=_memory_bytes(device),
        float32_flops=peaks[torch.float32],
        bfloat16_flops=peaks[torch.bfloat16],
        memory_bandwidth=bandwidth,
        link_bandwidth=_loopback_bandwidth(),
        matrix_efficiency=min(1.0, _decoder_flops(watch, usual, sizes) / peaks[usual]),
        bandwidth_efficiency=min(1.0, _gate_bandwidth(watch, usual, sizes) / bandwidth),
        tile_bandwidth=None if is_gpu else _tile_bandwidth(watch),
        dispatch_seconds=_dispatch_seconds(watch),
        is_accelerator=is_gpu,
    )


def _matrix_peak(watch: _Stopwatch, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.ones(size, size, dtype=dtype, device=watch.device) for _ in range(2))
    return 2.0 * size**3 / watch.seconds(lambda: left @ right)


def _copy_bandwidth(watch: _Stopwatch, numbers: int) -> float:
    source = torch.zeros(numbers, dtype=torch.float32, device=watch.device)
    target = torch.empty_like(source)
    return 2.0 * 4 * numbers / watch.seconds(lambda: target.copy_(source))


def _decoder_flops(watch: _Stopwatch, dtype: torch.dtype, sizes: _KernelSizes) -> float:
    """Speed of the products of a gated feed-forward: up to four times the width, and down."""
    tokens, hidden, inner = sizes.tokens, sizes.hidden, 4 * sizes.hidden
    states = torch.ones(tokens, hidden, dtype=dtype, device=watch.device)
    up, down = (
        torch.ones(rows, columns, dtype=dtype, device=watch.device)
        for rows, columns in ((2 * inner, hidden), (hidden, inner))
    )

    def products() -> None:
        wide = functional.linear(states, up)
        functional.linear(wide[:, :inner], down)

    return 2.0 * tokens * hidden * 3 * inner / watch.seconds(products)


def _gate_bandwidth(watch: _Stopwatch, dtype: torch.dtype, sizes: _KernelSizes) -> float:
    """Bytes a second through the gate's element-wise kernels: five numbers for each of its width."""
    inner = 4 * sizes.hidden
    gate, up = (torch.ones(sizes.tokens, inner, dtype=dtype, device=watch.device) for _ in range(2))
    moved = 5.0 * sizes.tokens * inner * gate.element_size()
    return moved / watch.seconds(lambda: functional.silu(gate) * up)


def _tile_bandwidth(watch: _Stopwatch) -> float:
    """Bytes a second through a tile of logits: peak, exponentials and sum, counted as a plan counts."""
    logits = torch.zeros(_TILE)

    def run() -> None:
        weights = (logits - logits.amax(dim=1)[:, None]).exp_()
        weights.sum(dim=1, dtype=torch.float64)

    return 4.0 * RUNNING * logits.numel() / watch.seconds(run, repeats=51)


def _dispatch_seconds(watch: _Stopwatch) -> float:
    """Time to start a kernel that has nothing to do."""
    tiny = torch.zeros(8, device=watch.device)
    calls = 500

    def run() -> None:
        for _ in range(calls):
            tiny.add(tiny)

    return watch.seconds(run) / calls


def _loopback_bandwidth() -> float:
    """Bytes a second from one thread to another through a local socket."""
    near, far = socket.socketpair()
    payload = memoryview(bytearray(_LINK_BYTES))

    def run() -> None:
        sender = threading.Thread(target=near.sendall, args=(payload,))
        sender.start()
        left = _LINK_BYTES
        while left:
            left -= far.recv_into(buffer, min(left, len(buffer)))
        sender.join()

    buffer = bytearray(2**20)
    with near, far:
        return _LINK_BYTES / _Stopwatch(torch.device("cpu"), time.perf_counter).seconds(run, repeats=3)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
