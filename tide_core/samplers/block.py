"""Block-by-block sampling from a masked diffusion model.

In: a model, the ids of a prompt and settings. Out: the ids of an answer, block by block.

Blocks are denoised from left to right, each over several forwards that fix a few tokens at a time (BD3LM,
arXiv 2503.09573; confidence threshold as in LLaDA2.0, arXiv 2512.15745). Finished blocks form a clean prefix
whose keys and values are cached. A finished block's own keys and values come out of the first forward of the
next block, which runs
over both: so the cache costs no forward of its own, and cached and uncached sampling make the same forwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.models.cache import KeyValueCache
from tide_core.models.decoder import Decoder
from tide_core.samplers.canvas import Canvas, answer_canvas, infill_canvas
from tide_core.samplers.choosing import above_threshold, even_share, most_confident, predict, round_shares
from tide_core.samplers.settings import (
    CommitCallback,
    CommittedTokens,
    SampleResult,
    SamplerSettings,
    Schedule,
)


def sample(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplerSettings | None = None,
    *,
    eos_token_ids: Sequence[int] | None = None,
    on_commit: CommitCallback | None = None,
) -> SampleResult:
    """Continue a batch of prompts.

    Args:
        model: a student (or any decoder, under the attention that ``settings`` describe).
        prompts: token ids, of any lengths.
        settings: see ``SamplerSettings``.
        eos_token_ids: tokens that end an answer; by default those of the model's configuration.
        on_commit: called for every row and step with the tokens fixed, in the order in which they are.

    Returns:
        The new tokens of each prompt, cut before its first end token.

    Raises:
        InvalidInputError: no prompt, a token outside the vocabulary, or a model without mask token.
        NonFiniteError: the model gave NaN or infinite logits.
    """
    settings = settings or SamplerSettings()
    _check_tokens(prompts, model.vocab_size)
    canvas = answer_canvas(
        prompts,
        max_new_tokens=settings.max_new_tokens,
        block_size=settings.block_size,
        pads_prompt=settings.pads_prompt,
        shortens_last_block=settings.schedule is Schedule.DLLM,
        mask_token_id=model.mask_token_id,
        device=model.device,
    )
    ends = model.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids)
    denoiser = _Denoiser(model, canvas, settings, ends, on_commit)
    denoiser.run()
    ids, reached_end = [], []
    for row in range(len(prompts)):
        answer = canvas.ids[row, canvas.is_answer[row]].tolist()
        end = next((place for place, token in enumerate(answer) if token in ends), None)
        ids.append(answer[:end])
        reached_end.append(end is not None)
    return SampleResult(ids, reached_end, denoiser.forwards, denoiser.tokens_per_forward)


def infill(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    settings: SamplerSettings | None = None,
    *,
    is_masked: Sequence[Sequence[bool]] | None = None,
    on_commit: CommitCallback | None = None,
) -> SampleResult:
    """Fill gaps in given sequences. A gap sees its own block whole and, unless bidirectional, only earlier
    blocks.

    Args:
        model: a student.
        sequences: token ids with gaps.
        settings: see ``SamplerSettings``; ``max_new_tokens`` and ``pads_prompt`` do not apply.
        is_masked: True where a token is to be found; by default wherever the mask token stands.
        on_commit: as in ``sample``; positions count from the sequence's token 0.

    Returns:
        The whole sequences.

    Raises:
        InvalidInputError: no sequence, flags of another length, or a token outside the vocabulary.
        NonFiniteError: the model gave NaN or infinite logits.
    """
    settings = settings or SamplerSettings()
    _check_tokens(sequences, model.vocab_size)
    mask = model.mask_token_id
    flags = is_masked if is_masked is not None else [[token == mask for token in row] for row in sequences]
    canvas = infill_canvas(
        sequences, flags, block_size=settings.block_size, mask_token_id=mask, device=model.device
    )
    denoiser = _Denoiser(model, canvas, settings, (), on_commit)
    denoiser.run()
    ids = [row[: len(sequence)] for row, sequence in zip(canvas.ids.tolist(), sequences, strict=True)]
    return SampleResult(ids, [False] * len(ids), denoiser.forwards, denoiser.tokens_per_forward)


class _Denoiser:
    """The loop over blocks and steps; changes the canvas in place."""

    def __init__(
        self,
        model: Decoder,
        canvas: Canvas,
        settings: SamplerSettings,
        ends: tuple[int, ...],
        on_commit: CommitCallback | None,
    ) -> None:
        self.model = model
        self.canvas = canvas
        self.settings = settings
        self.ends = torch.tensor(ends, dtype=torch.long, device=canvas.ids.device)
        self.on_commit = on_commit
        self.forwards = 0
        self.committed = 0
        self.position_ids = canvas.position_ids()
        batch, width = canvas.ids.shape
        self.generators = [_generator(settings.seed, row, canvas.ids.device) for row in range(batch)]
        is_cached = settings.uses_cache and not settings.is_bidirectional
        self.cache = KeyValueCache(width) if is_cached else None

    @property
    def tokens_per_forward(self) -> float:
        return self.committed / max(1, self.forwards) / len(self.canvas.ids)

    @torch.inference_mode()
    def run(self) -> None:
        was_training = self.model.training
        self.model.eval()
        try:
            open_blocks = [
                block
                for block in range(self.canvas.blocks)
                if self.canvas.is_masked[:, self.canvas.span(block)].any()
            ]
            for order, block in enumerate(open_blocks):
                self._denoise_block(block, _block_steps(self.settings, order, len(open_blocks)))
                if not bool(self.canvas.is_masked.any()):
                    break
        finally:
            self.model.train(was_training)

    def _denoise_block(self, block: int, steps: int | None) -> None:
        span = self.canvas.span(block)
        masked = self.canvas.is_masked[:, span].sum(-1)
        counts = _step_counts(masked, steps or int(masked.max()), self.settings.schedule)
        step = 0
        while bool(self.canvas.is_masked[:, span].any()):
            tokens, confidence = self._predict(span)
            is_masked = self.canvas.is_masked[:, span]
            if self.settings.threshold is not None:
                is_chosen = above_threshold(confidence, is_masked, self.settings.threshold)
            else:
                is_chosen = most_confident(confidence, is_masked, counts[step])
            assert bool(is_chosen.any()), "a step that commits nothing would repeat itself for ever"
            self._commit(span, tokens, is_chosen)
            step += 1

    def _predict(self, span: slice) -> tuple[Int[Tensor, "batch block"], Float32[Tensor, "batch block"]]:
        is_masked = self.canvas.is_masked[:, span]
        hidden = self._read_hidden(span)
        batch_row = is_masked.nonzero()[:, 0]
        conditional = hidden[: len(is_masked)][is_masked]
        unconditional = hidden[len(is_masked) :][is_masked] if self.settings.guidance else None

        def logits_of(rows: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
            logits: Tensor = self.model.lm_head(conditional[rows]).float()
            if unconditional is None:
                return logits
            base: Tensor = self.model.lm_head(unconditional[rows]).float()
            return base + (1 + self.settings.guidance) * (logits - base)

        tokens, confidence = predict(
            logits_of,
            batch_row,
            vocab_size=self.model.vocab_size,
            forbidden_token=self.model.mask_token_id,
            temperature=self.settings.temperature,
            generators=self.generators,
        )
        all_tokens = self.canvas.ids[:, span].masked_scatter(is_masked, tokens)
        return all_tokens, torch.zeros(is_masked.shape, device=hidden.device).masked_scatter(
            is_masked, confidence
        )

    def _read_hidden(self, span: slice) -> Float[Tensor, "rows block hidden"]:
        """Hidden states of a block; with guidance the unconditional rows follow the conditional ones."""
        canvas = self.canvas
        begin = self.cache.length if self.cache is not None else 0
        end = canvas.ids.shape[1] if self.settings.is_bidirectional else span.stop
        ids, positions = canvas.ids[:, begin:end], self.position_ids[:, begin:end]
        pattern = self._pattern(begin, end)
        if self.settings.guidance:
            hidden_prompt = canvas.ids.masked_fill(~canvas.is_answer, self.model.mask_token_id)[:, begin:end]
            ids = torch.cat((ids, hidden_prompt))
            positions, pattern = positions.repeat(2, 1), pattern.repeat(2, 1, 1, 1)
        hidden: Tensor = self.model(ids, pattern, positions, self.cache)
        self.forwards += 1
        if self.cache is not None:
            # Everything before this block is clean and will not change: it joins the prefix.
            self.cache.advance(span.start - begin)
        return hidden[:, span.start - begin : span.stop - begin]

    def _pattern(self, begin: int, end: int) -> Bool[Tensor, "batch 1 query key"]:
        canvas = self.canvas
        is_real = canvas.is_real[:, None, None, :end]
        if self.settings.is_bidirectional:
            return is_real.expand(-1, -1, end - begin, -1)
        blocks = torch.arange(end, device=canvas.ids.device) // canvas.block_size
        return is_real & (blocks[None, None, begin:, None] >= blocks)

    def _commit(
        self, span: slice, tokens: Int[Tensor, "batch block"], is_chosen: Bool[Tensor, "batch block"]
    ) -> None:
        canvas = self.canvas
        canvas.ids[:, span] = torch.where(is_chosen, tokens, canvas.ids[:, span])
        canvas.is_masked[:, span] &= ~is_chosen
        self.committed += int(is_chosen.sum())
        if self.on_commit is not None:
            self._report(span.start, tokens, is_chosen, self.on_commit)
        self._close_ended_rows()

    def _report(
        self,
        start: int,
        tokens: Int[Tensor, "batch block"],
        is_chosen: Bool[Tensor, "batch block"],
        on_commit: CommitCallback,
    ) -> None:
        for row in is_chosen.any(-1).nonzero()[:, 0].tolist():
            columns = is_chosen[row].nonzero()[:, 0]
            positions = (columns + start - self.canvas.origin[row]).tolist()
            on_commit(CommittedTokens(row, positions, tokens[row, columns].tolist(), self.forwards))

    def _close_ended_rows(self) -> None:
        """Stop rows whose answer is decided up to an end token: whatever would follow is cut off anyway."""
        if not len(self.ends):
            return
        canvas = self.canvas
        is_end = canvas.is_answer & ~canvas.is_masked & torch.isin(canvas.ids, self.ends)
        is_before_first_mask = canvas.is_masked.long().cumsum(-1) == 0
        has_ended = (is_end & is_before_first_mask).any(-1)
        canvas.is_masked &= ~has_ended[:, None]


def _block_steps(settings: SamplerSettings, order: int, blocks: int) -> int | None:
    """Steps of one of the blocks that are denoised; None: one token a step."""
    steps = settings.steps
    if steps is None:
        return None
    if settings.schedule is Schedule.DLLM:
        return -(-steps // blocks)
    return max(1, steps // blocks + (order < steps % blocks))


def _step_counts(
    masked: Int[Tensor, " batch"], steps: int, schedule: Schedule
) -> list[Int[Tensor, " batch"]]:
    """How many of each row's masked positions each step commits."""
    if schedule is Schedule.EVEN:
        return [even_share(masked, step, steps) for step in range(steps)]
    rows = [round_shares(count, steps) for count in masked.tolist()]
    columns = zip_longest(*rows, fillvalue=0)
    return [torch.tensor(column, device=masked.device) for column in columns]


def _generator(seed: int, row: int, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _check_tokens(rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    if not rows:
        raise InvalidInputError("There is nothing to sample: give at least one prompt.", param="prompts")
    for index, row in enumerate(rows):
        wrong = [token for token in row if not 0 <= token < vocab_size]
        if wrong:
            raise InvalidInputError(
                f"Prompt {index} holds token {wrong[0]}, outside the vocabulary of {vocab_size}: use the "
                "model's own tokenizer.",
                param="prompts",
            )
