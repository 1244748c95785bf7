"""What a forward takes: every form of mask, positions, caches; and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from tide_core.contracts.errors import CheckpointError, InvalidInputError, ShapeError
from tide_core.masks.block_attention import compact_layout, full_layout
from tide_core.models.cache import KeyValueCache
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.student import BlockDiffusionStudent

Make = Callable[..., DenseConfig]


def close(one: torch.Tensor, other: torch.Tensor, **tolerances: Any) -> None:
    torch.testing.assert_close(one, other, **({"atol": 1e-5, "rtol": 1e-4} | tolerances))


def test_compact_layout_gives_the_full_layouts_states_and_gradients(dense_config: Make) -> None:
    student = BlockDiffusionStudent.from_config(dense_config(), seed=1)
    lengths = torch.tensor([24, 16, 24])
    ids = torch.randint(0, 97, (3, 24))
    is_masked = torch.zeros(3, 24, dtype=torch.bool)
    is_masked[0, 10:13] = is_masked[1, 2] = is_masked[2, 20:] = True
    results = []
    for layout in (compact_layout(is_masked, lengths, 8), full_layout(is_masked, lengths, 8)):
        student.zero_grad()
        hidden = student(layout.input_ids(ids, 5), layout.attention_mask, layout.position_ids)
        rows = hidden.flatten(0, 1)[layout.masked_index]
        student.lm_head(rows).logsumexp(-1).sum().backward()
        results.append(
            (rows, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})
        )
    (rows, gradients), (full_rows, full_gradients) = results
    close(rows, full_rows)
    for name, gradient in gradients.items():
        close(gradient, full_gradients[name], atol=1e-4)


def test_all_mask_forms_mean_the_same(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (2, 10))
    close(model(ids, torch.ones(2, 10, dtype=torch.bool)), model(ids))
    pattern = torch.ones(2, 10, 10, dtype=torch.bool).tril()
    close(model(ids, pattern), model(ids, pattern[:, None]))
    close(model(ids, pattern[:1]), model(ids, pattern))


def test_flex_attention_block_masks_equal_boolean_masks(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (2, 16))
    causal = torch.ones(2, 16, 16, dtype=torch.bool).tril()
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 16, 16, device="cpu", BLOCK_SIZE=16)
    with torch.no_grad():
        close(model(ids, block_mask), model(ids, causal))


def test_a_query_without_a_key_stays_finite_and_changes_no_other(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (2, 8))
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[:, 6:] = False
    mask[:, :, 6:] = False
    hidden = model(ids, mask)
    assert hidden.isfinite().all()
    close(hidden[:, :6], model(ids[:, :6]))
    # Not every attention kernel answers such a row with zeros, so it is given keys: all of them.
    everything = mask.clone()
    everything[:, 6:] = True
    assert torch.equal(hidden, model(ids, everything))
    hidden[:, :6].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_positions_count_real_tokens_by_default(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (1, 9))
    is_real = torch.tensor([[False] * 3 + [True] * 6])
    close(model(ids, is_real)[:, 3:], model(ids[:, 3:]))
    explicit = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]])
    assert torch.equal(model(ids, is_real), model(ids, is_real, explicit))


def test_relative_positions_alone_matter(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config()).double()
    ids = torch.randint(0, 97, (1, 6))
    shifted = torch.arange(6)[None] + 100
    close(model(ids, None, shifted), model(ids))
    assert not torch.allclose(model(ids, None, shifted * 2), model(ids), atol=1e-3)


def test_a_cache_gives_what_one_forward_gives(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (2, 12))
    blocks = torch.arange(12) // 4
    pattern = (blocks[:, None] >= blocks).expand(2, -1, -1)
    with torch.no_grad():
        whole = model(ids, pattern)
        cache = KeyValueCache(12)
        for start in range(0, 12, 4):
            columns = slice(start, start + 4)
            noise = torch.randint(0, 97, (2, 4))
            # Whatever a step wrote and no later step adopted must leave no trace.
            model(noise, pattern[:, columns, : start + 4], None, cache)
            part = model(ids[:, columns], pattern[:, columns, : start + 4], None, cache)
            cache.advance(4)
            close(part, whole[:, columns])


def test_a_cache_refuses_what_does_not_fit(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    cache = KeyValueCache(4)
    with torch.no_grad():
        with pytest.raises(ShapeError, match="4 positions; 5"):
            model(torch.zeros(1, 5, dtype=torch.long), None, None, cache)
        model(torch.zeros(1, 2, dtype=torch.long), None, None, cache)
        with pytest.raises(ShapeError, match="1 rows"):
            model(torch.zeros(2, 2, dtype=torch.long), None, None, cache)


@pytest.mark.parametrize(
    "shape", [(2, 7), (3, 10), (2, 10, 7), (2, 4, 10, 10)], ids=["keys", "rows", "keys of 3-D", "heads"]
)
def test_a_mask_that_does_not_fit_is_refused_by_name(dense_config: Make, shape: tuple[int, ...]) -> None:
    model = DenseDecoder.from_config(dense_config())
    with pytest.raises(Exception, match="attention_mask") as caught:
        model(torch.zeros(2, 10, dtype=torch.long), torch.ones(shape, dtype=torch.bool))
    # Shape checks in tests may speak first; without them it is ours.
    assert getattr(caught.value, "param", "attention_mask") == "attention_mask"


def test_positions_that_do_not_fit_are_refused(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    with pytest.raises(Exception, match="position_ids"):
        model(torch.zeros(2, 10, dtype=torch.long), None, torch.zeros(2, 9, dtype=torch.long))


def test_activation_checkpointing_changes_no_gradient(dense_config: Make) -> None:
    gradients = []
    for is_on in (False, True):
        model = DenseDecoder.from_config(dense_config(), seed=4)
        model.activation_checkpointing = is_on
        model(torch.arange(20).view(2, 10)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def test_fresh_weights_depend_on_the_seed_alone(dense_config: Make) -> None:
    one, same, other = (DenseDecoder.from_config(dense_config(), seed=seed) for seed in (1, 1, 2))
    torch.rand(3)
    for key, tensor in one.checkpoint_tensors().items():
        assert torch.equal(tensor, same.checkpoint_tensors()[key])
        if tensor.ndim > 1:
            assert not torch.equal(tensor, other.checkpoint_tensors()[key])
            assert tensor.std().item() == pytest.approx(0.2, rel=0.15)
    assert torch.equal(one.norm.weight, torch.ones(32))


def test_tied_heads_share_one_tensor(dense_config: Make) -> None:
    tied = DenseDecoder.from_config(dense_config())
    assert tied.lm_head.weight is tied.embedding.weight
    assert "lm_head.weight" not in tied.checkpoint_tensors()
    untied = DenseDecoder.from_config(dense_config(tie_word_embeddings=False))
    assert untied.lm_head.weight is not untied.embedding.weight
    assert "lm_head.weight" in untied.checkpoint_tensors()


def test_autocast_runs_and_stays_close(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    ids = torch.randint(0, 97, (2, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(ids)
    cast.float().sum().backward()
    close(cast.float(), model(ids), atol=0.25, rtol=0.1)


def test_hidden_has_no_gradient(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config())
    assert not model.hidden_states(torch.zeros(1, 4, dtype=torch.long)).requires_grad


def test_a_model_without_mask_token_says_so(dense_config: Make) -> None:
    model = DenseDecoder.from_config(dense_config(mask_token_id=None))
    with pytest.raises(InvalidInputError, match="no mask token") as caught:
        _ = model.mask_token_id
    assert caught.value.code == "tokenizer_without_mask_token"


def test_a_student_refuses_a_causal_config(dense_config: Make) -> None:
    with pytest.raises(CheckpointError, match="convert the model first"):
        BlockDiffusionStudent.from_config(dense_config("qwen3"))
