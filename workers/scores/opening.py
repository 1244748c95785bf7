"""A trainer's or an evaluation's way to its teacher: the pool, behind the cache of what it has answered."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tide_core.contracts.environment import ENV_SCORE_CACHE_BYTES
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.reporting import AttemptBrief
from tide_core.scoring.transport import ScoreTransport
from workers.scores.cache import CachingTransport, ScoreCache
from workers.scores.serve_transport import ServeTransport
from workers.storage import cache_folder

if TYPE_CHECKING:
    import torch

DEFAULT_BYTES = 8 * 2**30


def open_transport(brief: AttemptBrief, stack: ExitStack, device: torch.device) -> ScoreTransport | None:
    """The transport of an attempt that may ask a teacher, closed with the stack; None for one that may not.

    Args:
        brief: the attempt.
        stack: closes the transport.
        device: where this process computes, onto which NIXL brings hidden states when the job asks for it.

    Raises:
        InvalidInputError: the environment's bound is not a number, or NIXL does not work here.
    """
    if brief.teacher is None:
        return None
    transport: ScoreTransport = ServeTransport(
        brief.teacher,
        deadline_seconds=brief.score_deadline_seconds,
        held_device=str(device) if brief.spec.resources.tensor_transport == "nixl" else None,
    )
    bound = score_cache_bytes()
    if brief.spec.resources.score_cache and bound > 0:
        transport = CachingTransport(transport, ScoreCache(cache_folder() / "scores", bound))
    stack.callback(transport.close)
    return transport


def score_cache_bytes() -> int:
    """``$TIDE_SCORE_CACHE_BYTES``, else 8 GiB."""
    given = os.environ.get(ENV_SCORE_CACHE_BYTES, "")
    try:
        return int(given) if given else DEFAULT_BYTES
    except ValueError:
        raise InvalidInputError(
            f"{ENV_SCORE_CACHE_BYTES} is '{given}': give a number of bytes, or 0 to keep no scores.",
            param=ENV_SCORE_CACHE_BYTES,
        ) from None
