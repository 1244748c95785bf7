"""The noise of an evaluation: stratified timesteps and fixed masks, the same for every model and every job.

The NELBO of masked diffusion (MDLM, arXiv 2406.07524; BD3LM, arXiv 2503.09573) is an expectation over
timesteps and masks, ``E_t E_mask sum_{i in M} w(t) (-log p(x_i))``. It is estimated with `count` timesteps a
sequence, one in each of as many equal strata, at a common random offset. All draws come from counter streams
under a seed that no job has, so two students of one study are compared on the very same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from tide_core.data.samples import PreparedSample
from tide_core.masks.corruption import Corruption, corrupt
from tide_core.masks.streams import SampleKey, uniforms
from tide_core.schedules.noise import NoiseSchedule, Time

EVALUATION_SEED = -1
"""Jobs have seeds from 0 on."""
OFFSET_STREAM = "evaluation-offset"


@dataclass(frozen=True)
class Question:
    """One held-out sequence at one timestep.

    Attributes:
        sequence: number of the sequence among the held-out ones.
        sample: the sequence.
        corruption: its timestep and mask.
        weight: ``w(t) / count``: what the mask's negative log-likelihoods count for in the NELBO.
    """

    sequence: int
    sample: PreparedSample
    corruption: Corruption
    weight: float


@dataclass(frozen=True)
class EvaluationNoise:
    """How held-out sequences are noised.

    Attributes:
        schedule: the job's noise schedule.
        min_timestep: smallest timestep.
        count: timesteps a sequence.
    """

    schedule: NoiseSchedule
    min_timestep: float
    count: int

    def timesteps(self, sample_index: int) -> Float64[np.ndarray, " timestep"]:
        """Timesteps of a sequence, one a stratum."""
        offset = uniforms(EVALUATION_SEED, 0, sample_index, OFFSET_STREAM, 1)[0]
        places = (np.arange(self.count) + offset) / self.count
        timesteps: Float64[np.ndarray, " timestep"] = self.min_timestep + (1.0 - self.min_timestep) * places
        return timesteps

    def questions(self, samples: Sequence[PreparedSample], *, by_chunk: bool) -> Iterator[Question]:
        """All sequences at all their timesteps; questions without a masked token are left out.

        Args:
            samples: the held-out sequences.
            by_chunk: mask whole chunks, for chunk likelihoods. The NELBO needs independent masks.
        """
        for number, sample in enumerate(samples):
            for stratum, t in enumerate(self.timesteps(sample.sample_index)):
                corruption = self.draw_mask(sample, stratum, float(t), by_chunk=by_chunk)
                if corruption.is_masked.any():
                    weight = float(self.schedule.weight(float(t))) / self.count
                    yield Question(number, sample, corruption, weight)

    def draw_mask(self, sample: PreparedSample, stratum: int, t: float, *, by_chunk: bool) -> Corruption:
        """The mask of a sequence at a timestep."""
        drawn = corrupt(
            sample.labels,
            sample.student_chunk_ids if by_chunk else None,
            key=SampleKey(EVALUATION_SEED, stratum, sample.sample_index),
            noise=self.hold_at(t),
        )
        return replace(drawn, t=t)

    def hold_at(self, t: float) -> NoiseSchedule:
        """The schedule held at one timestep, which is then not drawn but given."""
        return FrozenNoise(self.schedule, t)


@dataclass(frozen=True)
class FrozenNoise:
    """A schedule that stands still at one timestep."""

    schedule: NoiseSchedule
    t: float

    def alpha(self, t: Time) -> Time:
        """Survival probability at the one timestep, in the shape of `t`."""
        return t * 0.0 + self.schedule.alpha(self.t)

    def alpha_derivative(self, t: Time) -> Time:
        """Its derivative there."""
        return t * 0.0 + self.schedule.alpha_derivative(self.t)

    def weight(self, t: Time) -> Time:
        """The cross-entropy weight there."""
        return t * 0.0 + self.schedule.weight(self.t)
