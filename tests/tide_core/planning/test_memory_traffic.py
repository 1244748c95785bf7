"""The planner's passes over memory against the kernels that the real modules start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.kernel_traffic import TrafficCounter, traffic
from tests.support.planned_pairs import CROSS, spec_of, step_of
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import TopKQuestion, Want
from tide_core.losses.fused_linear import ReverseDivergence, TargetLogProbs, TidalDivergence
from tide_core.losses.head_pass import Statistic, statistics_of
from tide_core.losses.sparse import BucketLogProbs
from tide_core.models.gating import apply_gate
from tide_core.models.layers import RMSNorm
from tide_core.models.reading import read_places
from tide_core.models.registry import model_class
from tide_core.models.rotary import rotate
from tide_core.planning import costs
from tide_core.planning import traffic as passes
from tide_core.planning.costs import Places
from tide_core.planning.kinds import KINDS
from tide_core.planning.roles import TrainerRole
from tide_core.planning.shapes import ModelShape, model_shape
from tide_core.scoring.answers import Slices, target_log_probs, top_k_bytes

ROWS, LENGTH = 4, 64
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "mask_token_id": 1,
}
MIXTURE: dict[str, Any] = {
    "model_type": "llada2_moe",
    "moe_intermediate_size": 96,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
STUDENT = {"model_type": "a2d-qwen3", "tie_word_embeddings": True}
DENSE = {"model_type": "wedlm", "qk_norm": True, "attention_bias": False}


def built(fields: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, ModelShape]:
    config = SIZES | fields
    model = model_class(config["model_type"]).from_config(config, seed=1, dtype=dtype)
    return model, model_shape(config, "model")


@pytest.mark.parametrize(
    ("module", "width", "counts"),
    [
        (RMSNorm(512, 1e-6), 512, (passes.TRAINED_FORWARD.norm, passes.TRAINED_BACKWARD.norm)),
        (apply_gate, 1024, (passes.TRAINED_FORWARD.gate, passes.TRAINED_BACKWARD.gate)),
    ],
    ids=["norm", "gate"],
)
def test_passes_of_a_piece(
    module: Callable[[Tensor], Tensor], width: int, counts: tuple[passes.Passes, passes.Passes]
) -> None:
    values = torch.randn(64, width, requires_grad=True)
    results: list[Tensor] = []
    forward = traffic(lambda: results.append(module(values)))
    gradient = torch.ones_like(results[0])
    backward = traffic(lambda: results[0].backward(gradient))
    of_each = 64 * results[0].shape[1]
    assert forward == pytest.approx(of_each * counts[0].bytes(4), rel=0.02)
    assert backward == pytest.approx(of_each * counts[1].bytes(4), rel=0.02)


def test_passes_of_a_rotation() -> None:
    heads = torch.randn(1, 32, 64, 64, requires_grad=True)  # many heads: the tables are shared by them
    tables = torch.randn(2, 1, 32, 1, 32)
    results: list[Tensor] = []
    forward = traffic(lambda: results.append(rotate(heads, tables[0], tables[1])))
    gradient = torch.ones_like(results[0])
    backward = traffic(lambda: results[0].backward(gradient))
    for found, counted in ((forward, passes.TRAINED_FORWARD), (backward, passes.TRAINED_BACKWARD)):
        assert found == pytest.approx(heads.numel() * counted.rotation.bytes(4), rel=0.02)


@pytest.mark.parametrize("fields", [DENSE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_served_forward(fields: dict[str, Any], precision: Any, share: float) -> None:
    model, shape = built(fields, getattr(torch, precision))
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 64
    read = read_places(torch.arange(0, ROWS * LENGTH, round(1 / share)), ROWS, LENGTH)
    places = Places(ROWS, LENGTH, len(read.index))
    planned = costs.forward(shape, places, precision, is_grouped=False)
    with torch.inference_mode(False), torch.no_grad():
        run = (lambda: model.hidden_at(ids, read)) if share < 1 else (lambda: model(ids))
        with TrafficCounter() as counter:
            run()
    assert planned.elementwise_bytes == pytest.approx(counter.bytes, rel=0.06)
    if fields is DENSE:  # how many experts have a token, the drawn weights decide
        assert planned.kernels == pytest.approx(counter.kernels, rel=0.25)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_forward_and_backward_of_a_student(precision: Any, share: float) -> None:
    model, shape = built(STUDENT)
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 64
    read = read_places(torch.arange(0, ROWS * LENGTH, round(1 / share)), ROWS, LENGTH)
    planned = costs.training(shape, Places(ROWS, LENGTH, len(read.index)), precision, is_checkpointed=False)
    planned = planned + costs.Work(elementwise_bytes=4.0 * shape.head)  # the embedding's gradient, as zeros
    autocast = torch.autocast("cpu", torch.bfloat16) if precision != "float32" else nullcontext()
    with TrafficCounter() as counter:
        with autocast:
            hidden = model.forward_at(ids, read) if share < 1 else model(ids)
        torch.autograd.backward(hidden, torch.ones_like(hidden))
    assert hidden.dtype == torch.float32  # in which a CPU's loss multiplies
    assert planned.elementwise_bytes == pytest.approx(counter.bytes, rel=0.06)
    assert planned.kernels == pytest.approx(counter.kernels, rel=0.25)


@pytest.mark.parametrize("fields", [DENSE, MIXTURE, STUDENT], ids=["dense", "mixture", "student"])
def test_products_of_a_forward_that_is_read_in_places(fields: dict[str, Any]) -> None:
    model, shape = built(fields)
    read = read_places(torch.arange(0, ROWS * LENGTH, 4), ROWS, LENGTH)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_at(torch.zeros(ROWS, LENGTH, dtype=torch.long), read)
    planned = costs.forward(shape, Places(ROWS, LENGTH, len(read.index)), "float32", is_grouped=False).flops
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_seconds_by_what_takes_them() -> None:
    """Two precisions side by side, products against their loading, tiles at their own bandwidth."""
    kind = KINDS["h100-80g"].model_copy(
        update={
            "float32_flops": 1e12,
            "bfloat16_flops": 4e12,
            "memory_bandwidth": 1e10,
            "matrix_efficiency": 0.5,
            "bandwidth_efficiency": 0.5,
            "dispatch_seconds": 0.0,
        }
    )
    work = costs.Work(
        flops=8e12, wide_flops=1e12, product_bytes=1e10, elementwise_bytes=1e10, tile_bytes=2e10
    )
    found = costs.seconds(work, kind, "bfloat16")
    # 8 / (4 x 0.5) and 1 / (1 x 0.5); 3e10 bytes at half of 1e10 a second.
    assert (found.compute, found.memory) == (pytest.approx(4.0 + 2.0), pytest.approx(6.0))
    cached = kind.model_copy(update={"tile_bandwidth": 4e10})
    assert costs.seconds(work, cached, "bfloat16").memory == pytest.approx(2.0 + 0.5)
    assert costs.seconds(work, kind, "float32").compute == pytest.approx(16.0 + 2.0)


def test_a_students_head_is_multiplied_in_the_forwards_precision_on_a_gpu() -> None:
    kind = KINDS["h100-80g"]
    on_host = kind.model_copy(update={"is_accelerator": False})
    for spec in (CROSS, spec_of(Pipeline.CROSS_TOKENIZER, "none")):
        assert TrainerRole(step_of(spec), kind).micro_batch(8, 64).wide_flops == 0
        work = TrainerRole(step_of(spec), on_host).micro_batch(8, 64)
        # Three products, and those logits again that are not kept.
        masked = 8 * float(step_of(CROSS).sizes.masked.mean())
        vocab, hidden = 151936, 1024
        again = 1 - 3 * 2**25 / (4 * masked * vocab)
        assert again > 0
        assert work.wide_flops == pytest.approx((3 + again) * 2 * masked * vocab * hidden, rel=1e-6)


MASKED, VOCAB, HIDDEN = 256, 4096, 16


def divergence(of: type[TidalDivergence] | type[ReverseDivergence]) -> Statistic:
    teacher = torch.randn(MASKED, 8), torch.randn(VOCAB, 8)
    settings: dict[str, Any] = {"temperature": 2.0, "shared_vocab": VOCAB, "rows": torch.arange(MASKED)}
    if of is TidalDivergence:
        return TidalDivergence(*teacher, torch.full((MASKED,), 0.5), **settings)
    return ReverseDivergence(*teacher, **settings)


STATISTICS: dict[str, tuple[Callable[[], Statistic], int]] = {
    "token": (lambda: TargetLogProbs(torch.arange(MASKED)), passes.TOKEN_PASSES),
    "tidal": (lambda: divergence(TidalDivergence), passes.TIDAL_PASSES),
    "reverse": (lambda: divergence(ReverseDivergence), passes.REVERSE_PASSES),
    "buckets": (
        lambda: BucketLogProbs(
            torch.arange(8).repeat(MASKED, 1), temperature=2.0, shared_vocab=VOCAB, rows=torch.arange(MASKED)
        ),
        passes.BUCKET_PASSES,
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_passes_of_a_statistic(name: str) -> None:
    """Beside a clean token's, which is always first; its own are taken off again."""
    head = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    hidden = torch.randn(MASKED, HIDDEN, requires_grad=True)

    def run(statistics: list[Statistic]) -> None:
        values = statistics_of(hidden, head, statistics)
        torch.autograd.backward(values, [torch.ones_like(value) for value in values])

    make, counted = STATISTICS[name]
    first = STATISTICS["token"][0]
    alone = traffic(lambda: run([first()]))
    found = alone if name == "token" else traffic(lambda: run([first(), make()])) - alone
    assert found == pytest.approx(4 * MASKED * VOCAB * counted, rel=0.05)


@pytest.mark.parametrize(
    "want", [Want.TARGET_LOG_PROB, Want.TARGET_AND_BOUNDARY, Want.TOP_K], ids=lambda want: want.value
)
def test_passes_of_a_readout(want: Want) -> None:
    head, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(MASKED, HIDDEN)
    targets, slices = torch.arange(MASKED), Slices(512, 512)
    boundary = torch.arange(VOCAB) % 2 == 0 if want is Want.TARGET_AND_BOUNDARY else None

    def run() -> object:
        if want is Want.TOP_K:
            return top_k_bytes(hidden, head, TopKQuestion(8, VOCAB, (1.0, 2.0)), slices=slices)
        return target_log_probs(hidden, head, targets, slices=slices, boundary=boundary)

    written = 4 * MASKED * VOCAB  # by the product, which is not counted
    with torch.no_grad():
        found = traffic(run) + written
    assert found == pytest.approx(4 * MASKED * VOCAB * passes.readout_passes(want, 2), rel=0.1)
