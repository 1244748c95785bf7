"""Which samples each step trains on: a pure function of (seed, step), whatever the number of workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.data.samples import PreparedSample
from tide_core.data.shards import PreparedDataset, PreparedSplit
from tide_core.masks.streams import permutation


@dataclass(frozen=True)
class Visit:
    """One sample at one place of the order.

    Attributes:
        sample: its ``sample_index`` is unique within the epoch, also where a weight repeats the row.
        epoch: pass over the data; keys the sample's draws together with the index.
    """

    sample: PreparedSample
    epoch: int


class BatchPlan:
    """The order of all visits, cut into global batches.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the next, so no
    sample is ever dropped and every batch is full.

    Args:
        split: the samples.
        seed: the job's.
        global_batch_size: sequences of an optimiser step, over all workers and micro-batches.
        weights: visits of each source's samples in an epoch, by ``source_index``; 2 visits every sample
            twice, 0.5 visits half of them (drawn anew each epoch).
        rows: ``Manifest.rows``; keeps the draws of repeated visits apart.

    Raises:
        InvalidInputError: a batch size below 1, or no samples.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        seed: int,
        global_batch_size: int,
        weights: Sequence[float] = (),
        rows: int = 0,
    ) -> None:
        if global_batch_size < 1:
            raise InvalidInputError("a batch needs at least one sequence", param="global_batch_size")
        if not len(split):
            raise InvalidInputError("there are no samples to train on", code="no_row_survived", param="data")
        self._split = split
        self._seed = seed
        self._rows = rows
        self.global_batch_size = global_batch_size
        sources = split.source_index
        self._members = [np.flatnonzero(sources == source) for source in range(int(sources.max()) + 1)]
        self._weights = [weights[s] if s < len(weights) else 1.0 for s in range(len(self._members))]
        shares = zip(self._members, self._weights, strict=True)
        self.visits_per_epoch = sum(_visits(len(member), weight) for member, weight in shares)
        if not self.visits_per_epoch:
            raise InvalidInputError(
                "the weights leave no sample to visit", code="no_row_survived", param="data.sources.weight"
            )
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def steps(self, epochs: float) -> int:
        """Optimiser steps of so many epochs, at least one."""
        return max(1, math.ceil(epochs * self.visits_per_epoch / self.global_batch_size - 1e-9))

    def global_batch(self, step: int) -> list[Visit]:
        """All visits of step ``step`` (from 0), over all workers."""
        first = step * self.global_batch_size
        return [self._visit(place) for place in range(first, first + self.global_batch_size)]

    def worker_share(self, step: int, worker: int, workers: int) -> list[Visit]:
        """The part of a step that one of ``workers`` workers trains on; shares differ by one at most.

        Raises:
            InvalidInputError: no such worker.
        """
        if not 0 <= worker < workers:
            raise InvalidInputError(f"there is no worker {worker} of {workers}", param="worker")
        first = step * self.global_batch_size
        return [self._visit(first + place) for place in range(worker, self.global_batch_size, workers)]

    def _visit(self, place: int) -> Visit:
        epoch, within = divmod(place, self.visits_per_epoch)
        position, copy = self._order(epoch)[within].tolist()
        sample = self._split[position]
        if copy:
            sample = replace(sample, sample_index=sample.sample_index + copy * self._rows)
        return Visit(sample, epoch)

    def _epoch_order(self, epoch: int) -> Int64[np.ndarray, "visit 2"]:
        """(position in the split, copy) of each visit of an epoch, shuffled."""
        parts = []
        for source, (members, weight) in enumerate(zip(self._members, self._weights, strict=True)):
            whole = math.floor(weight)
            parts += [(members, copy) for copy in range(whole)]
            rest = _visits(len(members), weight) - whole * len(members)
            # Negative epochs name streams of their own, apart from the order's.
            chosen = permutation(self._seed, -1 - epoch * len(self._members) - source, len(members))[:rest]
            parts.append((members[np.sort(chosen)], whole))
        visits = np.concatenate([np.stack([m, np.full(len(m), copy)], axis=1) for m, copy in parts])
        return visits[permutation(self._seed, epoch, len(visits))]


def training_plan(dataset: PreparedDataset, spec: ResolvedJobSpec) -> BatchPlan:
    """The plan of a job over its prepared data set."""
    return BatchPlan(
        dataset.train,
        seed=spec.seed,
        global_batch_size=spec.hyperparameters.global_batch_size,
        weights=[source.weight for source in spec.data.sources],
        rows=dataset.manifest.rows,
    )


def _visits(members: int, weight: float) -> int:
    """Visits of a source's samples in an epoch."""
    return math.floor(weight) * members + round((weight - math.floor(weight)) * members)


def micro_batches(lengths: Sequence[int], size: int, tokens: int | None = None) -> list[list[int]]:
    """Deal sequences to as few micro-batches as the bounds allow, each of like lengths, the longest first.

    A pure function of the lengths; equal ones keep their order. The longest first, so that what a step needs
    of memory is needed at its beginning.

    Args:
        lengths: positions of each sequence in a forward.
        size: at most so many sequences in a micro-batch.
        tokens: at most so many positions, padding included; None sets no bound.

    Returns:
        Places in ``lengths``; every place once.

    Raises:
        InvalidInputError: a size below 1, or a sequence that alone is beyond ``tokens``.
    """
    if size < 1:
        raise InvalidInputError("a micro-batch needs at least one sequence", param="micro_batch_size")
    longest = max(lengths, default=0)
    if tokens is not None and longest > tokens:
        raise InvalidInputError(
            f"a sequence takes {longest} positions, a micro-batch at most {tokens}: raise micro_batch_tokens",
            param="micro_batch_tokens",
        )
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    groups: list[list[int]] = []
    start = 0
    while start < len(order):
        # All of a group are padded to its first.
        fitting = size if tokens is None else min(size, tokens // max(1, lengths[order[start]]))
        groups.append(order[start : start + fitting])
        start += fitting
    return groups
