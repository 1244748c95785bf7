"""What a sampler is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tide_core.contracts.errors import InvalidInputError

DEFAULT_BLOCK_SIZE = 32


class Schedule(StrEnum):
    """How steps and tokens are shared out where they do not divide evenly."""

    EVEN = "even"
    """The remainder first, and a last block that is longer than what is asked for stays masked behind it
    (LLaDA, SDAR)."""
    DLLM = "dllm"
    """As the dLLM tools do: every block has as many steps, rounded up; each step commits the rounded share of
    what is left; the last block is only as long as what is asked for."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How to denoise.

    Attributes:
        max_new_tokens: tokens to append to each prompt, at most.
        block_size: tokens per block; blocks are denoised one after the other.
        steps: forwards in all, spread evenly over the blocks, at least one a block; each commits an even
            share of its block's masked tokens, the most confident first. None: one token a step. Without
            effect with a threshold.
        schedule: how steps and tokens are shared out where they do not divide evenly.
        threshold: commit every token whose probability exceeds it, at least one a step, instead of counting
            steps.
        temperature: 0 takes the most probable token; above, Gumbel noise in float64 draws from the tempered
            softmax.
        guidance: classifier-free guidance scale; 0 none. The unconditional side sees masks in the prompt's
            place.
        seed: of the noise. Each row draws from its own stream, so that a prompt's text does not depend on its
            batch (up to rounding in the model).
        pads_prompt: left-pad each prompt to a whole number of blocks, so that the answer begins a block.
            Without it blocks count from the sequence's own token 0, as in training, and the answer's first
            block begins with the prompt's last tokens.
        is_bidirectional: every position sees every other, later masks included; no cache. For models trained
            so.
        uses_cache: keep keys and values of finished blocks. Without it each forward runs over everything:
            slower, and otherwise the same.
    """

    max_new_tokens: int = 256
    block_size: int = DEFAULT_BLOCK_SIZE
    steps: int | None = None
    schedule: Schedule = Schedule.EVEN
    threshold: float | None = None
    temperature: float = 0.0
    guidance: float = 0.0
    seed: int = 0
    pads_prompt: bool = True
    is_bidirectional: bool = False
    uses_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "block_size"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(self.steps is None or self.steps >= 1, "steps", "must be at least 1")
        _require(self.threshold is None or 0 <= self.threshold < 1, "threshold", "must lie in [0, 1)")
        _require(0 <= self.temperature < float("inf"), "temperature", "must be finite and not negative")
        _require(0 <= self.guidance < float("inf"), "guidance", "must be finite and not negative")


@dataclass(frozen=True)
class CommittedTokens:
    """Tokens that one step fixed in one row, for a streaming caller.

    Attributes:
        row: index of the prompt.
        positions: places in the answer (0 is the first new token), or in the whole sequence when infilling.
        token_ids: the tokens at these places.
        forward: number of the forward that fixed them, from 1.
    """

    row: int
    positions: list[int]
    token_ids: list[int]
    forward: int


CommitCallback = Callable[[CommittedTokens], None]


@dataclass(frozen=True)
class SampleResult:
    """Sampled tokens.

    Attributes:
        ids: for each prompt its new tokens, up to the end token and without it; when infilling the whole
            sequences.
        reached_end: for each prompt whether an end token closed the answer.
        forwards: model calls made for the batch.
        tokens_per_forward: tokens committed per model call and row, averaged over the rows.
    """

    ids: list[list[int]]
    reached_end: list[bool]
    forwards: int
    tokens_per_forward: float


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InvalidInputError(f"{name} {what}.", param=name)
