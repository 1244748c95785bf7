"""How often element-wise kernels pass over memory: counts along the modules' own lines, none of them fitted.

The unit is a pass: one number read or one number written by one kernel, for each number of the tensor that
the count is about. A kernel that works in place reads and writes; what it reads of a few numbers a row (a
scale, a log-sum-exp, a rotation's tables) is left out. A test counts the same on the real modules.

Three widths occur. *Own* passes are in the dtype of the layer's matrix products. *Wide* passes are in float32
whatever that dtype is: norms compute in it, and under autocast the residual stream and the rotation stay in
it. *Casts* are kernels from one of these to the other, and do not exist where both are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from tide_core.contracts.scores import Want
from tide_core.planning.shapes import ModelShape

_WIDE = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Passes:
    """Passes over a tensor, for each of its numbers."""

    own: float = 0.0
    wide: float = 0.0
    casts: float = 0.0

    def bytes(self, width: int) -> float:
        """Bytes for each number, when the own dtype has ``width`` bytes."""
        casting = 0.0 if width == _WIDE else self.casts * (width + _WIDE)
        return self.own * width + self.wide * _WIDE + casting


@dataclass(frozen=True)
class LayerPasses:
    """Passes of a layer's element-wise kernels in one direction.

    Attributes:
        norm: an RMS norm of the hidden states, with the cast to what the next product reads.
        head_norm: the norm of queries and keys.
        rotation: of queries and keys, with the cast to what attention reads.
        attention: of queries, keys, values and the result in the attention kernel: each once.
        join: of queries, keys and values, whose gradients are put side by side.
        gate: of the feed-forward's inner width.
        residual: one sum of the residual stream.
    """

    norm: Passes
    head_norm: Passes
    rotation: Passes
    attention: Passes
    join: Passes
    gate: Passes
    residual: Passes


# A norm squares (reads 1, writes 1), averages (1), scales (2) in float32, and weighs (2) in the own dtype,
# with a cast before and one after. A rotation does for each half: copy (2), times the cosines in place (2),
# the other half times the sines (2), added in place (3), all over half of the numbers: 9. A gate does silu
# (2) and multiplies in place (3). A sum reads 2 and writes 1.
SERVED = LayerPasses(
    norm=Passes(own=2, wide=5, casts=2),
    head_norm=Passes(own=2, wide=5, casts=2),
    rotation=Passes(own=9),
    attention=Passes(own=1),
    join=Passes(),
    gate=Passes(own=5),
    residual=Passes(own=3),
)
"""A teacher's layer: weights and activations in one dtype."""
# The same kernels under autocast: the residual stream is float32, so a norm of it needs no cast but the one
# that the product makes of its input. Queries and keys come in the own dtype, are normed and weighed into
# float32, rotated there, and cast for attention.
TRAINED_FORWARD = LayerPasses(
    norm=Passes(wide=7, casts=1),
    head_norm=Passes(own=1, wide=6, casts=2),
    rotation=Passes(wide=9, casts=1),
    attention=Passes(own=1),
    join=Passes(),
    gate=Passes(own=5),
    residual=Passes(own=1, wide=2),
)
# Autograd's way back through a norm: the weight's gradient (multiply 3, sum 1) and the product with the
# weight (2); the scale's gradient (3 and 1) and the product with the scale (2); the mean's gradient spread
# out (1); that of the square, which torch computes as a power (copy 2, double 2, multiply 3); and the sum of
# both ways to the input (3): 23. The gate is written out: silu again (2), into the result (2), times the
# gradient (3); gradient times up (3), silu's own gradient (3), into the result (2): 15. The rotation turns
# back: 9. Each sum of the residual stream joins two gradients: 3. Attention reads queries, keys, values, its
# result and that one's gradient, and writes three: twice its forward's.
TRAINED_BACKWARD = LayerPasses(
    norm=Passes(wide=23, casts=1),
    head_norm=Passes(own=1, wide=22, casts=3),
    rotation=Passes(wide=9, casts=1),
    attention=Passes(own=2),
    join=Passes(own=2),
    gate=Passes(own=15),
    residual=Passes(wide=3, casts=1),
)

# Of a token's row for each of its experts. The looped ones gather it (2), weigh the result into float32 (2)
# and add it up there (3). Behind the grouped product: gather (2), weigh (2), un-sort (2) and sum (1).
ROUTING = Passes(own=3, wide=4)
# Zeros to add to (1) or what the sum writes (1), the cast back, and the shared experts' sum (3).
ROUTED_TOKEN = Passes(own=3, wide=1, casts=1)
# Of each expert's score, in float32: sigmoid (2), bias (2), the two largest of a group (1), the mask of the
# groups (2), the chosen ones (1).
ROUTER_SCORES = Passes(wide=8)
# The last layer gathers the places that are read before its query's product and for the residual sum (2 and
# 2 of the hidden states), and lays queries out in rows: zeros (1), their copy (2), the rows put in (2), and
# gathers the result (2).
READ_HIDDEN, READ_QUERIES = Passes(own=4), Passes(own=7)

