"""FlexAttention's block mask says what the dense mask says, and gives the same hidden states."""

import pytest
import torch
from torch import Tensor

from tide_core.masks.block_attention import (
    BLOCK_MASK_FROM,
    CompactLayout,
    compact_layout,
    compact_layout_two_views,
    full_layout,
    uses_block_mask,
)
from tide_core.models.dense import DenseDecoder
from tide_core.models.layers import attend

SIZES = {
    "model_type": "a2d-qwen3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "initializer_range": 0.3, "mask_token_id": 5,
}  # fmt: skip


def drawn(seed: int, seq: int = 40, rate: float = 0.15) -> tuple[Tensor, Tensor]:
    """Groups [3, seq] (0, 1, 2) and lengths, one row empty of masks and one short."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([seq, seq // 3, seq - 5])
    groups = (torch.rand(3, seq, generator=generator) < rate).to(torch.uint8)
    groups *= torch.randint(1, 3, (3, seq), generator=generator).to(torch.uint8)
    groups[2] = 0
    return groups * (torch.arange(seq) < lengths[:, None]), lengths


def layouts(seed: int) -> list[CompactLayout]:
    groups, lengths = drawn(seed)
    return [
        compact_layout(groups > 0, lengths, 8, pad_multiple=16),
        compact_layout_two_views(groups, lengths, 8),
        full_layout(groups > 0, lengths, 8),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_function_is_the_dense_mask(seed: int) -> None:
    for layout in layouts(seed):
        batch, _, kept, _ = layout.attention_mask.shape
        rows, queries, keys = torch.meshgrid(
            torch.arange(batch), torch.arange(kept), torch.arange(kept), indexing="ij"
        )
        values = layout.may_see()(rows, torch.zeros_like(rows), queries, keys)
        assert torch.equal(values, layout.attention_mask[:, 0])
        assert 0 < values.float().mean() < 1


@pytest.mark.parametrize("seed", range(2))
def test_flex_attention_gives_the_hidden_states_of_sdpa(seed: int) -> None:
    model = DenseDecoder.from_config(SIZES, seed=seed)
    groups, _ = drawn(seed)
    ids = torch.randint(0, 50, groups.shape, generator=torch.Generator().manual_seed(seed))
    for layout in layouts(seed):
        inputs = layout.input_ids(ids, 5)
        with torch.no_grad():
            dense = model(inputs, layout.attention_mask, layout.position_ids)
            flex = model(inputs, layout.block_mask(), layout.position_ids)
        torch.testing.assert_close(flex, dense, atol=1e-5, rtol=1e-4)


def test_tiles_that_no_row_attends_to_are_skipped() -> None:
    """Of two copies of 512 tokens in blocks of 32, beside each other, less than half of the tiles remain."""
    layout = full_layout(torch.ones(1, 512, dtype=torch.bool), torch.tensor([512]), 32)
    assert layout.block_mask().sparsity() > 50
    tiles = layout.block_mask().to_dense()[0, 0].bool()
    touched = layout.attention_mask[0, 0].view(8, 128, 8, 128).any(3).any(1)
    assert torch.equal(tiles, touched)


def test_long_rows_on_a_gpu_go_through_flex_attention() -> None:
    assert uses_block_mask(torch.device("cuda"), BLOCK_MASK_FROM)
    assert not uses_block_mask(torch.device("cuda"), BLOCK_MASK_FROM - 1)
    assert not uses_block_mask(torch.device("cpu"), 10 * BLOCK_MASK_FROM)
    layout = layouts(0)[0]
    assert layout.attention_pattern is layout.attention_mask


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_flex_attention_on_a_gpu_equals_sdpa(dtype: torch.dtype) -> None:
    groups, lengths = drawn(0, seq=1536, rate=0.5)
    layout = compact_layout_two_views(groups.cuda(), lengths.cuda(), 32)
    assert not isinstance(layout.attention_pattern, Tensor)
    kept = layout.block.shape[1]
    query, key, value = (
        torch.randn(3, heads, kept, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (4, 2, 2)
    )
    outputs = []
    for pattern in (layout.attention_pattern, layout.attention_mask):
        output = attend(query, key, value, pattern)
        gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
        outputs.append((output, *gradients))
    tolerance = 2e-3 if dtype == torch.float32 else 5e-2
    for flex, dense in zip(*outputs, strict=True):
        torch.testing.assert_close(flex, dense, atol=tolerance, rtol=tolerance)
