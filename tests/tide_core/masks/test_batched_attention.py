"""The batched mask in two comparisons equals the three rules written out."""

import torch

from tide_core.masks.block_attention import mark_attention, may_attend


def test_it_equals_the_rules_on_random_layouts() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(100):
        kept = int(torch.randint(1, 40, (1,), generator=draws))
        block = torch.randint(0, 6, (3, kept), generator=draws)
        copy = torch.randint(0, 3, (3, kept), generator=draws)
        is_padding = torch.rand(3, kept, generator=draws) < 0.3
        expected = may_attend(block[:, :, None], copy[:, :, None], block[:, None, :], copy[:, None, :])
        expected &= ~(is_padding[:, :, None] | is_padding[:, None, :])
        expected |= torch.eye(kept, dtype=torch.bool) & is_padding[:, :, None]
        got = mark_attention(block, copy, is_padding)
        assert torch.equal(got[:, 0], expected)
        assert got.any(-1).all(), "a row without a key"
