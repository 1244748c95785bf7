"""What both arms of a step are measured on: sizes, models with drawn weights, samples and objectives.

Everything is a function of the sizes and a seed, so that two arms, or two processes, work on the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from tide_core.contracts.labels import IGNORED_LABEL, NO_CHUNK
from tide_core.contracts.objective import (
    CompDemoContext,
    FullContext,
    ObjectiveTerm,
    Pipeline,
    Variant,
    expand_variant,
    needs_teacher,
)
from tide_core.contracts.scores import Layout, Want
from tide_core.data.samples import PreparedSample
from tide_core.models.decoder import Decoder, DecoderT
from tide_core.models.registry import model_class
from tide_core.models.student import BlockDiffusionStudent
from tide_core.schedules.noise import LinearNoise
from tide_core.training.drawing import BatchRecipe

END_ID = 0
CLOSING_TOKENS = 4
"""End-of-sequence tokens behind an answer; they are trained and belong to no chunk."""
PROMPT_SHARE = 0.5
CHUNK_SIZES = (0.85, 0.1, 0.05)
"""Shares of chunks of one, two and three tokens, near those of Llama-like tokenizers."""
PROGRESS = 0.5
"""Training progress that TIDAL's interpolation is taken at."""

FULL_CONTEXT = FullContext()
TeacherKind = Literal["mixture", "dense"]

