"""The base of all contract models: strict, immutable, self-describing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    """A message that crosses a boundary: unknown fields are refused and instances do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        # Where a figure may be NaN it must arrive as what it is: null would make the message malformed.
        ser_json_inf_nan="constants",
    )
