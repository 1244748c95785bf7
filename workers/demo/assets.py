"""Where the shipped models lie."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "assets"

TEACHER_MOE = FOLDER / "teacher_moe"
"""LLaDA2-shaped mixture of experts with a tokeniser of its own."""
TEACHER_DENSE = FOLDER / "teacher_dense"
"""WeDLM-shaped dense model that shares the student's byte-level vocabulary."""
STUDENT_BASE = FOLDER / "student_base"
"""What every student of the demo starts from."""
