"""Work of a forward, a backward and an update, and the seconds that a device takes for it.

Floating-point operations are counted as torch's counter counts them: two for each multiply-add of a matrix
product, attention included, nothing for element-wise kernels. Those cost memory traffic instead: each reads
and writes whole tensors. The counts of numbers read and written below follow the modules' own lines
(:mod:`tide_core.models.layers`, :mod:`tide_core.models.mixture`, :mod:`tide_core.losses.head_pass`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tide_core.contracts.plan import DeviceKind
from tide_core.planning.models import ModelShape

Precision = Literal["float32", "bfloat16"]
Limit = Literal["compute", "memory_bandwidth", "dispatch", "gradient_exchange"]
WIDTH = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""

# Numbers that element-wise kernels read or write for a token in one layer's forward: a norm squares,
# averages, scales and weighs (8 passes); a rotation slices, multiplies, adds and joins (10); a gate takes 5;
# a residual sum 3.
_NORM, _ROTATION, _GATE, _RESIDUAL = 8, 10, 5, 3
# Gathering, un-sorting, weighing and summing the chosen experts' rows.
_ROUTING = 10
_LAYER_KERNELS, _SPARSE_KERNELS, _LOOPED_EXPERT_KERNELS = 45, 35, 6
# A slice of the LM head: product, peak, exponential, sums, and the target's column.
_SLICE_PASSES, _SLICE_KERNELS = 8, 14
_OPTIMISER_PASSES = 10
"""AdamW reads weight, gradient and both moments and writes three; the norm reads, clipping reads and writes
the gradient once more."""


@dataclass(frozen=True)
class Work:
    """What a device has to do.

    Attributes:
        flops: of matrix products.
        product_bytes: memory that matrix products must read or write at least once.
        elementwise_bytes: memory that element-wise kernels read and write.
        kernels: how many are started.
    """

    flops: float = 0.0
    product_bytes: float = 0.0
    elementwise_bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.product_bytes + other.product_bytes,
            self.elementwise_bytes + other.elementwise_bytes,
            self.kernels + other.kernels,
        )

    def times(self, factor: float) -> Work:
        """So many times this work."""
        return Work(
            self.flops * factor,
            self.product_bytes * factor,
            self.elementwise_bytes * factor,
            self.kernels * factor,
        )

    @property
    def traffic(self) -> float:
        """All bytes read and written."""
        return self.product_bytes + self.elementwise_bytes


@dataclass(frozen=True)
class Seconds:
    """Time of some work on a device, by what takes it."""

    compute: float
    memory: float
    dispatch: float
    is_asynchronous: bool

    @property
    def total(self) -> float:
        """Kernels run one after the other; a GPU's are started while earlier ones run, a CPU's are not."""
        busy = self.compute + self.memory
        return max(busy, self.dispatch) if self.is_asynchronous else busy + self.dispatch

    @property
    def limit(self) -> Limit:
        """What takes the largest part."""
        parts: dict[Limit, float] = {
            "compute": self.compute,
            "memory_bandwidth": self.memory,
            "dispatch": self.dispatch,
        }
        return max(parts, key=lambda name: parts[name])


def seconds(work: Work, kind: DeviceKind, precision: Precision) -> Seconds:
    """Time of work on a device: a roofline for the products, bandwidth for everything else."""
    peak = kind.float32_flops if precision == "float32" else kind.bfloat16_flops
    products = work.flops / (peak * kind.matrix_efficiency)
    loading = work.product_bytes / kind.memory_bandwidth
    passing = work.elementwise_bytes / (kind.memory_bandwidth * kind.bandwidth_efficiency)
    return Seconds(
        compute=products if products >= loading else 0.0,
        memory=passing + (loading if loading > products else 0.0),
        dispatch=work.kernels * kind.dispatch_seconds,
        is_asynchronous=kind.is_accelerator,
    )


def forward(shape: ModelShape, rows: float, length: float, precision: Precision, *, is_grouped: bool) -> Work:
    """One forward through all layers, without the LM head.

    Args:
        shape: the model.
        rows: sequences.
        length: tokens of each, padding included.
        precision: of weights and activations.
        is_grouped: experts run as grouped products (a GPU), else one after the other.
    """
    tokens, width = rows * length, WIDTH[precision]
    chosen = touched = 0.0
    if shape.mixture is not None:
        chosen, touched = shape.mixture.chosen, shape.mixture.expected_experts(tokens)
    flops = 2.0 * tokens * shape.layer_matrices(chosen)
    flops += shape.layers * attention_flops(shape, rows, length)
    kernels = float(shape.dense_layers * _LAYER_KERNELS)
    per_sparse = _LAYER_KERNELS + _SPARSE_KERNELS + (0.0 if is_grouped else touched * _LOOPED_EXPERT_KERNELS)
    kernels += shape.sparse_layers * per_sparse
    return Work(
        flops=flops,
        product_bytes=width * (shape.layer_matrices(touched) + 2 * tokens * _product_rows(shape)),
        elementwise_bytes=width * tokens * _elementwise_numbers(shape),
        kernels=kernels,
    )


def restoring(shape: ModelShape, tokens: float, precision: Precision, *, is_grouped: bool) -> Work:
    """Quantised matrices made whole for one forward: read as few bits, widened, scaled, written."""
    idle = 0.0
    if shape.mixture is not None and not is_grouped:  # one after the other: those that have a token
        experts = shape.mixture.experts - shape.mixture.expected_experts(tokens)
        idle = shape.sparse_layers * experts * 3.0 * shape.hidden * shape.mixture.width
    return Work(
        elementwise_bytes=(shape.quantisable - idle) * (1.0 + 3.0 * WIDTH[precision]),
        kernels=5.0 * 4.0 * shape.layers,
    )


def attention_flops(shape: ModelShape, rows: float, length: float) -> float:
    """Scores and mixture of one layer; kernels with a mask compute all pairs."""
    return 4.0 * rows * length**2 * shape.query_width


def training(
    shape: ModelShape, rows: float, length: float, precision: Precision, *, is_checkpointed: bool
) -> Work:
    """Forward and backward of one micro-batch through the layers; float32 weights are cast once."""
    once = forward(shape, rows, length, precision, is_grouped=True)
    # Two products for each of the forward's; attention has five for two, since it computes scores again.
    attention = shape.layers * attention_flops(shape, rows, length)
    backward = once.times(2.0) + Work(flops=0.5 * attention)
    total = once + backward
    if is_checkpointed:
        # Recomputing ends where the last kept tensor is found, before the projection down.
        total = total + once + Work(flops=-2.0 * rows * length * shape.layers * shape.dense_matrix / 3)
    if precision != "float32":
        total = total + Work(elementwise_bytes=12.0 * shape.layer_matrices(0), kernels=7.0 * shape.layers)
    # Gradients are added to those of earlier micro-batches.
    return total + Work(elementwise_bytes=12.0 * shape.parameters)


def head_product(rows: float, vocab: float, hidden: float, width: int) -> Work:
    """One product of rows with an LM head, its slices passing through element-wise kernels in float32."""
    return Work(
        flops=2.0 * rows * vocab * hidden,
        product_bytes=width * (vocab * hidden + rows * hidden),
        elementwise_bytes=4.0 * _SLICE_PASSES * rows * vocab,
    )


def sliced_kernels(rows: float, vocab: float, slice_size: float) -> float:
    """Kernels of one pass over the vocabulary's slices."""
    return _SLICE_KERNELS * max(1.0, rows * vocab / slice_size)


