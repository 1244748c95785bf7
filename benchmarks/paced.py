"""A teacher whose device is a clock: real engine, real Serve replica, a forward that takes a given time.

Without accelerators a teacher and its trainers would fight for the same cores, and a benchmark of the way
between them would measure that fight. Here a forward sleeps for as long as a device would compute;
drawing, collating, wire, Serve, queue, batching and read-out are the product's own.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms import FINGERPRINT, describe
from tide_core.contracts.serving import TEACHERS
from tide_core.contracts.teacher import TeacherLease
from tide_core.models.reading import ReadPlaces
from workers.applications import make_application
from workers.teachers import app
from workers.teachers.engine import EngineSettings, TeacherEngine

VOCAB = 1024
HIDDEN = 64
MASK_ID = VOCAB - 1


class PacedModel:
    """A :class:`~tide_core.models.teachers.adapter.TeacherModel` that takes its time.

    Args:
        seconds_per_token: of a forward, padding included; 0 answers at once.
    """

    def __init__(self, seconds_per_token: float) -> None:
        generator = torch.Generator().manual_seed(1)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False).requires_grad_(False)
        self.lm_head.weight.copy_(torch.randn(VOCAB, HIDDEN, generator=generator))
        self._embedding = torch.randn(VOCAB, HIDDEN, generator=generator)
        self._seconds_per_token = seconds_per_token

    @property
    def vocab_size(self) -> int:
        return VOCAB

    @property
    def hidden_size(self) -> int:
        return HIDDEN

    @property
    def mask_token_id(self) -> int:
        return MASK_ID

    def hidden_at(
        self,
        input_ids: Tensor,
        places: ReadPlaces,
        attention_mask: object = None,
        position_ids: object = None,
    ) -> Tensor:
        """Hidden states that depend on the ids alone, when the time has passed."""
        start = time.monotonic()
        states = self._embedding[input_ids.flatten()[places.index]]
        time.sleep(max(0.0, start + self._seconds_per_token * input_ids.numel() - time.monotonic()))
        return states


class PacedTeacher(app.TeacherReplica):
    """The product's replica around a paced model, without weights to load or golden answers to check."""

    def __init__(self, seconds_per_token: float, max_batch_tokens: int) -> None:
        torch.set_num_threads(1)
        self._engine = TeacherEngine(
            PacedModel(seconds_per_token),
            fingerprint=FINGERPRINT,
            tokenizer_fingerprint=FINGERPRINT,
            settings=EngineSettings(max_batch_tokens=max_batch_tokens),
        )
        self._description = describe(self._engine)

    async def check_health(self) -> None:
        """Always well."""


def deploy(name: str, *, seconds_per_token: float, max_batch_tokens: int = 4096) -> Any:
    """Serve a paced teacher with the product's settings; its handle. Ray must be initialised."""
    from ray import serve

    application = make_application(TEACHERS, PacedTeacher, seconds_per_token, max_batch_tokens, cpus=0.1)
    return serve.run(application, name=name, route_prefix=None)


def lease(name: str) -> TeacherLease:
    """What a trainer holds of it."""
    return TeacherLease(application=name, fingerprint=FINGERPRINT)
