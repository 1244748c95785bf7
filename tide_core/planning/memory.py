"""Memory of a process at its peak, part by part.

Of a trainer's activations, the numbers that autograd keeps follow the modules' lines, and a test counts them
on real ones. What a plan cannot know (fragmentation, libraries) is one constant, ``runtime``.
"""

from __future__ import annotations

from collections.abc import Sequence

from tide_core.checkpoints.headers import BYTES_PER_DTYPE
from tide_core.contracts.job import Quantisation
from tide_core.contracts.plan import DeviceKind, MemoryPart, ProcessMemory
from tide_core.contracts.teacher import bits_per_weight
from tide_core.planning.costs import Precision
from tide_core.planning.shapes import ModelShape

CPU_RUNTIME_BYTES = 450 * 2**20
"""A worker with torch and Ray loaded and nothing in it."""
GPU_RUNTIME_BYTES = 2 * 2**30
"""A CUDA context, its libraries' workspaces and what the allocator cannot use."""
_LOSS_TILES = 4
"""Tiles of that size alive at once: student, teacher, their difference, its gradient."""


def teacher_memory(
    shape: ModelShape,
    kind: DeviceKind,
    precision: Precision,
    *,
    longest: float,
    readout: bool,
    has_mask: bool,
    quantisation: Quantisation = "none",
) -> ProcessMemory:
    """A teacher replica.

    Args:
        shape: the teacher.
        kind: its device.
        precision: of the served weights.
        longest: tokens of the longest row; a row beyond the token budget goes alone.
        readout: whether it runs its LM head (not for hidden states).
        has_mask: whether queries see some keys only, which takes a bool for each pair.
        quantisation: how the layers' matrices are held.
    """
    width = BYTES_PER_DTYPE[precision]
    sizes = kind.working_sizes
    tokens = max(longest, sizes.batch_tokens)
    parts = [
        MemoryPart(name="weights", bytes=weight_bytes(shape, precision, quantisation)),
        MemoryPart(name="activations", bytes=round(tokens * inference_bytes(shape, width))),
    ]
    if quantisation != "none":
        largest = max(shape.hidden * shape.feed_forward * 2, shape.attention_matrix)
        if shape.mixture is not None and kind.is_accelerator:  # the grouped product's whole stack
            largest = max(largest, shape.mixture.experts * 3 * shape.hidden * shape.mixture.width)
        parts.append(MemoryPart(name="restored weights", bytes=width * largest))
    if has_mask:
        # The bools, and the same as numbers to add to the scores.
        parts.append(MemoryPart(name="attention mask", bytes=round(tokens * longest * (1 + width))))
    if readout:
        rows, vocab = sizes.readout_rows, sizes.readout_vocab
        size = 3 * 4 * rows * min(vocab, shape.vocab)
        if not kind.is_accelerator:
            size += 4 * min(vocab, shape.vocab) * shape.hidden
        parts.append(MemoryPart(name="readout slices", bytes=size))
    return _process(kind, parts, [])


def weight_bytes(shape: ModelShape, precision: Precision, quantisation: Quantisation = "none") -> int:
    """Weights as they are served; the experts' selection biases stay in float32."""
    biases = shape.selection_biases
    few = 0 if quantisation == "none" else shape.quantisable
    held = few * bits_per_weight(quantisation) / 8 if quantisation != "none" else 0.0
    return round((shape.parameters - biases - few) * BYTES_PER_DTYPE[precision] + 4 * biases + held)


def inference_bytes(shape: ModelShape, width: int) -> float:
    """Bytes of a token at the peak of a forward without gradients: the residual and one layer's tensors."""
    attention = shape.hidden + 3 * (shape.query_width + shape.key_width) + shape.key_width
    feed_forward = shape.hidden + 3.0 * shape.feed_forward if shape.dense_layers else 0.0
    numbers = 2.0 * shape.hidden + max(attention, feed_forward)
    # Norms compute in float32.
    most = width * numbers + 4.0 * shape.hidden
    if shape.mixture is None:
        return most
    mixture = shape.mixture
    # The chosen experts' rows in and out, un-sorted, and weighed in float32.
    routed = mixture.chosen * (width * (3.0 * shape.hidden + 3.0 * mixture.width) + 4.0 * shape.hidden)
    return max(most, 3.0 * width * shape.hidden + routed + 8.0 * mixture.experts)


