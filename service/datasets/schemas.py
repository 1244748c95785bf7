"""Prepared data sets as the REST interface shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tide_core.contracts.reporting import Coverage


class Dataset(BaseModel):
    """Prepared shards, shared by all jobs that prepare the same thing."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    object: Literal["dataset"] = "dataset"
    content_hash: str
    """Hash of everything that went in: data, tokenizers, templates, lengths."""
    location: str
    rows: int
    held_out_rows: int
    rejected: dict[str, int]
    """Rows left out, by reason."""
    coverage: Coverage
    """How much of the training split's text can be compared."""
    created_at: datetime
    last_used_at: datetime
