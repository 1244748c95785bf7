"""Synthetic prepared data and whole training runs in this process, small enough for a second each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tide_core.alignment.coverage import CoverageReport
from tide_core.contracts.job import (
    CheckpointPolicy,
    DataSource,
    DataSpec,
    Hyperparameters,
    JobSpec,
    ResolvedJobSpec,
    Resources,
    StudentSpec,
    TeacherSpec,
    resolve,
)
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.teacher import TeacherDescription
from tide_core.data.batches import BatchPlan
from tide_core.data.samples import PreparedSample
from tide_core.data.shards import PreparedSplit, SplitManifest, write_shard
from tide_core.models.decoder import Decoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.training.collective import Alone, Collective
from tide_core.training.digest import spec_digest
from tide_core.training.distiller import Distillation
from tide_core.training.drawing import recipe_for
from workers.reporting.recording import RecordingReporter
from workers.scores.local_transport import LocalTransport
from workers.student.checkpoint import CheckpointStore
from workers.student.loop import Outcome, Run, train
from workers.teachers.engine import TeacherEngine
from workers.teachers.tiny import tiny_teacher

VOCAB = 64
MASK = 63
BLOCK = 8
BEGINS_PRETOKEN = np.arange(VOCAB) % 3 == 0
STUDENT_CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "mask_token_id": MASK,
    "eos_token_id": 0,
}


def tiny_spec(
    variant: Variant | list[Any],
    pipeline: Pipeline,
    *,
    steps: int = 4,
    batch: int = 4,
    micro: int = 4,
    every: int = 100,
    **more: Any,
) -> ResolvedJobSpec:
    hyper: dict[str, Any] = {"learning_rate": 1e-2, "precision": "float32"} | more.pop("hyper", {})
    spec = JobSpec(
        teacher=TeacherSpec(model="/teacher"),
        student=StudentSpec(config=STUDENT_CONFIG, tokenizer="/tokenizer", block_size=BLOCK),
        objective=variant if isinstance(variant, Variant) else tuple(variant),
        data=DataSpec(sources=(DataSource(location="/data"),), student_length=32, teacher_length=48),
        hyperparameters=Hyperparameters(
            max_steps=steps, global_batch_size=batch, micro_batch_size=micro, **hyper
        ),
        resources=Resources(prefetch_steps=2),
        checkpoints=CheckpointPolicy(every_steps=every, keep=2),
        seed=7,
        **more,
    )
    return resolve(spec, pipeline=pipeline)


def chunked_sample(index: int, draws: np.random.Generator) -> PreparedSample:
    """Pipeline A: a prompt, then chunks of one or two tokens a side, then closing tokens without a chunk."""
    prompt, chunks = int(draws.integers(1, 7)), int(draws.integers(5, 14))
    ours, theirs = draws.integers(1, 3, chunks), draws.integers(1, 3, chunks)
    answer = int(ours.sum())
    closing = 1 + -(prompt + answer + 1) % BLOCK
    student_ids = draws.integers(1, MASK, prompt + answer + closing)
    student_ids[prompt + answer :] = 0
    labels = student_ids.copy()
    labels[:prompt] = -100
    before, after = int(draws.integers(1, 5)), 2
    none = np.full(64, -1)
    teacher_chunks = np.concatenate([none[:before], np.repeat(np.arange(chunks), theirs), none[:after]])
    student_chunks = np.concatenate([none[:prompt], np.repeat(np.arange(chunks), ours), none[:closing]])
    return PreparedSample(
        index,
        0,
        student_ids.astype(np.int32),
        labels.astype(np.int32),
        draws.integers(1, MASK, teacher_chunks.size).astype(np.int32),
        student_chunk_ids=student_chunks.astype(np.int32),
        teacher_chunk_ids=teacher_chunks.astype(np.int32),
    )


def aligned_sample(index: int, draws: np.random.Generator) -> PreparedSample:
    """Pipeline B: the teacher's prompt is longer; one token in ten has no counterpart."""
    sample = chunked_sample(index, draws)
    is_answer = (sample.labels != -100) & (sample.student_ids != 0)
    shift = int(draws.integers(0, 5))
    positions = np.where(
        is_answer & (draws.random(is_answer.size) > 0.1), np.arange(is_answer.size) + shift, -1
    )
    teacher_ids = draws.integers(1, MASK, is_answer.size + shift)
    teacher_ids[positions[positions >= 0]] = sample.student_ids[positions >= 0]
    return replace(
        sample,
        teacher_ids=teacher_ids.astype(np.int32),
        student_chunk_ids=None,
        teacher_chunk_ids=None,
        teacher_positions=positions.astype(np.int32),
    )


