"""Held-out figures against slow, separate computations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_runs import BLOCK, MASK, Bench, make_bench, tiny_samples, tiny_student
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import Layout
from tide_core.data.samples import PreparedSample
from tide_core.evaluation.comparisons import bernoulli_divergence, divergences, read_targets
from tide_core.evaluation.held_out import measure
from tide_core.evaluation.held_out_set import HeldOutSet, is_content
from tide_core.evaluation.noise import EvaluationNoise
from tide_core.evaluation.tally import Column, Tally
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.masks.block_attention import full_layout
from tide_core.models.student import BlockDiffusionStudent
from tide_core.schedules.noise import CosineNoise, LinearNoise

A, B = Pipeline.CROSS_TOKENIZER, Pipeline.SHARED_TOKENIZER


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench, engine = make_bench(tmp_path)
    yield bench
    bench.transport.close()
    engine.close()


def held_out(pipeline: Pipeline, count: int = 5, timesteps: int = 3) -> HeldOutSet:
    samples = tiny_samples(pipeline, count)
    return HeldOutSet(
        samples=samples,
        content_bytes=np.array([3.0 * is_content(sample).sum() for sample in samples]),
        pipeline=pipeline,
        block_size=BLOCK,
        mask_token_id=MASK,
        noise=EvaluationNoise(LinearNoise(), 1e-3, timesteps),
    )


def access(bench: Bench, pipeline: Pipeline) -> TeacherAccess:
    layout = Layout.BIDIRECTIONAL if pipeline is A else Layout.BLOCK_STAIRCASE
    return TeacherAccess(bench.transport, bench.teacher.lm_head.weight, layout, 60)


def log_probs_alone(
    student: BlockDiffusionStudent, sample: PreparedSample, is_masked: np.ndarray
) -> torch.Tensor:
    """One sequence in the full layout, float64 softmax: [masked, vocab]."""
    layout = full_layout(torch.from_numpy(is_masked)[None], torch.tensor([is_masked.size]), BLOCK)
    ids = layout.input_ids(torch.from_numpy(sample.student_ids.astype(np.int64))[None], MASK)
    with torch.no_grad():
        hidden = student(ids, layout.attention_mask, layout.position_ids).flatten(0, 1)
        return student.lm_head(hidden[layout.masked_index]).double().log_softmax(-1)


@pytest.mark.parametrize("pipeline", [A, B])
def test_the_students_figures_are_those_of_a_slow_loop(bench: Bench, pipeline: Pipeline) -> None:
    data, student = held_out(pipeline), tiny_student()
    tally = measure(data, {"student": student}, None)["student"]
    nll, content, hits, asked = 0.0, 0.0, 0, 0
    for sample in data.samples:
        for stratum, t in enumerate(data.noise.timesteps(sample.sample_index)):
            mask = data.noise.draw_mask(sample, stratum, float(t), by_chunk=False).is_masked
            if not mask.any():
                continue
            table = log_probs_alone(student, sample, mask)
            for row, position in enumerate(np.flatnonzero(mask)):
                target = int(sample.student_ids[position])
                nats = -float(table[row, target]) / t / data.noise.count
                nll += nats
                if is_content(sample)[position]:
                    content += nats
                    asked += 1
                    hits += int(table[row].argmax()) == target
    tokens = sum(int((s.labels != -100).sum()) for s in data.samples)
    figures = tally.figures()
    assert figures["nelbo_per_token"] == pytest.approx(nll / tokens, rel=1e-4)
    assert figures["content_nelbo_per_byte"] == pytest.approx(content / data.content_bytes.sum(), rel=1e-4)
    assert figures["masked_token_accuracy"] == pytest.approx(hits / asked)
    assert tally.columns["nll"].sum() == pytest.approx(nll, rel=1e-4)


def test_a_model_that_knows_nothing_has_the_nelbo_of_a_uniform_guess() -> None:
    """With equal logits each masked token costs log V, and the weights make the NELBO log V a token."""
    student = tiny_student()
    with torch.no_grad():
        student.norm.weight.zero_()
    data = held_out(A, count=12, timesteps=64)
    figures = measure(data, {"student": student}, None)["student"].figures()
    assert figures["nelbo_per_token"] == pytest.approx(math.log(64), rel=0.05)


def test_shared_pipeline_teacher_and_divergences(bench: Bench) -> None:
    data, student = held_out(B), tiny_student()
    tallies = measure(data, {"student": student, "again": student}, access(bench, B))
    forward = reverse = nll = 0.0
    compared = 0
    for sample in data.samples:
        for stratum, t in enumerate(data.noise.timesteps(sample.sample_index)):
            mask = data.noise.draw_mask(sample, stratum, float(t), by_chunk=False).is_masked
            ours = {int(p): row for row, p in enumerate(np.flatnonzero(mask))}
            aligned = [p for p in ours if sample.teacher_positions[p] >= 0]
            if not aligned:
                continue
            table = log_probs_alone(student, sample, mask)[:, :60].log_softmax(-1)
            teacher_mask = np.zeros(sample.teacher_ids.size, dtype=bool)
            teacher_mask[sample.teacher_positions[aligned]] = True
            layout = full_layout(
                torch.from_numpy(teacher_mask)[None], torch.tensor([teacher_mask.size]), BLOCK
            )
            clean = torch.from_numpy(sample.teacher_ids.astype(np.int64))[None]
            ids = layout.input_ids(clean, bench.teacher.mask_token_id)
            hidden = bench.teacher.hidden_states(ids, layout.attention_mask, layout.position_ids).flatten(
                0, 1
            )
            # The wire carries bfloat16.
            wire = hidden[layout.masked_index].bfloat16().float()
            logits = bench.teacher.lm_head(wire).double().detach()
            place = {int(p): row for row, p in enumerate(np.flatnonzero(teacher_mask))}
            for position in aligned:
                at_teacher = int(sample.teacher_positions[position])
                full = logits[place[at_teacher]].log_softmax(-1)
                nll -= float(full[sample.student_ids[position]]) / t / data.noise.count
                cut = logits[place[at_teacher], :60].log_softmax(-1)
                mine = table[ours[position]]
                forward += float((cut.exp() * (cut - mine)).sum())
                reverse += float((mine.exp() * (mine - cut)).sum())
                compared += 1
    figures = tallies["student"].figures()
    # A rounding in the last bit before the wire may flip a bfloat16.
    assert figures["forward_kl_to_teacher"] == pytest.approx(forward / compared, rel=2e-3)
    assert figures["reverse_kl_to_teacher"] == pytest.approx(reverse / compared, rel=2e-3)
    assert tallies["again"].figures() == figures
    assert tallies["teacher"].columns["content_nll"].sum() == pytest.approx(nll, rel=2e-3)
    assert tallies["teacher"].columns["asked"].sum() == compared
    assert "nelbo_per_token" not in tallies["teacher"].figures()


def test_cross_pipeline_compares_chunks(bench: Bench) -> None:
    data, student = held_out(A), tiny_student()
    progress: list[tuple[int, int]] = []
    tallies = measure(
        data, {"student": student}, access(bench, A), on_progress=lambda *pair: progress.append(pair)
    )
    forward = reverse = 0.0
    compared = 0
    for sample in data.samples:
        for stratum, t in enumerate(data.noise.timesteps(sample.sample_index)):
            drawn = data.noise.draw_mask(sample, stratum, float(t), by_chunk=True)
            chunks = np.flatnonzero(drawn.is_active_chunk)
            if not chunks.size:
                continue
            table = log_probs_alone(student, sample, drawn.is_masked)
            rows = np.flatnonzero(drawn.is_masked)
            ids = torch.from_numpy(sample.teacher_ids.astype(np.int64))
            hidden_tokens = torch.from_numpy(np.isin(sample.teacher_chunk_ids, chunks))
            noised = ids.masked_fill(hidden_tokens, bench.teacher.mask_token_id)[None]
            teacher = (
                bench.teacher.lm_head(bench.teacher.hidden_states(noised))[0]
                .double()
                .detach()
                .log_softmax(-1)
            )
            for chunk in chunks:
                ours = sum(
                    float(table[row, sample.student_ids[p]])
                    for row, p in enumerate(rows)
                    if sample.student_chunk_ids[p] == chunk
                )
                theirs = sum(
                    float(teacher[q, ids[q]]) for q in np.flatnonzero(sample.teacher_chunk_ids == chunk)
                )
                p, q = math.exp(ours), math.exp(theirs)
                reverse += p * (ours - theirs) + (1 - p) * math.log((1 - p) / (1 - q))
                forward += q * (theirs - ours) + (1 - q) * math.log((1 - q) / (1 - p))
                compared += 1
    figures = tallies["student"].figures()
    assert figures["forward_chunk_kl_to_teacher"] == pytest.approx(forward / compared, rel=1e-3)
    assert figures["reverse_chunk_kl_to_teacher"] == pytest.approx(reverse / compared, rel=1e-3)
    assert {"content_nelbo_per_byte", "masked_token_accuracy"} <= set(tallies["teacher"].figures())
    assert progress[-1][0] <= progress[-1][1]


def test_without_divergence_only_the_teachers_own_figures_are_asked(bench: Bench) -> None:
    for pipeline in (A, B):
        tallies = measure(
            held_out(pipeline), {"s": tiny_student()}, access(bench, pipeline), with_divergence=False
        )
        assert not any("kl" in name for name in tallies["s"].figures())
        assert tallies["teacher"].figures()


def test_timesteps_are_one_a_stratum_and_the_same_for_every_job() -> None:
    noise = EvaluationNoise(CosineNoise(), 1e-3, 8)
    times = noise.timesteps(17)
    strata = np.floor((times - 1e-3) / (1 - 1e-3) * 8 + 1e-9).astype(int)
    assert strata.tolist() == list(range(8))
    assert (times == noise.timesteps(17)).all()
    assert not np.isclose(times, noise.timesteps(18)).any()


def test_the_share_of_masked_tokens_follows_the_schedule() -> None:
    sample = tiny_samples(A, 1)[0]
    none, ones = np.full(20000, -1, np.int32), np.ones(20000, np.int32)
    wide = replace(sample, student_ids=ones, labels=ones, student_chunk_ids=none)
    for schedule in (LinearNoise(), CosineNoise()):
        drawn = EvaluationNoise(schedule, 1e-3, 4).draw_mask(wide, 2, 0.3, by_chunk=False)
        assert drawn.is_masked.mean() == pytest.approx(1 - schedule.alpha(0.3), abs=0.01)
        assert drawn.t == 0.3


def test_readout_against_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 6, generator=generator) for n in (9, 11))
    targets = torch.randint(0, 11, (9,), generator=generator)
    readout = read_targets(hidden, head, targets)
    table = (hidden.double() @ head.double().T).log_softmax(-1)
    torch.testing.assert_close(readout.log_probs.double(), table[range(9), targets], rtol=1e-5, atol=1e-5)
    assert readout.is_hit.tolist() == (table.argmax(-1) == targets).tolist()
    empty = read_targets(hidden[:0], head, targets[:0])
    assert empty.log_probs.shape == (0,)


def test_a_model_does_not_diverge_from_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 6, generator=generator) for n in (9, 11))
    for values in divergences(hidden, head, hidden, head, 8):
        torch.testing.assert_close(values, torch.zeros(9), rtol=0.0, atol=1e-6)
    log_p = torch.tensor([0.0, -1e-9, -0.5, -30.0, -200.0])
    same = bernoulli_divergence(log_p, log_p)
    assert same.tolist() == [0.0] * 5
    assert torch.isfinite(bernoulli_divergence(log_p, log_p.flip(0))).all()
    assert (bernoulli_divergence(log_p, log_p.flip(0)) >= 0).all()


def test_ratios_without_a_denominator_are_left_out() -> None:
    tally = Tally(2)
    tally.set(Column.TOKENS, np.zeros(2))
    tally.add(Column.NLL, np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]))
    assert tally.figures() == {}
    assert tally.columns["nll"].tolist() == [1.0, 5.0]


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(Exception, match="head"):
        read_targets(torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(3, dtype=torch.long))
