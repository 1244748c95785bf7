"""Sums per held-out sequence, and the figures made of them.

Sums are kept per sequence because sequences are what a paired bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ratio:
    """A figure: the sum of one column over the sum of another, in a unit."""

    numerator: str
    denominator: str


RATIOS: Mapping[str, Ratio] = {
    "nelbo_per_token": Ratio("nll", "tokens"),
    "content_nelbo_per_token": Ratio("content_nll", "content_tokens"),
    "content_nelbo_per_byte": Ratio("content_nll", "content_bytes"),
    "masked_token_accuracy": Ratio("hits", "asked"),
    "forward_kl_to_teacher": Ratio("forward_kl", "compared"),
    "reverse_kl_to_teacher": Ratio("reverse_kl", "compared"),
    "forward_chunk_kl_to_teacher": Ratio("forward_chunk_kl", "compared_chunks"),
    "reverse_chunk_kl_to_teacher": Ratio("reverse_chunk_kl", "compared_chunks"),
}
"""Figure -> columns.

The NELBO is in nats and covers every trained token, closing ones included; `content_*` and the accuracy cover
what student and teacher both see: aligned tokens, or the tokens of chunks. The divergences are in nats: per
masked aligned position over the shared vocabulary, or per masked chunk (Bernoulli).
"""


@dataclass
class Tally:
    """Columns of float64 [sequence] of one model; a column exists once something was added to it."""

    sequences: int
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, column: str, sequence: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add each value to its sequence's sum."""
        sums = np.bincount(sequence, weights=values, minlength=self.sequences)
        self.columns[column] = self.columns.get(column, np.zeros(self.sequences)) + sums

    def set(self, column: str, values: Float64[np.ndarray, " sequence"]) -> None:
        """Set a column, such as the number of tokens."""
        self.columns[column] = values

    def figures(self) -> dict[str, float]:
        """All ratios whose columns are there and whose denominator is not zero."""
        found = {}
        for name, ratio in RATIOS.items():
            if ratio.numerator in self.columns and ratio.denominator in self.columns:
                total = float(self.columns[ratio.denominator].sum())
                if total > 0:
                    found[name] = float(self.columns[ratio.numerator].sum()) / total
        return found
