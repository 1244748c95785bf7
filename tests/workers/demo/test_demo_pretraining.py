"""Pretraining pieces: batches, losses, the optimiser, and that the recipes still make the shipped models."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from tide_core.models.dense import DenseDecoder
from tide_core.models.teachers.llada2_moe import LLaDA2MoeModel
from workers.demo.conversations import RowCounts, draw_rows, task_rows
from workers.demo.muon import Muon, orthogonalise
from workers.demo.pretrain import ExpertBalance, PretrainingSettings, Stage, pretrain, schedule
from workers.demo.pretraining_data import Batch, RowEncoder, batches, collate
from workers.demo.pretraining_losses import bidirectional_loss, causal_loss, staircase_loss
from workers.demo.sizes import BLOCK_SIZE, DENSE_TEACHER_SIZE, dense_config, moe_config
from workers.demo.vocabularies import MOE_TEACHER, STUDENT, train_tokenizer

ROWS = draw_rows([], "train", RowCounts(documentation=0, tasks=64), seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([m["content"] for row in ROWS for m in row["messages"]] * 4, STUDENT)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> RowEncoder:
    return RowEncoder(tokenizer, STUDENT, block_size=BLOCK_SIZE, max_length=96)


@pytest.fixture(scope="module")
def batch(encoder: RowEncoder) -> Batch:
    items = [encoder.encode(row, is_open=index % 2 == 0) for index, row in enumerate(ROWS[:8])]
    return collate([item for item in items if item is not None])


@pytest.fixture(scope="module")
def dense(tokenizer: Tokenizer) -> DenseDecoder:
    config = dense_config("wedlm", DENSE_TEACHER_SIZE, tokenizer, STUDENT, is_tied=False)
    return DenseDecoder.from_config(config | {"num_hidden_layers": 2}, seed=0)


def test_open_answers_end_in_whole_blocks_and_closed_ones_in_their_template(
    tokenizer: Tokenizer, encoder: RowEncoder
) -> None:
    end, eos = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id(STUDENT.eos)
    for row in ROWS[:20]:
        answer = tokenizer.encode(row["messages"][1]["content"]).ids
        opened, closed = (encoder.encode(row, is_open=flag) for flag in (True, False))
        assert opened is not None
        assert closed is not None
        assert opened.ids.size % BLOCK_SIZE == 0
        assert closed.ids[closed.is_response].tolist() == answer
        written = opened.ids[opened.is_response].tolist()
        assert written[: len(answer) + 1] == [*answer, end]
        assert set(written[len(answer) + 2 :]) <= {eos}
        assert opened.ids[: closed.ids.size].tolist() == closed.ids.tolist()


def test_rows_longer_than_the_maximum_are_left_out(tokenizer: Tokenizer) -> None:
    short = RowEncoder(tokenizer, STUDENT, block_size=BLOCK_SIZE, max_length=8)
    assert short.encode(ROWS[0], is_open=True) is None


def test_batches_hold_every_row_once_and_are_deterministic(encoder: RowEncoder) -> None:
    def drawn() -> list[Batch]:
        return list(batches(iter(ROWS), encoder, batch_size=8, seed=1))

    first = drawn()
    assert sum(len(batch.lengths) for batch in first) == len(ROWS)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, drawn(), strict=True))


def test_causal_loss_is_the_mean_over_real_tokens(dense: DenseDecoder, batch: Batch) -> None:
    total, count = 0.0, 0
    for ids, length in zip(batch.ids, batch.lengths, strict=True):
        sequence = torch.from_numpy(ids[:length])[None]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        logits = dense.lm_head(dense.hidden_states(sequence, causal))[0].double()
        losses = functional.cross_entropy(logits[:-1], sequence[0, 1:], reduction="none")
        total, count = total + losses.sum().item(), count + len(losses)
    with torch.no_grad():
        loss = causal_loss(dense, batch, np.random.default_rng(0))
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_diffusion_losses_of_a_model_without_an_opinion_are_log_vocabulary(
    dense: DenseDecoder, batch: Batch
) -> None:
    # The weights of a batch's masked positions sum to 1, so a uniform model loses exactly log(vocabulary).
    blank = DenseDecoder.from_config(dense.config, seed=0)
    torch.nn.init.zeros_(blank.lm_head.weight)
    expected = np.log(blank.vocab_size)
    for seed in range(3):
        for loss in (bidirectional_loss, staircase_loss):
            value = loss(blank, batch, np.random.default_rng(seed)).item()
            # Each sequence weighs 1.
            assert value == pytest.approx(expected, rel=1e-5)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    stack = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(stack))
    assert values.min() > 0.5
    assert values.max() < 1.3
    # Singular vectors are kept: the result is a polar factor, up to the values' spread.
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    polar = left @ right
    cosine = (polar * orthogonalise(stack)).sum() / polar.norm() / orthogonalise(stack).norm()
    assert cosine > 0.97


def test_muon_treats_every_matrix_of_a_stack_alone() -> None:
    start = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1))
    gradient = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(2))
    stacked = torch.nn.Parameter(start.clone())
    apart = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    stacked.grad = gradient.clone()
    for matrix, part in zip(apart, gradient, strict=True):
        matrix.grad = part.clone()
    Muon([stacked]).step(0.1)
    Muon(apart).step(0.1)
    assert torch.allclose(stacked, torch.stack(list(apart)), atol=1e-6)
    assert stacked.grad is None


def test_schedule_warms_up_and_ends_at_zero() -> None:
    factors = [schedule(step, 100, PretrainingSettings(warmup_steps=10)) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[20] == 1.0
    assert factors[-1] == pytest.approx(1 / 40)
    assert schedule(99, 100, PretrainingSettings(decay_share=0.0)) == 1.0
    assert factors == sorted(factors[:50]) + sorted(factors[50:], reverse=True)


def test_balance_moves_biases_towards_idle_experts() -> None:
    tokenizer = train_tokenizer(["a b c"], MOE_TEACHER)
    model = LLaDA2MoeModel.from_config(moe_config(tokenizer, MOE_TEACHER) | {"num_hidden_layers": 2}, seed=0)
    balance = ExpertBalance(model)
    router = model.layers[1].feed_forward.router
    model.hidden_states(torch.arange(40)[None])
    weights, chosen = router(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    assert weights.shape == chosen.shape == (64, 2)
    before = router.expert_bias.clone()
    balance.step()
    moved = router.expert_bias - before
    assert torch.allclose(moved.abs()[moved != 0], torch.tensor(1e-3))
    assert (moved > 0).any()
    assert (moved < 0).any()


def test_a_model_learns(dense: DenseDecoder, encoder: RowEncoder) -> None:
    model = DenseDecoder.from_config(dense.config, seed=1)
    stream = batches(task_rows("train", 3), encoder, batch_size=16, seed=3)
    seen: list[tuple[int, int]] = []
    settings = PretrainingSettings(batch_size=16, warmup_steps=5)
    stages = (Stage(causal_loss, 30), Stage(staircase_loss, 10))
    record = pretrain(model, stages, stream, settings, lambda step, total, loss: seen.append((step, total)))
    assert seen[0] == (1, 40)
    assert seen[-1] == (40, 40)
    assert [len(stage) for stage in record] == [3, 1]
    assert record[0][2] < 0.6 * record[0][0]
