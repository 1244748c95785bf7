"""One denoising step's two decisions: which token each masked position would take, and which positions to fix
now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from tide_core.contracts.errors import NonFiniteError

# Logits are made in slices of about this many numbers, so that memory does not grow with batch times
# vocabulary.
SLICE_ELEMENTS = 1 << 25

LogitsOf = Callable[[Int[Tensor, " row"]], Float[Tensor, "row vocab"]]


def predict(
    logits_of: LogitsOf,
    batch_row: Int[Tensor, " masked"],
    *,
    vocab_size: int,
    forbidden_token: int,
    temperature: float,
    generators: list[torch.Generator],
) -> tuple[Int[Tensor, " masked"], Float32[Tensor, " masked"]]:
    """The token that each masked position takes, and its probability at temperature 1.

    The mask token itself has probability zero (MDLM, arXiv 2406.07524). With a temperature the token is
    ``argmax(logits / temperature + g)`` in float64, ``g`` standard Gumbel noise: in lower precision the
    noise's tail is cut off and the draw is colder than asked for.

    Args:
        logits_of: logits of the masked positions with the given indices.
        batch_row: the batch row of each masked position, in order.
        vocab_size: width of the logits.
        forbidden_token: the mask token.
        temperature: 0 for the most probable token.
        generators: one source of noise for each batch row.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    tokens = torch.empty_like(batch_row)
    confidence = torch.empty(len(batch_row), dtype=torch.float32, device=batch_row.device)
    for rows in _slices(batch_row, vocab_size, by_batch_row=temperature > 0):
        logits = logits_of(rows).float()
        # A sum is infinite or NaN as soon as one of its terms is, and costs no tensor of the logits' size.
        if not bool(torch.isfinite(logits.sum(-1)).all()):
            raise NonFiniteError(
                "The model gave NaN or infinite logits: its weights are damaged.", param="logits"
            )
        logits[:, forbidden_token] = float("-inf")
        keys = logits
        if temperature > 0:
            keys = logits.double() / temperature + _gumbel(logits, generators[int(batch_row[rows[0]])])
        tokens[rows] = keys.argmax(-1)
        log_probs = logits.gather(1, tokens[rows, None])[:, 0] - logits.logsumexp(-1)
        confidence[rows] = log_probs.exp()
    return tokens, confidence


def most_confident(
    confidence: Float32[Tensor, "batch block"],
    is_masked: Bool[Tensor, "batch block"],
    counts: Int[Tensor, " batch"],
) -> Bool[Tensor, "batch block"]:
    """The ``counts`` most confident masked positions of each row; the leftmost first where they tie."""
    order = confidence.masked_fill(~is_masked, -1.0).argsort(dim=-1, descending=True, stable=True)
    is_chosen: Tensor = is_masked & (order.argsort(-1) < counts[:, None])
    return is_chosen


def above_threshold(
    confidence: Float32[Tensor, "batch block"], is_masked: Bool[Tensor, "batch block"], threshold: float
) -> Bool[Tensor, "batch block"]:
    """Every masked position surer than the threshold, and the surest of each row in any case (LLaDA2.0)."""
    one = torch.ones(len(confidence), dtype=torch.long, device=confidence.device)
    return (is_masked & (confidence > threshold)) | most_confident(confidence, is_masked, one)


def even_share(masked: Int[Tensor, " batch"], step: int, steps: int) -> Int[Tensor, " batch"]:
    """How many of ``masked`` positions the given step of ``steps`` commits: equal shares, the remainder
    first.
    """
    return masked // steps + (step < masked % steps).long()


def round_shares(masked: int, steps: int) -> list[int]:
    """How many of ``masked`` positions each step commits in the dLLM tools: the expected number of what is
    left, rounded half to even; steps that would commit nothing are left out.

    With ``t`` running from 1 to 0 in equal parts, a mask survives from ``t`` to ``s`` with probability
    ``s / t`` (linear schedule). The probability is computed in float32, as there: it decides ties.
    """
    levels = torch.arange(steps, -1, -1, dtype=torch.float64).div(steps).float()
    # 1 - (1 - t) is not t in float32.
    masked_share = 1 - (1 - levels)
    shares = []
    for step in range(steps):
        survival = float(masked_share[step + 1] / masked_share[step])
        # Python rounds half to even too.
        share = min(masked, round(masked * (1 - survival)))
        masked -= share
        if share:
            shares.append(share)
    return shares


def _slices(
    batch_row: Int[Tensor, " masked"], vocab_size: int, *, by_batch_row: bool
) -> Iterator[Int[Tensor, " row"]]:
    indices = torch.arange(len(batch_row), device=batch_row.device)
    if by_batch_row:
        yield from indices.split_with_sizes([size for size in batch_row.bincount().tolist() if size])
    else:
        rows = max(1, SLICE_ELEMENTS // vocab_size)
        yield from (indices[start : start + rows] for start in range(0, len(indices), rows))


def _gumbel(logits: Float[Tensor, "row vocab"], generator: torch.Generator) -> Float[Tensor, "row vocab"]:
    uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
    # ``rand`` may give 0, whose logarithm is infinite.
    return -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