def trainer_memory(
    shape: ModelShape,
    kind: DeviceKind,
    precision: Precision,
    *,
    rows: int,
    length: float,
    masked: float,
    trainers: int,
    is_sharded: bool,
    is_checkpointed: bool,
    kept_logits: float,
    teacher_head: int,
    prefetched: float,
) -> ProcessMemory:
    """A trainer.

    Args:
        shape: the student.
        kind: its device.
        precision: of the forward; weights, gradients and moments are float32.
        rows: sequences of a micro-batch.
        length: tokens of each in the layout, padding included.
        masked: masked tokens of a micro-batch.
        trainers: with more than one, gradients are summed in buckets of their own.
        is_sharded: weights, gradients and moments lie in parts on the trainers (FSDP2); a layer's are
            gathered while it is used, and the embedding's and the LM head's throughout.
        is_checkpointed: whether layers are recomputed in the backward pass.
        kept_logits: bytes of logits that the loss keeps for its backward pass.
        teacher_head: numbers of the teacher's LM head held by the trainer.
        prefetched: bytes of steps drawn and answered ahead, on the host.
    """
    parameters = shape.parameters
    tokens = rows * length
    tile = kind.working_sizes.loss_tile
    tiles = _LOSS_TILES * 4 * min(tile, max(1.0, masked) * shape.vocab)
    mask = rows * length**2
    held = -(-parameters // trainers) if is_sharded else parameters
    parts = [
        MemoryPart(name="weights", bytes=4 * held),
        MemoryPart(name="gradients", bytes=4 * held * (2 if trainers > 1 and not is_sharded else 1)),
        MemoryPart(name="optimiser", bytes=8 * held),
        MemoryPart(name="activations", bytes=round(_activations(shape, tokens, precision, is_checkpointed))),
        MemoryPart(name="attention mask", bytes=round(mask * (1 + BYTES_PER_DTYPE[precision]))),
        MemoryPart(name="LM head", bytes=round(4 * shape.head + tiles + kept_logits)),
    ]
    if is_sharded:
        gathered = 2 * shape.layer_matrices(0) / shape.layers + shape.head
        parts.append(MemoryPart(name="gathered weights", bytes=round(2 * 4 * gathered)))
    elif precision != "float32":
        cast = BYTES_PER_DTYPE[precision] * shape.layer_matrices(0)
        parts.append(MemoryPart(name="cast weights", bytes=round(cast)))
    if teacher_head:
        parts.append(MemoryPart(name="teacher's LM head", bytes=BYTES_PER_DTYPE[precision] * teacher_head))
    return _process(kind, parts, [MemoryPart(name="prefetched steps", bytes=round(prefetched))])


def kept_numbers(shape: ModelShape) -> tuple[float, float]:
    """Numbers of a token that autograd keeps in one dense layer: in float32 always, and in the forward's own.

    A norm keeps its input and its scaled input in float32 even under autocast; what a matrix product reads,
    and what attention and gate keep, are in the forward's precision.
    """
    turned = shape.query_width + shape.key_width
    always = 4.0 * shape.hidden
    own = 2.0 * shape.hidden  # what the two projections after the norms read
    own += 2.0 * turned + 2.0 * shape.key_width + shape.query_width  # projected, turned, values, mixed
    own += 3.0 * shape.feed_forward  # gate and up, and what the last projection reads
    if shape.has_qk_norm:
        own += turned
    return always, own


def _activations(shape: ModelShape, tokens: float, precision: Precision, is_checkpointed: bool) -> float:
    always, own = kept_numbers(shape)
    layer = 4.0 * always + BYTES_PER_DTYPE[precision] * own
    if is_checkpointed:
        return tokens * (shape.layers * 4.0 * shape.hidden + layer)
    # The backward of a layer holds gradients beside what is kept.
    return tokens * (shape.layers * layer + 4.0 * (3.0 * shape.hidden + 3.0 * shape.feed_forward))


def _process(kind: DeviceKind, device: Sequence[MemoryPart], host: Sequence[MemoryPart]) -> ProcessMemory:
    """Sum up; a CPU is its own host."""
    runtime = GPU_RUNTIME_BYTES if kind.is_accelerator else CPU_RUNTIME_BYTES
    on_device = [*device, MemoryPart(name="runtime", bytes=runtime)]
    on_host = list(host) if kind.is_accelerator else []
    if not kind.is_accelerator:
        on_device += host
    return ProcessMemory(
        device=tuple(on_device),
        host=tuple(on_host),
        device_bytes=sum(part.bytes for part in on_device),
        host_bytes=sum(part.bytes for part in on_host),
        available_bytes=kind.memory_bytes,
    )
