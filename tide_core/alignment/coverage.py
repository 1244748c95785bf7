"""How much of a data set's text the two tokenisations can be compared on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

MAX_COUNTED_LENGTH = 16
"""Chunks of more tokens than this share the histogram's last bin."""


@dataclass
class CoverageReport:
    """Counts over the trained contents of a data set; reports of parts add up.

    Attributes:
        contents: contents seen by both sides.
        content_bytes: bytes of the contents inside both sides' lengths.
        chunk_bytes: bytes of them that lie in chunks (aligned positions, where the tokenizer is shared).
        chunks: chunks, or aligned positions.
        student_straddling: student tokens that cross a content's edge.
        teacher_straddling: the teacher's.
        special_tokens: chunks left out because a special token stands in the content.
        mismatched: same bytes but different ids, where the tokenizer should be shared.
        cut_contents: contents of which a length limit on either side removed a part.
        shortened_contents: contents of which a template left out a part.
        student_lengths: chunk length in student tokens -> chunks.
        teacher_lengths: chunk length in teacher tokens -> chunks.
    """

    contents: int = 0
    content_bytes: int = 0
    chunk_bytes: int = 0
    chunks: int = 0
    student_straddling: int = 0
    teacher_straddling: int = 0
    special_tokens: int = 0
    mismatched: int = 0
    cut_contents: int = 0
    shortened_contents: int = 0
    student_lengths: dict[int, int] = field(default_factory=dict)
    teacher_lengths: dict[int, int] = field(default_factory=dict)

    def add(self, other: CoverageReport) -> None:
        """Add another part's counts to this one's."""
        for name, value in vars(other).items():
            if isinstance(value, dict):
                _add_counts(getattr(self, name), value.items())
            else:
                setattr(self, name, getattr(self, name) + value)

    def count_chunks(
        self, student_sizes: Int[np.ndarray, " chunk"], teacher_sizes: Int[np.ndarray, " chunk"]
    ) -> None:
        """Count chunks by their lengths in tokens on both sides."""
        self.chunks += len(student_sizes)
        for total, sizes in ((self.student_lengths, student_sizes), (self.teacher_lengths, teacher_sizes)):
            counts = np.bincount(np.minimum(sizes, MAX_COUNTED_LENGTH))
            _add_counts(total, ((size, count) for size, count in enumerate(counts.tolist()) if count))

    @property
    def share(self) -> float:
        """Share of the content bytes that can be compared, 0 to 1 (1 where there are none)."""
        return self.chunk_bytes / self.content_bytes if self.content_bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a manifest or a response; histogram keys become strings."""
        values: dict[str, Any] = {"share": round(self.share, 6)}
        for name, value in vars(self).items():
            is_histogram = isinstance(value, dict)
            values[name] = {str(size): value[size] for size in sorted(value)} if is_histogram else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CoverageReport:
        """The report that ``to_dict`` wrote."""
        report = cls()
        for name in vars(report):
            value = values[name]
            setattr(report, name, {int(k): v for k, v in value.items()} if isinstance(value, dict) else value)
        return report


def _add_counts(total: dict[int, int], counts: Iterable[tuple[int, int]]) -> None:
    for size, count in counts:
        total[size] = total.get(size, 0) + count
