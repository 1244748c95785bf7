"""Work of a forward, a backward and an update, and the seconds that a device takes for it.

Floating-point operations are counted as torch's counter counts them: two for each multiply-add of a matrix
product, attention included, nothing for element-wise kernels. Those cost memory traffic instead: each reads
and writes whole tensors, as counted in :mod:`tide_core.planning.traffic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tide_core.checkpoints.headers import BYTES_PER_DTYPE
from tide_core.contracts.plan import DeviceKind
from tide_core.planning import traffic
from tide_core.planning.shapes import ModelShape

Precision = Literal["float32", "bfloat16"]
Limit = Literal["compute", "memory_bandwidth", "dispatch", "gradient_exchange"]

# Kernels that a layer starts, views left out: forward and backward of a dense one; what a mixture starts more
# in its forward, and each expert of a looped one (gather, two products, gate, weigh, add).
_LAYER_KERNELS, _BACKWARD_KERNELS, _SPARSE_KERNELS, _EXPERT_KERNELS = 51, 94, 24, 7
# Casts: a served layer's norms in a narrow dtype; under autocast activations and weights, there and back.
# Around the layers: embedding, positions, rotation's tables, places that are read, final norm.
_SERVED_CASTS, _TRAINED_CASTS, _END_KERNELS = 8, 30, 40
_OPTIMISER_PASSES = 10
"""AdamW reads weight, gradient and both moments and writes three; the norm reads, clipping reads and writes
the gradient once more."""


@dataclass(frozen=True)
class Work:
    """What a device has to do.

    Attributes:
        flops: of matrix products in the step's precision.
        wide_flops: of matrix products in float32 whatever the step's precision.
        product_bytes: memory that matrix products must read or write at least once.
        elementwise_bytes: memory that element-wise kernels read and write.
        tile_bytes: what they read and write of tiles of logits, which a CPU's cache holds.
        kernels: how many are started.
    """

    flops: float = 0.0
    wide_flops: float = 0.0
    product_bytes: float = 0.0
    elementwise_bytes: float = 0.0
    tile_bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Work) -> Work:
        # Written out: a simulation adds up works by the hundred thousand.
        return Work(
            self.flops + other.flops,
            self.wide_flops + other.wide_flops,
            self.product_bytes + other.product_bytes,
            self.elementwise_bytes + other.elementwise_bytes,
            self.tile_bytes + other.tile_bytes,
            self.kernels + other.kernels,
        )

    def times(self, factor: float) -> Work:
        """So many times this work."""
        return Work(
            self.flops * factor,
            self.wide_flops * factor,
            self.product_bytes * factor,
            self.elementwise_bytes * factor,
            self.tile_bytes * factor,
            self.kernels * factor,
        )

    @property
    def all_flops(self) -> float:
        """In whatever precision."""
        return self.flops + self.wide_flops

    @property
    def traffic(self) -> float:
        """All bytes read and written."""
        return self.product_bytes + self.elementwise_bytes + self.tile_bytes


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
    products = (work.flops / peak + work.wide_flops / kind.float32_flops) / kind.matrix_efficiency
    loading = work.product_bytes / kind.memory_bandwidth
    through_memory = kind.memory_bandwidth * kind.bandwidth_efficiency
    passing = work.elementwise_bytes / through_memory
    passing += work.tile_bytes / (kind.tile_bandwidth or through_memory)
    return Seconds(
        compute=products if products >= loading else 0.0,
        memory=passing + (loading if loading > products else 0.0),
        dispatch=work.kernels * kind.dispatch_seconds,
        is_asynchronous=kind.is_accelerator,
    )


@dataclass(frozen=True)
class Places:
    """Where a forward computes.

    Attributes:
        rows: sequences.
        length: tokens of each, padding included.
        read: places that are read, over all rows; the last layer computes nothing but keys and values for
            the others (queries of a row are padded to the row with most, which is left out here).
    """

    rows: float
    length: float
    read: float

    @property
    def tokens(self) -> float:
        return self.rows * self.length

    @staticmethod
    def whole(rows: float, length: float) -> Places:
        """Every place is read."""
        return Places(rows, length, rows * length)


def forward(shape: ModelShape, places: Places, precision: Precision, *, is_grouped: bool) -> Work:
    """One forward of a served model through all layers, without the LM head.

    Args:
        shape: the model.
        places: where it computes.
        precision: of weights and activations.
        is_grouped: experts run as grouped products (a GPU), else one after the other.
    """
    width, everywhere = BYTES_PER_DTYPE[precision], places.tokens
    total = _ends(shape, places, traffic.SERVED, width)
    for read, dense, sparse in _layers(shape, places):
        if dense:
            total = total + _products(shape, places, read, width, is_sparse=False).times(dense)
        if sparse:
            total = total + _products(shape, places, read, width, is_sparse=True).times(sparse)
        own = traffic.layer_bytes(shape, traffic.SERVED, width, everywhere, read)
        gated = traffic.SERVED.gate.bytes(width) * read * shape.feed_forward
        routed = traffic.mixture_bytes(shape, width, read)
        started = _LAYER_KERNELS + (_SERVED_CASTS if precision != "float32" else 0)
        looped = 0.0 if shape.mixture is None or is_grouped else shape.mixture.expected_experts(read)
        total = total + Work(
            elementwise_bytes=(dense + sparse) * own + dense * gated + sparse * routed,
            kernels=(dense + sparse) * started + sparse * (_SPARSE_KERNELS + looped * _EXPERT_KERNELS),
        )
    return total


def restoring(shape: ModelShape, tokens: float, precision: Precision, *, is_grouped: bool) -> Work:
    """Quantised matrices made whole for one forward: read as few bits, widened, scaled, written."""
    idle = 0.0
    if shape.mixture is not None and not is_grouped:  # one after the other: those that have a token
        experts = shape.mixture.experts - shape.mixture.expected_experts(tokens)
        idle = shape.sparse_layers * experts * 3.0 * shape.hidden * shape.mixture.width
    return Work(
        elementwise_bytes=(shape.quantisable - idle) * (1.0 + 3.0 * BYTES_PER_DTYPE[precision]),
        kernels=5.0 * 4.0 * shape.layers,
    )


def attention_flops(shape: ModelShape, read: float, length: float) -> float:
    """Scores and mixture of one layer at the places that are read; kernels with a mask compute all pairs."""
    return 4.0 * read * length * shape.query_width


def training(shape: ModelShape, places: Places, precision: Precision, *, is_checkpointed: bool) -> Work:
    """Forward and backward of one micro-batch through a dense model; float32 weights are cast once."""
    width, everywhere = BYTES_PER_DTYPE[precision], places.tokens
    once, back = (
        _ends(shape, places, each, width) for each in (traffic.TRAINED_FORWARD, traffic.TRAINED_BACKWARD)
    )
    for read, count, _ in _layers(shape, places):
        products = _products(shape, places, read, width, is_sparse=False)
        # Two products for each of the forward's; attention has five for two, since it computes scores again.
        again = Work(flops=0.5 * attention_flops(shape, read, places.length))
        once = once + (products + _passing(shape, traffic.TRAINED_FORWARD, width, everywhere, read)).times(
            count
        )
        passing = _passing(shape, traffic.TRAINED_BACKWARD, width, everywhere, read)
        back = back + (products.times(2.0) + again + passing).times(count)
        if is_checkpointed:
            # Recomputing ends where the last kept tensor is found, before the projection down.
            recomputed = products + _passing(shape, traffic.TRAINED_FORWARD, width, everywhere, read)
            back = back + (recomputed + Work(flops=-2.0 * read * shape.dense_matrix / 3)).times(count)
    total = once + back
    if precision != "float32":  # there, and again for each recomputing; their gradients back
        casts = 3.0 if is_checkpointed else 2.0
        casting = Work(
            elementwise_bytes=casts * (BYTES_PER_DTYPE["float32"] + width) * shape.layer_matrices(0)
        )
        total = total + casting + Work(kernels=float(_TRAINED_CASTS * shape.layers))
    return total


def accumulation(parameters: float) -> Work:
    """Gradients of a later micro-batch added to those before it; the first one's are taken over."""
    return Work(elementwise_bytes=3.0 * BYTES_PER_DTYPE["float32"] * parameters)


