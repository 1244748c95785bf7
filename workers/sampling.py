"""``tide sample``: text in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tide_core.checkpoints.special_tokens import find_special_tokens
from tide_core.checkpoints.tokenizer_folder import load_tokenizer, read_chat_template
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.families import find_family
from tide_core.data.conversations import Message
from tide_core.data.templates import ChatTemplate
from tide_core.models.decoder import Decoder
from tide_core.models.dense import DenseConfig
from tide_core.models.loading import parse_dtype
from tide_core.models.teachers.adapter import load_teacher
from tide_core.samplers.block import sample
from tide_core.samplers.settings import DEFAULT_BLOCK_SIZE, CommittedTokens, SamplerSettings, Schedule
from workers.storage import materialise_model

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """One prompt and how to answer it; see ``SamplerSettings`` for the sampling fields. Where ``block_size``
    or ``pads_prompt`` is None, the model's family decides, as its own tools do.
    """

    checkpoint: str
    prompt: str
    max_new_tokens: int = 256
    steps: int | None = None
    threshold: float | None = None
    temperature: float = 0.0
    guidance: float = 0.0
    seed: int = 0
    block_size: int | None = None
    schedule: Schedule = Schedule.EVEN
    pads_prompt: bool | None = None
    is_raw: bool = False
    device: str = AUTO
    dtype: str = AUTO


@dataclass(frozen=True)
class SamplingAnswer:
    """The text and what it cost."""

    text: str
    tokens: int
    reached_end: bool
    forwards: int
    tokens_per_forward: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        ending = "" if self.reached_end else ", cut at the limit"
        return (
            f"[{self.tokens} tokens, {self.forwards} forwards, {self.tokens_per_forward:.2f} tokens a "
            f"forward, {self.seconds:.1f} s{ending}]"
        )


def sample_text(request: SamplingRequest, on_text: Callable[[str], None] | None = None) -> SamplingAnswer:
    """Answer one prompt.

    Args:
        request: checkpoint, prompt and settings.
        on_text: called with each further piece of the answer, in reading order, once all before it is
            decided.

    Raises:
        InvalidInputError: settings out of range, an empty prompt, or a device that is not there.
        CheckpointError: the checkpoint cannot be loaded.
        TokenizerError: it has no tokenizer, or no mask token.
    """
    folder = materialise_model(request.checkpoint)
    tokenizer = load_tokenizer(folder)
    prompt = _prompt_ids(tokenizer, folder, request)
    model = load_teacher(folder, dtype=_dtype(request.dtype), device=_device(request.device))
    settings = _settings(request, model)
    stream = TextStream(tokenizer, _end_ids(tokenizer, folder, model), on_text) if on_text else None
    start = time.perf_counter()
    result = sample(
        model,
        [prompt],
        settings,
        eos_token_ids=_end_ids(tokenizer, folder, model),
        on_commit=stream.accept if stream else None,
    )
    seconds = time.perf_counter() - start
    text = tokenizer.decode(result.ids[0])
    if stream:
        stream.finish(text)
    return SamplingAnswer(
        text, len(result.ids[0]), result.reached_end[0], result.forwards, result.tokens_per_forward, seconds
    )


class TextStream:
    """Gives out text from left to right although tokens are decided in any order."""

    def __init__(self, tokenizer: Tokenizer, ends: tuple[int, ...], on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self.on_text = on_text
        self.tokens: dict[int, int] = {}
        self.given = ""

    def accept(self, committed: CommittedTokens) -> None:
        self.tokens |= dict(zip(committed.positions, committed.token_ids, strict=True))
        prefix: list[int] = []
        while (token := self.tokens.get(len(prefix))) is not None and token not in self.ends:
            prefix.append(token)
        # A character cut in the middle decodes to replacement characters that the next token will correct.
        self._give(self.tokenizer.decode(prefix).rstrip("\ufffd"))

    def finish(self, text: str) -> None:
        self._give(text)

    def _give(self, text: str) -> None:
        if text.startswith(self.given) and len(text) > len(self.given):
            self.on_text(text[len(self.given) :])
            self.given = text


def _settings(request: SamplingRequest, model: Decoder) -> SamplerSettings:
    own = model.config.block_size if isinstance(model.config, DenseConfig) else None
    family = find_family(model.config.model_type)
    assert family is not None, "only known families are loaded"
    pads_prompt = request.pads_prompt
    return SamplerSettings(
        max_new_tokens=request.max_new_tokens,
        block_size=request.block_size or own or DEFAULT_BLOCK_SIZE,
        steps=request.steps,
        schedule=request.schedule,
        threshold=request.threshold,
        temperature=request.temperature,
        guidance=request.guidance,
        seed=request.seed,
        pads_prompt=not family.counts_from_start if pads_prompt is None else pads_prompt,
        is_bidirectional=not family.knows_blocks,
    )


def _prompt_ids(tokenizer: Tokenizer, folder: Path, request: SamplingRequest) -> list[int]:
    text = request.prompt
    if not request.is_raw and read_chat_template(folder) is not None:
        template = ChatTemplate.from_folder(folder, {"enable_thinking": False})
        text = template.render([Message("user", text)], add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise InvalidInputError("The prompt is empty.", param="prompt")
    return ids


def _end_ids(tokenizer: Tokenizer, folder: Path, model: Decoder) -> tuple[int, ...]:
    """End tokens of the model's configuration and of the tokenizer, which for chat models may differ."""
    return tuple({*model.eos_token_ids, *find_special_tokens(folder, tokenizer).stop_ids})


def _device(name: str) -> str:
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(f"There is no device {name!r} here: {error}", param="device") from error
    return name


def _dtype(name: str) -> torch.dtype | None:
    return None if name == AUTO else parse_dtype(name)
