"""Attention patterns against their definition, and the compact layout against the full one in a network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.masks.block_attention import (
    CompactLayout,
    bidirectional_mask,
    block_attention_mask,
    block_causal_mask,
    compact_layout,
    compact_layout_two_views,
    compact_length,
    full_layout,
)


def allowed(query: tuple[int, bool], key: tuple[int, bool]) -> bool:
    """The definition: (block, is noisy) of a query and a key."""
    (query_block, query_is_noisy), (key_block, key_is_noisy) = query, key
    m_bd = query_block == key_block and query_is_noisy == key_is_noisy
    m_obc = query_is_noisy and not key_is_noisy and key_block < query_block
    m_bc = not query_is_noisy and not key_is_noisy and key_block <= query_block
    return m_bd or m_obc or m_bc


@given(st.integers(1, 13), st.integers(1, 5), st.booleans())
def test_the_full_mask_follows_the_definition(seq: int, block: int, x0_first: bool) -> None:
    mask = block_attention_mask(seq, block, x0_first=x0_first)
    places = [
        (i // block, copy) for copy in ([False, True] if x0_first else [True, False]) for i in range(seq)
    ]
    wanted = [[allowed(query, key) for key in places] for query in places]
    assert mask.tolist() == wanted


def test_single_copy_masks_follow_their_definitions() -> None:
    lengths = torch.tensor([5, 0, 3])
    both = bidirectional_mask(lengths, 5)
    causal = block_causal_mask(lengths, 5, 2)
    for row, length in enumerate(lengths.tolist()):
        for query in range(5):
            for key in range(5):
                sees = key < length or (query == key)
                assert bool(both[row, 0, query, key]) == sees
                in_order = key // 2 <= query // 2
                assert bool(causal[row, 0, query, key]) == (sees and in_order)
    assert bool(both.any(dim=-1).all())
    assert bool(causal.any(dim=-1).all())


# A network to run layouts through -------------------------------------------------------------------------


class TinyTransformer(nn.Module):
    """Three attention layers with position embeddings: enough for information to travel anywhere it may."""

    def __init__(self, vocab: int = 17, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(64, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(5)) for _ in range(layers)
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(positions)
        for query, key, value, up, down in self.layers:
            heads = (layer(x)[:, None] for layer in (query, key, value))
            x = x + nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)[:, 0]
            x = x + down(torch.tanh(up(x)))
        return x

    def at_masked(self, layout: CompactLayout, clean_ids: Tensor) -> Tensor:
        hidden = self(layout.input_ids(clean_ids, 16), layout.attention_mask, layout.position_ids)
        return hidden.flatten(0, 1)[layout.masked_index]


NETWORK = TinyTransformer()


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Clean ids, groups, lengths and a block size, with empty rows, empty masks and partial blocks."""
    batch, seq, block = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    lengths = torch.tensor(draw(st.lists(st.integers(0, seq), min_size=batch, max_size=batch)))
    rate = draw(st.sampled_from([0.0, 0.15, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    ids = torch.randint(0, 16, (batch, seq), generator=generator)
    groups = torch.randint(1, 3, (batch, seq), generator=generator)
    hit = torch.rand(batch, seq, generator=generator) < rate
    groups = groups * hit * (torch.arange(seq) < lengths[:, None])
    return ids, groups.to(torch.uint8), lengths, block


@settings(max_examples=80)
@given(batches())
def test_the_compact_layout_gives_what_the_full_one_gives(batch: tuple[Tensor, Tensor, Tensor, int]) -> None:
    ids, groups, lengths, block = batch
    is_masked = groups > 0
    compact, full = compact_layout(is_masked, lengths, block), full_layout(is_masked, lengths, block)
    ours, reference = NETWORK.at_masked(compact, ids), NETWORK.at_masked(full, ids)
    assert ours.shape[0] == int(is_masked.sum())
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)
    row, place = is_masked.nonzero(as_tuple=True)
    for layout in (compact, full):
        assert torch.equal(layout.masked_row, row)
        assert torch.equal(layout.source_position[layout.masked_row, layout.masked_column], place)


@settings(max_examples=40)
@given(batches())
def test_gradients_of_the_compact_layout_are_those_of_the_full_one(
    batch: tuple[Tensor, Tensor, Tensor, int],
) -> None:
    ids, groups, lengths, block = batch
    is_masked = groups > 0
    gradients = []
    for layout in (compact_layout(is_masked, lengths, block), full_layout(is_masked, lengths, block)):
        NETWORK.zero_grad()
        NETWORK.at_masked(layout, ids).pow(2).sum().backward()
        gradients.append([parameter.grad for parameter in NETWORK.parameters()])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@settings(max_examples=80)
@given(batches())
def test_two_views_in_one_forward_equal_two_forwards(batch: tuple[Tensor, Tensor, Tensor, int]) -> None:
    ids, groups, lengths, block = batch
    both = NETWORK.at_masked(compact_layout_two_views(groups, lengths, block), ids)
    apart = torch.zeros_like(both)
    of_masked = groups[groups > 0]
    for group in (1, 2):
        layout = full_layout(groups == group, lengths, block)
        apart[of_masked == group] = NETWORK.at_masked(layout, ids)
    torch.testing.assert_close(both, apart, rtol=1e-10, atol=1e-10)


@given(batches(), st.sampled_from([1, 8]))
def test_every_row_has_a_key_and_no_row_reads_padding(
    batch: tuple[Tensor, Tensor, Tensor, int], multiple: int
) -> None:
    _, groups, lengths, block = batch
    for layout in (
        compact_layout(groups > 0, lengths, block, pad_multiple=multiple),
        compact_layout_two_views(groups, lengths, block, pad_multiple=multiple),
        full_layout(groups > 0, lengths, block),
    ):
        mask = layout.attention_mask[:, 0]
        assert bool(mask.any(dim=-1).all())
        readers = mask & layout.is_padding[:, None, :]
        itself = torch.eye(mask.shape[1], dtype=torch.bool)
        assert not bool((readers & ~itself).any())
    assert compact_layout(groups > 0, lengths, block, pad_multiple=multiple).copy.shape[1] % multiple == 0


def test_the_compact_layout_keeps_only_blocks_that_are_needed() -> None:
    # Blocks of 2: prompt 0-1, masked tokens in blocks 2 and 3, then an unmasked tail.
    is_masked = torch.zeros(1, 12, dtype=torch.bool)
    is_masked[0, [4, 7]] = True
    layout = compact_layout(is_masked, torch.tensor([11]), 2)
    noisy, clean = layout.copy[0] == 1, layout.copy[0] == 0
    assert layout.source_position[0, noisy].tolist() == [4, 5, 6, 7]
    assert layout.source_position[0, clean].tolist() == [0, 1, 2, 3, 4, 5]
    assert layout.block[0].tolist() == [2, 2, 3, 3, 0, 0, 1, 1, 2, 2]
    assert layout.is_mask_token[0].tolist() == [True, False, False, True] + [False] * 6
    assert torch.equal(layout.position_ids, layout.source_position)


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=23), min_size=1, max_size=4),
    block=st.integers(1, 9),
)
def test_the_length_of_a_row_is_known_before_its_layout(rows: list[list[bool]], block: int) -> None:
    lengths = torch.tensor([len(row) for row in rows])
    is_masked = torch.zeros(len(rows), int(lengths.max()), dtype=torch.bool)
    for number, row in enumerate(rows):
        is_masked[number, : len(row)] = torch.tensor(row)
    layout = compact_layout(is_masked, lengths, block)
    assert [compact_length(np.array(row), block) for row in rows] == (~layout.is_padding).sum(1).tolist()