def gathering(parameters: float) -> Work:
    """Copies of a student in parts, each micro-batch: weights out of the gather, twice, and gradients in."""
    return Work(elementwise_bytes=6.0 * BYTES_PER_DTYPE["float32"] * parameters)


def head_gradient(shape: ModelShape) -> Work:
    """The embedding's dense gradient begins as zeros (1); a tied head's own is added to it (3)."""
    return Work(elementwise_bytes=(4.0 if shape.is_tied else 1.0) * BYTES_PER_DTYPE["float32"] * shape.head)


def head_product(rows: float, vocab: float, hidden: float, width: int) -> Work:
    """One product of rows with an LM head, without what becomes of the logits."""
    return Work(flops=2.0 * rows * vocab * hidden, product_bytes=width * (vocab * hidden + rows * hidden))


def tiles(rows: float, vocab: float, passes: float) -> Work:
    """So many passes over float32 logits, tile by tile."""
    return Work(tile_bytes=BYTES_PER_DTYPE["float32"] * passes * rows * vocab)


def slices(rows: float, vocab: float, slice_size: float) -> float:
    """Tiles of one pass over the vocabulary."""
    return max(1.0, rows * vocab / slice_size)


def update(parameters: float) -> Work:
    """Clipping and AdamW, all in float32."""
    return Work(elementwise_bytes=4.0 * _OPTIMISER_PASSES * parameters, kernels=50.0)


