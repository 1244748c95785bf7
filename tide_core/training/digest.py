"""What a training state belongs to: a digest of the spec and of the data."""

from __future__ import annotations

import hashlib

from tide_core.contracts.job import ResolvedJobSpec

PLACEMENT = ("name", "metadata", "resources", "evaluation", "checkpoints")
"""Fields of a spec that change no step."""
PACE = ("micro_batch_size", "micro_batch_tokens", "activation_checkpointing", "compile")
"""Hyperparameters that change how long a step takes, and not its result."""


def spec_digest(spec: ResolvedJobSpec, prepared: str) -> str:
    """Names the spec, less labels, placement and pace, and the data.

    Args:
        spec: the resolved job.
        prepared: content hash of the prepared data.
    """
    placement = dict.fromkeys(PLACEMENT, True)
    parts = spec.model_dump_json(exclude={**placement, "hyperparameters": set(PACE), "teacher": {"compile"}})
    return hashlib.blake2b(f"{parts}\n{prepared}".encode(), digest_size=16).hexdigest()