def tiny_samples(pipeline: Pipeline, count: int = 12) -> list[PreparedSample]:
    draws = np.random.default_rng(11)
    make = chunked_sample if pipeline is Pipeline.CROSS_TOKENIZER else aligned_sample
    return [make(index, draws) for index in range(count)]


def tiny_split(folder: Path, samples: list[PreparedSample]) -> PreparedSplit:
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(samples, folder / "train-0.arrow")
    shards = (("train-0.arrow", len(samples)),)
    return PreparedSplit(folder, SplitManifest(len(samples), shards, {}, {}, CoverageReport(), 0, 0, 0))


def tiny_student(seed: int = 5) -> BlockDiffusionStudent:
    config = STUDENT_CONFIG | {"model_type": "a2d-qwen3", "block_size": BLOCK}
    return BlockDiffusionStudent.from_config(config, seed=seed)


@dataclass
class Bench:
    """A teacher with its engine, and runs against it."""

    folder: Path
    teacher: Decoder
    transport: LocalTransport

    def run(
        self,
        spec: ResolvedJobSpec,
        *,
        student: BlockDiffusionStudent | None = None,
        collective: Collective | None = None,
        reporter: RecordingReporter | None = None,
        name: str = "run",
        samples: list[PreparedSample] | None = None,
    ) -> Run:
        pipeline = Pipeline(spec.pipeline)
        rows = samples if samples is not None else tiny_samples(pipeline)
        plan = BatchPlan(
            tiny_split(self.folder / f"data-{name}", rows),
            seed=spec.seed,
            global_batch_size=spec.hyperparameters.global_batch_size,
            rows=len(rows),
        )
        is_shared = pipeline is Pipeline.SHARED_TOKENIZER
        distillation = Distillation(
            spec=spec,
            recipe=recipe_for(
                spec,
                job_id="job",
                lease=None,
                shared_vocab=60 if is_shared else 0,
                begins_pretoken=BEGINS_PRETOKEN,
            ),
            plan=plan,
            student=student or tiny_student(),
            teacher_head=self.teacher.lm_head.weight.detach() if is_shared else None,
            collective=collective or Alone(),
        )
        return Run(
            distillation=distillation,
            spec_digest=spec_digest(spec, "data"),
            transport=self.transport,
            reporter=reporter,
            store=CheckpointStore(str(self.folder / name), spec.checkpoints.keep),
        )

    def train(self, spec: ResolvedJobSpec, **more: Any) -> tuple[RecordingReporter, Run, Outcome]:
        reporter = more.pop("reporter", None) or RecordingReporter()
        run = self.run(spec, reporter=reporter, **more)
        return reporter, run, train(run)


def make_bench(folder: Path) -> tuple[Bench, TeacherEngine]:
    torch.set_num_threads(1)
    teacher = tiny_teacher("wedlm", seed=3)
    begins = np.resize(BEGINS_PRETOKEN, teacher.vocab_size)
    engine = TeacherEngine(teacher, fingerprint="f", tokenizer_fingerprint="t", begins_pretoken=begins)
    description = TeacherDescription(
        fingerprint="f",
        tokenizer_fingerprint="t",
        architecture="wedlm",
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        mask_token_id=teacher.mask_token_id,
        parameters=0,
        dtype="float32",
        device="cpu",
        weight_bytes=0,
    )
    return Bench(folder, teacher, LocalTransport(engine, description)), engine


def change(run: Run, **fields: Any) -> Run:
    """The run with other fields of its distillation."""
    return replace(run, distillation=replace(run.distillation, **fields))
