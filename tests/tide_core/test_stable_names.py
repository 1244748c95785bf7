"""Names that people outside import: changing one of these is a breaking change."""

import importlib
import inspect

import pytest

FUNCTIONS = {
    "tide_core.schedules.tidal.tidal_lambda": "progress t * lambda_init lambda_max growth axes",
    "tide_core.schedules.tidal.timestep_weight": "t kind",
    "tide_core.masks.block_attention.block_attention_mask": "seq_len block_size * x0_first",
    "tide_core.masks.compdemo.complementary_split": "is_masked ratio key",
    "tide_core.losses.kl.forward_kl": "student_logits teacher_logits * temperature",
    "tide_core.losses.kl.reverse_kl": "student_logits teacher_logits * temperature",
    "tide_core.losses.tidal.tidal_kl": "student_logits teacher_logits lambda_t * temperature",
    "tide_core.losses.calm.chunk_log_probs": "token_log_probs chunk_ids n_chunks",
    "tide_core.losses.calm.forward_calm": "student_chunk_lp teacher_chunk_lp * temperature floor",
    "tide_core.losses.calm.reverse_calm": "student_chunk_lp teacher_chunk_lp * temperature floor",
    "tide_core.losses.calm.tidal_calm": "student_chunk_lp teacher_chunk_lp lambda_t * temperature floor",
    "tide_core.losses.calm.reverse_bernoulli_kl": "student_chunk_lp teacher_chunk_lp * temperature floor",
    "tide_core.alignment.chunks.align_chunks": "byte_lengths_a byte_lengths_b",
    "tide_core.alignment.bytes.token_byte_lengths": "tokenizer ids",
}
DEFAULTS = {
    "tide_core.schedules.tidal.tidal_lambda": {
        "lambda_init": 0.1,
        "lambda_max": 0.9,
        "growth": "cosine",
        "axes": "both",
    },
    "tide_core.masks.block_attention.block_attention_mask": {"x0_first": False},
    "tide_core.losses.calm.forward_calm": {"floor": 1e-7},
}
METHODS = {
    "tide_core.schedules.noise.LinearNoise": "alpha alpha_derivative weight",
    "tide_core.schedules.noise.CosineNoise": "alpha alpha_derivative weight",
    "tide_core.models.teachers.llada2_moe.LLaDA2MoeModel": "from_pretrained forward",
    "tide_core.models.teachers.llada2_moe.LLaDA2MoeConfig": "",
    "tide_core.models.student.BlockDiffusionStudent": "from_pretrained forward",
}


def member(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(function: object) -> str:
    words: list[str] = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name)
    return " ".join(words)


@pytest.mark.parametrize("path", FUNCTIONS)
def test_functions_keep_their_parameters(path: str) -> None:
    assert parameters(member(path)) == FUNCTIONS[path]


@pytest.mark.parametrize("path", DEFAULTS)
def test_functions_keep_their_defaults(path: str) -> None:
    found = inspect.signature(member(path)).parameters  # type: ignore[arg-type]
    assert {name: found[name].default for name in DEFAULTS[path]} == DEFAULTS[path]


@pytest.mark.parametrize("path", METHODS)
def test_classes_keep_their_methods(path: str) -> None:
    for method in METHODS[path].split():
        assert callable(getattr(member(path), method))