# One slice of logits in a running log-sum-exp, in float32: the peak (1), less the peak (2), the exponential
# (2), and its sum in float64, for which torch first writes a float64 copy (1 and 2) and then reads that (2).
RUNNING = 10
# The same with an expectation: values times weights (3) and their sum (5).
EXPECTATION = RUNNING + 8
# What a statistic passes of each of its logits, forward and backward, without any product's own writing.
# A clean token: running sum; then less the log-sum-exp (2), exponential (2), times the gradient (2).
TOKEN_PASSES = RUNNING + 6
# A divergence picks its rows (2), divides both sides by the temperature (4), takes the gap (3) and blends it
# in (3), an expectation and a running sum; then picks and divides again (6), gap and blend (6), two
# exponentials of differences (8), their difference (3), the weight (2); added to the other gradients (3).
TIDAL_PASSES = 12 + EXPECTATION + RUNNING + 28
# The reverse one: rows and division (6), gap (3), a running sum and an expectation; then rows and division
# (6), probabilities (4), the gap less its mean (5), their product (3), the weight (2); added (3).
REVERSE_PASSES = 9 + RUNNING + EXPECTATION + 23
# Buckets: rows and division (4), a running sum; then rows and division (4), tail and all as exponentials of
# differences (8), each times its gradient (4), the difference (3), the temperature (2); added (3).
BUCKET_PASSES = 4 + RUNNING + 24
GRADIENT_READS = 2
"""The gradient of the logits is read by the products that give the gradients of rows and head."""
SLICE_SUM_PASSES = 4
"""Of the rows' gradient, once a slice: the product writes it, the sum reads two and writes one."""
CANDIDATE_PASSES = 2
"""The student's likeliest tail ids: the product writes its logits, the choice reads them."""


def readout_passes(want: Want, temperatures: int) -> int:
    """Passes over the float32 logits of a teacher's readout, the product's own writing included.

    Args:
        want: what is asked; nothing is read of the head for hidden states.
        temperatures: at which a top-k answer's tails are summed.
    """
    match want:
        case Want.HIDDEN:
            return 0
        case Want.TARGET_LOG_PROB:
            return 1 + RUNNING
        case Want.TARGET_AND_BOUNDARY:  # the ids inside, masked in place (2), have a running sum too
            return 1 + RUNNING + 2 + RUNNING
        case Want.TOP_K:
            # Joined with the best so far (2) and their 8-byte ids (2), the choice (1); at each temperature
            # the others divided (2) and their log-sum-exp: peak, difference, exponential, sum (6).
            return 6 + 8 * temperatures


def layer_bytes(shape: ModelShape, passes: LayerPasses, width: int, tokens: float, read: float) -> float:
    """Bytes of one layer's attention half, its norms and residual sums; the feed-forward is apart.

    Args:
        shape: the model.
        passes: served or trained, forward or backward.
        width: bytes of a number in the own dtype.
        tokens: places of the forward.
        read: places that the layer's result is wanted at; in all layers but the last those are all.
    """
    hidden, queries, keys = shape.hidden, shape.query_width, shape.key_width
    turned = passes.rotation.bytes(width) + (passes.head_norm.bytes(width) if shape.has_qk_norm else 0.0)
    attended = passes.attention.bytes(width) * 2 * (read * queries + tokens * keys)
    joined = passes.join.bytes(width) * (read * queries + tokens * 2 * keys)
    normed = passes.norm.bytes(width) * hidden * (tokens + read)
    summed = passes.residual.bytes(width) * hidden * (tokens + read)
    return normed + summed + turned * (read * queries + tokens * keys) + attended + joined


def mixture_bytes(shape: ModelShape, width: int, read: float) -> float:
    """Bytes of a served mixture of experts: router, chosen and shared experts."""
    mixture = shape.mixture
    if mixture is None:
        return 0.0
    gate = SERVED.gate.bytes(width)
    token = mixture.chosen * (ROUTING.bytes(width) * shape.hidden + gate * mixture.width)
    token += gate * mixture.shared_width + ROUTED_TOKEN.bytes(width) * shape.hidden
    token += Passes(casts=1).bytes(width) * shape.hidden  # the router reads float32
    return read * (token + ROUTER_SCORES.bytes(width) * mixture.experts)
