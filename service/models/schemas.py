"""Exported models as the REST interface shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A student that a job handed over, in the Hugging Face layout."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    id: str
    object: Literal["model"] = "model"
    job_id: str
    location: str
    step: int
    bytes: int
    created_at: datetime
