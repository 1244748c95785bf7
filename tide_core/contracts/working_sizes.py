"""How much the teacher's engine and the loss work on at a time, by kind of device.

The engine and the loss read their defaults here, and the planner counts memory and kernels by the same
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSizes:
    """Sizes for one kind of device.

    Attributes:
        batch_tokens: tokens of one forward of the teacher's engine, padding included.
        queued_tokens: tokens that may wait in the engine's queue.
        readout_rows: masked tokens a time in the engine's LM head.
        readout_vocab: vocabulary entries a time in the engine's LM head.
        loss_tile: logits in one tile of the loss.
        loss_kept_bytes: most bytes of logits that the loss keeps for its backward pass.
    """

    batch_tokens: int
    queued_tokens: int
    readout_rows: int
    readout_vocab: int
    loss_tile: int
    loss_kept_bytes: int


CPU_SIZES = WorkingSizes(
    batch_tokens=4096,
    queued_tokens=262_144,
    readout_rows=512,
    readout_vocab=512,
    loss_tile=2**18,  # 1 MiB in float32, so that a tile stays in the cache
    loss_kept_bytes=3 * 2**25,  # 96 MiB
)
ACCELERATOR_SIZES = WorkingSizes(
    batch_tokens=32_768,
    queued_tokens=1_048_576,
    readout_rows=4096,
    readout_vocab=32_768,
    loss_tile=2**24,  # 64 MiB in float32, enough work for each kernel
    loss_kept_bytes=2**29,  # 512 MiB: the logits of 883 rows in float32 at a vocabulary of 152k
)


def working_sizes(*, is_accelerator: bool) -> WorkingSizes:
    """The sizes for a CPU, or for any other device."""
    return ACCELERATOR_SIZES if is_accelerator else CPU_SIZES