def update(parameters: float) -> Work:
    """Clipping and AdamW, all in float32."""
    return Work(elementwise_bytes=4.0 * _OPTIMISER_PASSES * parameters, kernels=50.0)


def exchange_bytes(parameters: float, trainers: int) -> float:
    """Bytes that each trainer sends (and takes) to sum gradients over a ring, in float32."""
    return 2.0 * (trainers - 1) / trainers * 4.0 * parameters


def _product_rows(shape: ModelShape) -> float:
    """Numbers of a token that go into or come out of matrix products, over all layers, halved."""
    attention = shape.hidden + shape.query_width + shape.key_width
    dense = shape.hidden + 1.5 * shape.feed_forward
    total = shape.layers * attention + shape.dense_layers * dense
    if shape.mixture is not None:
        inner = shape.mixture.chosen * (shape.hidden + 1.5 * shape.mixture.width)
        total += shape.sparse_layers * (inner + shape.hidden + 1.5 * shape.mixture.shared_width)
    return total


def _elementwise_numbers(shape: ModelShape) -> float:
    """Numbers that element-wise kernels pass for each token, over all layers."""
    turned = shape.query_width + shape.key_width
    attention = (_NORM + _RESIDUAL) * 2 * shape.hidden + _ROTATION * turned + 2 * shape.query_width
    if shape.has_qk_norm:
        attention += _NORM * turned
    total = shape.layers * attention + shape.dense_layers * _GATE * shape.feed_forward
    if shape.mixture is not None:
        inner = shape.mixture.chosen * (_ROUTING * shape.hidden + _GATE * shape.mixture.width)
        total += shape.sparse_layers * (
            inner + _GATE * shape.mixture.shared_width + 4 * shape.mixture.experts
        )
    return float(total)
