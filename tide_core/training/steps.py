"""One step's micro-batches on one trainer, the questions to the teacher, and which answer is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tide_core.contracts.scores import ScoreRequest, ScoreResponse
from tide_core.objective.inputs import Normalisers
from tide_core.scoring.prefetcher import AskedStep
from tide_core.training.collating import MicroBatch


@dataclass(frozen=True)
class DrawnStep:
    """A step as one trainer draws it.

    Attributes:
        number: of the step, from 0.
        batches: this trainer's micro-batches.
    """

    number: int
    batches: Sequence[MicroBatch]

    @property
    def requests(self) -> list[ScoreRequest]:
        """The questions to the teacher; a micro-batch asks one, or none where nothing is masked."""
        return [batch.request for batch in self.batches if batch.request is not None]

    @property
    def asked_sequences(self) -> int:
        """How many sequences the questions are about."""
        return sum(request.batch for request in self.requests)

    @property
    def counts(self) -> Normalisers:
        """This trainer's part of the step's normalisers."""
        own = [batch.counts for batch in self.batches]
        return Normalisers(
            maskable_tokens=sum(counts.maskable_tokens for counts in own),
            masked_positions=sum(counts.masked_positions for counts in own),
            active_chunks=sum(counts.active_chunks for counts in own),
            sequences=sum(counts.sequences for counts in own),
        )

    def pair_answers(self, responses: Iterable[ScoreResponse]) -> list[ScoreResponse | None]:
        """The answer to each micro-batch, None where nothing was asked; `responses` are as `requests`."""
        rest = iter(responses)
        return [None if batch.request is None else next(rest) for batch in self.batches]


def ask_steps(draw: Callable[[int], DrawnStep], numbers: Iterable[int]) -> Iterator[AskedStep[DrawnStep]]:
    """Draw steps one after the other, each with its questions, as a prefetcher takes them."""
    for number in numbers:
        step = draw(number)
        yield AskedStep(step, step.requests)