TRUE_VOCAB = 151_936
QWEN3_0_6B = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}
WEDLM_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
}
LLADA2_MINI = {
    "vocab_size": 157_184,
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "rope_theta": 600_000.0,
}
"""Shapes of the genuine models; only the weights are drawn."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a step. The defaults are a student of 11 M, teachers of 57 M (mixture) and 42 M (dense).

    Attributes:
        vocab: of student and teacher.
        length: tokens of a sequence, half of them prompt.
        batch: sequences of a step.
        block: tokens of a diffusion block.
        hidden, layers: of the student.
        teacher_hidden, teacher_layers: of the teacher.
        weight_scale: standard deviation of the drawn weights.
        seed: of weights, samples and masks.
        true_size: 1 for the shapes of Qwen3-0.6B, LLaDA2.0-mini and WeDLM-8B, whatever the sizes above say;
            give ``TRUE_VOCAB`` as the vocabulary with it.
    """

    vocab: int = 32_000
    length: int = 256
    batch: int = 8
    block: int = 32
    hidden: int = 256
    layers: int = 4
    teacher_hidden: int = 512
    teacher_layers: int = 6
    weight_scale: float = 0.02
    seed: int = 17
    true_size: int = 0

    @property
    def mask_id(self) -> int:
        return self.vocab - 1

    @property
    def shared_vocab(self) -> int:
        """Ids that mean the same to both models: all but the last few, as with genuine tokenizers."""
        return self.vocab - max(1, self.vocab // 500)


@dataclass(frozen=True)
class Scenario:
    """An objective in its pipeline, with the teacher that it asks."""

    name: str
    pipeline: Pipeline
    terms: tuple[ObjectiveTerm, ...]
    context: FullContext | CompDemoContext = FULL_CONTEXT

    @property
    def is_cross(self) -> bool:
        return self.pipeline is Pipeline.CROSS_TOKENIZER

    @property
    def asks_teacher(self) -> bool:
        return needs_teacher(self.terms)

    @property
    def teacher(self) -> TeacherKind:
        return "mixture" if self.is_cross else "dense"


SCENARIOS = {
    name: Scenario(name, pipeline, *expand_variant(variant, pipeline))
    for name, pipeline, variant in (
        ("ce", Pipeline.CROSS_TOKENIZER, Variant.NONE),
        ("calm", Pipeline.CROSS_TOKENIZER, Variant.BASELINE),
        ("reverse_calm", Pipeline.CROSS_TOKENIZER, Variant.TIDE_CROSS),
        ("calm_tidal_compdemo", Pipeline.CROSS_TOKENIZER, Variant.TIDE_SHARED),
        ("kl", Pipeline.SHARED_TOKENIZER, Variant.BASELINE),
        ("reverse_kl", Pipeline.SHARED_TOKENIZER, Variant.TIDE_CROSS),
        ("tidal_compdemo", Pipeline.SHARED_TOKENIZER, Variant.TIDE_SHARED),
    )
}
"""Every variant in both pipelines; cross-entropy alone is the same in either."""


def recipe(scenario: Scenario, sizes: Sizes, *, job_id: str = "bench", weight: float = 1.0) -> BatchRecipe:
    """What decides the masks of a scenario, and its question to the teacher."""
    context = scenario.context
    want = Want.TARGET_LOG_PROB if scenario.is_cross else Want.HIDDEN
    return BatchRecipe(
        seed=sizes.seed,
        noise=LinearNoise(),
        min_timestep=1e-3,
        pipeline=scenario.pipeline,
        split=context.ratio if isinstance(context, CompDemoContext) else None,
        block_size=sizes.block,
        layout=Layout.BIDIRECTIONAL if scenario.is_cross else Layout.BLOCK_STAIRCASE,
        want=want if scenario.asks_teacher else None,
        shared_vocab=0 if scenario.is_cross else sizes.shared_vocab,
        job_id=job_id,
        weight=weight,
    )


def student(sizes: Sizes, *, device: str = "cpu") -> BlockDiffusionStudent:
    """A student of the Qwen3 shape with drawn weights in float32, embeddings tied."""
    heads = max(2, sizes.hidden // 64)
    config = _shared_config(sizes, sizes.hidden, sizes.layers) | {
        "model_type": "a2d-qwen3",
        "intermediate_size": 3 * sizes.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": sizes.hidden // heads,
        "tie_word_embeddings": True,
    }
    if sizes.true_size:
        config |= QWEN3_0_6B
    return _draw_model(BlockDiffusionStudent, config, sizes.seed, torch.float32, device)


def teacher(
    kind: TeacherKind, sizes: Sizes, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Decoder:
    """A frozen teacher with drawn weights: LLaDA2's mixture of experts, or WeDLM's dense shape."""
    architecture = "llada2_moe" if kind == "mixture" else "wedlm"
    config = teacher_config(kind, sizes)
    model = _draw_model(model_class(architecture), config, sizes.seed + 1, dtype, device)
    return model.eval().requires_grad_(False)


def _draw_model(
    kind: type[DecoderT], config: dict[str, Any], seed: int, dtype: torch.dtype, device: str
) -> DecoderT:
    """Drawn weights; on an accelerator they are drawn there, since billions would take the CPU minutes."""
    if device == "cpu":
        return kind.from_config(config, seed=seed, dtype=dtype)
    model = kind._empty(kind._as_config(config), dtype, device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.checkpoint_tensors().items():
            if tensor.ndim == 1:
                tensor.fill_(1.0 if key.endswith("norm.weight") else 0.0)
            else:
                tensor.normal_(0.0, model.config.initializer_range, generator=generator)
    return model


def teacher_config(kind: TeacherKind, sizes: Sizes) -> dict[str, Any]:
    """Fields of the teacher's ``config.json``."""
    hidden = sizes.teacher_hidden
    heads = max(2, hidden // 64)
    config = _shared_config(sizes, hidden, sizes.teacher_layers) | {
        "intermediate_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": hidden // heads,
        "tie_word_embeddings": False,
    }
    if kind == "dense":
        config |= {"model_type": "wedlm", "qk_norm": True, "attention_bias": False}
        return config | (WEDLM_8B if sizes.true_size else {})
    config |= {
        "model_type": "llada2_moe",
        "moe_intermediate_size": max(8, hidden * 9 // 32),
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
    }
    return config | (LLADA2_MINI if sizes.true_size else {})


def _shared_config(sizes: Sizes, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "initializer_range": sizes.weight_scale,
        "mask_token_id": sizes.mask_id,
        "eos_token_id": END_ID,
    }


def samples(scenario: Scenario, sizes: Sizes, steps: int) -> list[PreparedSample]:
    """Enough samples for so many steps without a repetition."""
    draws = np.random.default_rng(sizes.seed)
    make: Callable[[int, Sizes, np.random.Generator], PreparedSample]
    make = _chunked_sample if scenario.is_cross else _aligned_sample
    return [make(index, sizes, draws) for index in range(steps * sizes.batch)]


def batch_of(rows: Sequence[PreparedSample], sizes: Sizes, step: int) -> list[PreparedSample]:
    """The samples of a step."""
    first = step * sizes.batch
    return list(rows[first : first + sizes.batch])


def _ids(count: int, sizes: Sizes, draws: np.random.Generator) -> np.ndarray:
    """Ids of plain tokens below the shared vocabulary, the end token left out."""
    return draws.integers(1, sizes.shared_vocab, count).astype(np.int32)


def _chunked_sample(index: int, sizes: Sizes, draws: np.random.Generator) -> PreparedSample:
    """Pipeline A: chunks of one to three tokens a side, most of one, about as many tokens for the teacher."""
    prompt = int(sizes.length * PROMPT_SHARE)
    answer = sizes.length - prompt - CLOSING_TOKENS
    ours = draws.choice([1, 2, 3], answer, p=CHUNK_SIZES)
    ours = ours[: int(np.searchsorted(np.cumsum(ours), answer)) + 1]
    ours[-1] -= int(ours.sum()) - answer
    theirs = draws.permutation(ours)
    numbers = np.arange(len(ours), dtype=np.int32)
    student_ids = _ids(sizes.length, sizes, draws)
    student_ids[sizes.length - CLOSING_TOKENS :] = END_ID
    return PreparedSample(
        sample_index=index,
        source_index=0,
        student_ids=student_ids,
        labels=_labels(student_ids, prompt),
        teacher_ids=_ids(prompt + int(theirs.sum()), sizes, draws),
        student_chunk_ids=np.concatenate(
            [_none(prompt), np.repeat(numbers, ours), _none(CLOSING_TOKENS)], dtype=np.int32
        ),
        teacher_chunk_ids=np.concatenate([_none(prompt), np.repeat(numbers, theirs)], dtype=np.int32),
    )


def _aligned_sample(index: int, sizes: Sizes, draws: np.random.Generator) -> PreparedSample:
    """Pipeline B: the same answer behind the teacher's own prompt, which is as long as the student's."""
    prompt = int(sizes.length * PROMPT_SHARE)
    student_ids = _ids(sizes.length, sizes, draws)
    student_ids[sizes.length - CLOSING_TOKENS :] = END_ID
    positions = np.arange(sizes.length, dtype=np.int32)
    positions[:prompt] = -1
    positions[sizes.length - CLOSING_TOKENS :] = -1
    return PreparedSample(
        sample_index=index,
        source_index=0,
        student_ids=student_ids,
        labels=_labels(student_ids, prompt),
        teacher_ids=np.concatenate([_ids(prompt, sizes, draws), student_ids[prompt:]], dtype=np.int32),
        teacher_positions=positions,
    )


def _labels(student_ids: np.ndarray, prompt: int) -> np.ndarray:
    labels = student_ids.copy()
    labels[:prompt] = IGNORED_LABEL
    return labels


def _none(count: int) -> np.ndarray:
    return np.full(count, NO_CHUNK, dtype=np.int32)


def as_json(sizes: Sizes) -> dict[str, Any]:
    """The sizes as a result file holds them."""
    return asdict(sizes)
