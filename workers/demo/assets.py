"""Where the shipped models lie."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "assets"

TEACHER_MOE = FOLDER / "teacher_moe"
"""LLaDA2-shaped mixture of experts with a tokeniser of its own."""
TEACHER_DENSE = FOLDER / "teacher_dense"
"""WeDLM-shaped dense model that shares the student's byte-level vocabulary."""
STUDENT_TOKENIZER = FOLDER / "student_tokenizer"
"""The students' tokeniser; their weights are drawn afresh from the job's seed."""
