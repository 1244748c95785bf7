"""WeDLM's causal order: one more mask over the same copies, the same as moving tokens about."""

from types import SimpleNamespace

import pytest
import torch

from tests.workers.teachers.test_engine import causal_allows
from tide_core.masks.block_attention import CompactLayout, compact_layout_two_views

LENGTHS, SEQ, BLOCK = (13, 9, 6), 13, 4


def lay_out(pad_multiple: int = 1) -> tuple[torch.Tensor, CompactLayout]:
    generator = torch.Generator().manual_seed(3)
    groups = torch.randint(0, 3, (3, SEQ), generator=generator, dtype=torch.uint8)
    groups[torch.arange(SEQ)[None] >= torch.tensor(LENGTHS)[:, None]] = 0
    layout = compact_layout_two_views(
        groups, torch.tensor(LENGTHS), BLOCK, pad_multiple=pad_multiple, is_causal=True
    )
    return groups, layout


@pytest.mark.parametrize("pad_multiple", [1, 16])
def test_the_mask_is_that_of_the_moved_tokens(pad_multiple: int) -> None:
    groups, layout = lay_out(pad_multiple)
    for row, length in enumerate(LENGTHS):
        copies, places = layout.copy[row].tolist(), layout.source_position[row].tolist()
        padding = layout.is_padding[row].tolist()
        for query, (copy, place) in enumerate(zip(copies, places, strict=True)):
            for key, (other, other_place) in enumerate(zip(copies, places, strict=True)):
                expected = query == key
                if not padding[query] and not padding[key]:
                    # One view at a time: no copy sees a noisy one other than itself.
                    is_masked = (groups[row, :length] == max(copy, 1)).tolist()
                    expected = (other in (0, copy)) and causal_allows(
                        place + (length if copy else 0),
                        other_place + (length if other else 0),
                        length,
                        BLOCK,
                        is_masked,
                    )
                assert bool(layout.attention_mask[row, 0, query, key]) is expected


def test_the_block_masks_function_says_the_same() -> None:
    _, layout = lay_out(16)
    kept = layout.block.shape[1]
    places = SimpleNamespace(
        row=torch.arange(3)[:, None, None], query=torch.arange(kept)[:, None], key=torch.arange(kept)
    )
    seen = layout.may_see()(places.row, torch.tensor(0), places.query, places.key)
    assert torch.equal(seen, layout.attention_mask[:, 0])
