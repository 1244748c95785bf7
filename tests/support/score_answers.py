"""Questions of every want, and their answers as plain numbers, for tests that compare them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tide_core.contracts.scores import Layout, ScoreRequest, TopKQuestion, Want

TOP_K = TopKQuestion(k=5, vocab=200, temperatures=(1.0, 2.0))


def top_k_for(want: Want) -> TopKQuestion | None:
    """The question that goes with a want, where one does."""
    return TOP_K if want is Want.TOP_K else None


def request_of(
    lengths: list[int],
    layout: Layout = Layout.BIDIRECTIONAL,
    want: Want = Want.TARGET_LOG_PROB,
    *,
    seed: int = 0,
    job_id: str = "job",
) -> ScoreRequest:
    """A question about random tokens, about two in three of them masked for one of the two groups."""
    draws = np.random.default_rng(seed)
    total = sum(lengths)
    return ScoreRequest(
        draws.integers(0, 256, total).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        draws.integers(0, 3, total).astype(np.uint8),
        layout,
        want,
        block_size=8,
        job_id=job_id,
        top_k=top_k_for(want),
    )


def numbers(values: npt.NDArray[np.generic], request: ScoreRequest) -> npt.NDArray[np.floating]:
    """An answer as floating-point numbers: [masked] or [masked, width]."""
    match request.want:
        case Want.HIDDEN:
            return (values.astype(np.uint32) << 16).view(np.float32)
        case Want.TOP_K:
            assert request.top_k is not None
            table = np.ascontiguousarray(values).view(request.top_k.row_format)[:, 0]
            columns = [table["ids"], table["logits"], table["log_tails"]]
            return np.concatenate([column.astype(np.float64) for column in columns], axis=1)
        case _:
            return values.astype(np.float32)