def test_two_views_reveal_to_each_other_what_they_mask() -> None:
    groups = torch.tensor([[0, 0, 1, 2]], dtype=torch.uint8)
    layout = compact_layout_two_views(groups, torch.tensor([4]), 2)
    ids = layout.input_ids(torch.tensor([[10, 11, 12, 13]]), 99)
    assert layout.copy[0].tolist() == [1, 1, 2, 2, 0, 0]
    assert ids[0].tolist() == [99, 13, 12, 99, 10, 11]
    assert layout.masked_column.tolist() == [0, 3]


def test_bad_layouts_are_refused(no_shape_annotations: None) -> None:
    is_masked = torch.zeros(2, 4, dtype=torch.bool)
    lengths = torch.tensor([4, 2])
    for seq, block in ((0, 2), (4, 0)):
        with pytest.raises(InvalidInputError):
            block_attention_mask(seq, block)
    with pytest.raises(InvalidInputError):
        compact_layout(is_masked, lengths, 0)
    with pytest.raises(InvalidInputError):
        compact_layout(is_masked, lengths, 2, pad_multiple=0)
    with pytest.raises(InvalidInputError):
        block_causal_mask(lengths, 4, 0)
    for bad in (torch.tensor([5, 1]), torch.tensor([-1, 1]), torch.tensor([4])):
        with pytest.raises(ShapeError) as caught:
            compact_layout(is_masked, bad, 2)
        assert caught.value.param == "lengths"
    with pytest.raises(ShapeError):
        bidirectional_mask(torch.tensor([5]), 4)
    beyond = is_masked.clone()
    beyond[1, 3] = True
    with pytest.raises(ShapeError) as caught_mask:
        compact_layout(beyond, lengths, 2)
    assert caught_mask.value.param == "is_masked"
    with pytest.raises(ShapeError):
        compact_layout_two_views(torch.full((1, 4), 3, dtype=torch.uint8), torch.tensor([4]), 2)
    with pytest.raises(ShapeError):
        compact_layout(torch.zeros(1, 0, dtype=torch.bool), torch.tensor([0]), 2)
