"""Sums per held-out sequence, and the figures made of them.

Sums are kept per sequence because sequences are what a paired bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from tide_core.contracts.figures import Measure


class Column(StrEnum):
    """Sums of one model, one number a held-out sequence; names of the arrays in ``sequences.npz``."""

    TOKENS = "tokens"
    """Trained tokens, closing ones included."""
    CONTENT_TOKENS = "content_tokens"
    """Tokens of what student and teacher both see: aligned tokens, or the tokens of chunks."""
    CONTENT_BYTES = "content_bytes"
    NLL = "nll"
    """Weighted negative log-likelihoods of masked tokens, nats: the sequence's part of the NELBO."""
    CONTENT_NLL = "content_nll"
    HITS = "hits"
    """Masked content tokens whose likeliest token is the right one."""
    ASKED = "asked"
    """Masked content tokens."""
    FORWARD_KL = "forward_kl"
    REVERSE_KL = "reverse_kl"
    COMPARED = "compared"
    """Masked positions at which student and teacher were compared."""
    FORWARD_CHUNK_KL = "forward_chunk_kl"
    REVERSE_CHUNK_KL = "reverse_chunk_kl"
    COMPARED_CHUNKS = "compared_chunks"


@dataclass(frozen=True)
class Ratio:
    """A figure: the sum of one column over the sum of another."""

    numerator: Column
    denominator: Column


RATIOS: Mapping[Measure, Ratio] = {
    Measure.NELBO_PER_TOKEN: Ratio(Column.NLL, Column.TOKENS),
    Measure.CONTENT_NELBO_PER_TOKEN: Ratio(Column.CONTENT_NLL, Column.CONTENT_TOKENS),
    Measure.CONTENT_NELBO_PER_BYTE: Ratio(Column.CONTENT_NLL, Column.CONTENT_BYTES),
    Measure.MASKED_TOKEN_ACCURACY: Ratio(Column.HITS, Column.ASKED),
    Measure.FORWARD_KL_TO_TEACHER: Ratio(Column.FORWARD_KL, Column.COMPARED),
    Measure.REVERSE_KL_TO_TEACHER: Ratio(Column.REVERSE_KL, Column.COMPARED),
    Measure.FORWARD_CHUNK_KL_TO_TEACHER: Ratio(Column.FORWARD_CHUNK_KL, Column.COMPARED_CHUNKS),
    Measure.REVERSE_CHUNK_KL_TO_TEACHER: Ratio(Column.REVERSE_CHUNK_KL, Column.COMPARED_CHUNKS),
}
"""How each held-out figure is made of columns; what it means stands at `Measure`."""


@dataclass
class Tally:
    """Columns of float64 [sequence] of one model; a column exists once something was added to it."""

    sequences: int
    columns: dict[Column, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, column: Column, sequence: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add each value to its sequence's sum."""
        sums = np.bincount(sequence, weights=values, minlength=self.sequences)
        self.columns[column] = self.columns.get(column, np.zeros(self.sequences)) + sums

    def set(self, column: Column, values: Float64[np.ndarray, " sequence"]) -> None:
        """Set a column, such as the number of tokens."""
        self.columns[column] = values

    def figures(self) -> dict[Measure, float]:
        """All ratios whose columns are there and whose denominator is not zero."""
        found = {}
        for measure, ratio in RATIOS.items():
            if ratio.numerator in self.columns and ratio.denominator in self.columns:
                total = float(self.columns[ratio.denominator].sum())
                if total > 0:
                    found[measure] = float(self.columns[ratio.numerator].sum()) / total
        return found