def exchange_bytes(parameters: float, trainers: int) -> float:
    """Bytes that each trainer sends (and takes) to sum gradients over a ring, in float32."""
    return 2.0 * (trainers - 1) / trainers * 4.0 * parameters


def _layers(shape: ModelShape, places: Places) -> list[tuple[float, int, int]]:
    """Where layers are wanted, and how many dense and sparse ones: all but the last, and the last."""
    last_is_sparse = shape.sparse_layers > 0
    dense, sparse = shape.dense_layers - (not last_is_sparse), shape.sparse_layers - last_is_sparse
    return [(places.tokens, dense, sparse), (places.read, int(not last_is_sparse), int(last_is_sparse))]


def _products(shape: ModelShape, places: Places, read: float, width: int, *, is_sparse: bool) -> Work:
    """Matrix products of one layer's forward, attention included."""
    tokens, hidden, queries, keys = places.tokens, shape.hidden, shape.query_width, shape.key_width
    matrices, wanted, rows = (
        shape.dense_matrix,
        float(shape.dense_matrix),
        2 * hidden + 3 * shape.feed_forward,
    )
    used = float(matrices)
    if is_sparse and shape.mixture is not None:
        mixture = shape.mixture
        wanted = shape.sparse_matrix(mixture.chosen)
        used = shape.sparse_matrix(mixture.expected_experts(read))
        rows = mixture.chosen * (2 * hidden + 3 * mixture.width) + 2 * hidden + 3 * mixture.shared_width
    attention = 4.0 * hidden * (tokens * keys + read * queries)
    # What the products read and write: the layer's input, queries in and out, keys and values, the result.
    numbers = tokens * (hidden + 2 * keys) + read * (2 * queries + hidden + rows)
    return Work(
        flops=attention + 2.0 * read * wanted + attention_flops(shape, read, places.length),
        product_bytes=width * (shape.attention_matrix + used + numbers),
    )


def _passing(shape: ModelShape, passes: traffic.LayerPasses, width: int, tokens: float, read: float) -> Work:
    """Element-wise kernels of one dense layer in one direction."""
    is_backward = passes is traffic.TRAINED_BACKWARD
    own = traffic.layer_bytes(shape, passes, width, tokens, read)
    return Work(
        elementwise_bytes=own + passes.gate.bytes(width) * read * shape.feed_forward,
        kernels=float(_BACKWARD_KERNELS if is_backward else _LAYER_KERNELS),
    )


def _ends(shape: ModelShape, places: Places, passes: traffic.LayerPasses, width: int) -> Work:
    """Embedding (reads and writes a row for each token), what the last layer gathers, and the final norm."""
    table = width if passes is traffic.SERVED else BYTES_PER_DTYPE["float32"]
    looked_up = 2 * table * places.tokens * shape.hidden
    final = passes.norm.bytes(width) * places.read * shape.hidden
    gathered = 0.0
    if places.read < places.tokens:
        gathered += traffic.READ_HIDDEN.bytes(width) * shape.hidden
        gathered += traffic.READ_QUERIES.bytes(width) * shape.query_width
    return Work(elementwise_bytes=looked_up + final + places.read * gathered, kernels=_END_KERNELS)
