"""The way to the teacher that an evaluation compares with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tide_core.contracts.scores import Layout
from tide_core.scoring.transport import ScoreTransport


@dataclass(frozen=True)
class TeacherAccess:
    """The way to the teacher.

    Attributes:
        transport: carries the questions, to a pool or to a teacher in the same process.
        head: the teacher's LM head on the students' device.
        layout: what the teacher may see.
        shared_vocab: ids that mean the same to both sides (pipeline B).
        job_id, weight: go into each request.
    """

    transport: ScoreTransport
    head: Tensor
    layout: Layout
    shared_vocab: int
    job_id: str = ""
    weight: float = 1.0
