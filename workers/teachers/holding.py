"""The replica's half of held answers: the values stay here until the trainer has read them.

In: an answer and its values on the teacher's device. Out: a `HeldAnswer` for the wire, which
`workers.scores.held_answers`, the trainer's half, turns into the answer with its values. This module's path
and the names `HeldAnswer` and `release` are part of the wire format: a replica and a trainer may be of two
versions.

The reference to such values travels inside an answer of Serve. Ray counts it as the trainer's only some time
after the answer has arrived, and with several questions under way it now and then gave the memory up before
that, so that the trainer read what had come to lie there since. Therefore a replica holds every reference
itself until the trainer says that it has the values, or until the values are too old for any trainer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tide_core.contracts.scores import ScoreResponse
from workers.ray_tensors import current_actor, offer_tensor

if TYPE_CHECKING:
    from torch import Tensor

HOLD_SECONDS = 120.0
"""How long values wait for a trainer that never says that it has them: it died, or another answered first."""


@dataclass(frozen=True, slots=True)
class HeldAnswer:
    """What goes over the wire instead of an answer with its values.

    Attributes:
        response: the answer, with no rows in its values.
        shape: of the values that are held, bfloat16 [masked, hidden].
        reference: to the values; in a list, since Ray resolves references that are not nested.
        replica: handle of the actor that holds them.
        seconds: from the question's arrival in the replica to the start of the holding.
        hold_seconds: how long they are held.
    """

    response: ScoreResponse
    shape: tuple[int, int]
    reference: list[Any]
    replica: Any
    seconds: float
    hold_seconds: float = HOLD_SECONDS

    @property
    def key(self) -> str:
        """What :func:`release` calls the values."""
        return str(self.reference[0].hex())


class AnswerShelf:
    """References by key, each with the time until which it is held. Safe in several threads.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, Any]] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def hold(self, key: str, reference: Any, seconds: float = HOLD_SECONDS) -> None:
        """Keep a reference, and drop those whose time has passed."""
        self.sweep()
        with self._lock:
            self._held[key] = (self._clock() + seconds, reference)

    def drop(self, key: str) -> None:
        """Stop holding a reference; one that is not there was dropped before."""
        with self._lock:
            self._held.pop(key, None)

    def sweep(self) -> None:
        """Drop every reference whose time has passed."""
        now = self._clock()
        with self._lock:
            self._held = {key: held for key, held in self._held.items() if held[0] > now}


SHELF = AnswerShelf()
"""Of this process: a replica's actor has one."""


async def hold_answer(response: ScoreResponse, values: Tensor, asked_at: float) -> HeldAnswer:
    """Hold an answer's values in this replica.

    Args:
        response: the answer without its values.
        values: bfloat16 [masked, hidden], contiguous; they must not be written to afterwards.
        asked_at: when the question arrived, by ``time.monotonic``.
    """
    reference = await asyncio.to_thread(offer_tensor, values)  # it waits for the device
    masked, width = values.shape
    # Taken before the holding begins, so that the trainer reckons with less time than there is.
    held = HeldAnswer(response, (masked, width), [reference], current_actor(), time.monotonic() - asked_at)
    SHELF.hold(held.key, reference, held.hold_seconds)
    return held


def release(replica: object, key: str) -> None:
    """Drop the values with a key; a trainer has the replica's actor call this once it has read them."""
    SHELF.drop(key)
