"""A coverage report as a worker sends it, for tests of its receivers."""

from tide_core.contracts.reporting import Coverage


def coverage() -> Coverage:
    """Nine bytes in ten lie in thirty chunks of one or two tokens."""
    return Coverage(
        share=0.9,
        contents=8,
        content_bytes=200,
        chunk_bytes=180,
        chunks=30,
        student_straddling=2,
        teacher_straddling=1,
        special_tokens=0,
        mismatched=0,
        cut_contents=1,
        shortened_contents=0,
        student_lengths={1: 20, 2: 10},
        teacher_lengths={1: 30},
    )
