"""Devices that a plan may name. Peaks are the makers' data sheets' dense figures.

``float32_flops`` is what torch's default gives (no TF32). ``link_bandwidth`` is one network card of the usual
eight-GPU server per GPU: 400 Gbit/s beside H100 and H200, 200 Gbit/s beside A100. ``matrix_efficiency`` was
not measured on these devices: it is the aim that large products of a decoder reach half of the peak.
"""

from __future__ import annotations

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.plan import Cluster, DeviceGroup, DeviceKind

_GIB = 2**30
KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        DeviceKind(
            name="h100-80g",
            memory_bytes=80 * 10**9,
            float32_flops=67e12,
            bfloat16_flops=989e12,
            memory_bandwidth=3.35e12,
            link_bandwidth=50e9,
        ),
        DeviceKind(
            name="h200-141g",
            memory_bytes=141 * 10**9,
            float32_flops=67e12,
            bfloat16_flops=989e12,
            memory_bandwidth=4.8e12,
            link_bandwidth=50e9,
        ),
        DeviceKind(
            name="a100-80g",
            memory_bytes=80 * _GIB,
            float32_flops=19.5e12,
            bfloat16_flops=312e12,
            memory_bandwidth=2.039e12,
            link_bandwidth=25e9,
        ),
        DeviceKind(
            name="a100-40g",
            memory_bytes=40 * _GIB,
            float32_flops=19.5e12,
            bfloat16_flops=312e12,
            memory_bandwidth=1.555e12,
            link_bandwidth=25e9,
        ),
    )
}


def kind_of(group: DeviceGroup, param: str) -> DeviceKind:
    """The kind of a group.

    Raises:
        InvalidInputError: ``unknown_device_kind``.
    """
    if isinstance(group.kind, DeviceKind):
        return group.kind
    if group.kind not in KINDS:
        raise InvalidInputError(
            f"The planner does not know the device kind {group.kind!r}; it knows {', '.join(KINDS)}. "
            "Describe another kind by its fields (memory_bytes, bfloat16_flops ...); `tide measure` writes "
            "them for this machine.",
            code="unknown_device_kind",
            param=param,
        )
    return KINDS[group.kind]


def groups_of(cluster: Cluster) -> list[tuple[DeviceKind, int]]:
    """The cluster's kinds with their counts; groups of an equal kind become one."""
    counts: dict[DeviceKind, int] = {}
    for number, group in enumerate(cluster.devices):
        kind = kind_of(group, f"cluster.devices.{number}.kind")
        counts[kind] = counts.get(kind, 0) + group.count
    return list(counts.items())
