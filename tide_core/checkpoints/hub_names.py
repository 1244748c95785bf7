"""What a name on the Hugging Face hub looks like, for models and data sets."""

from __future__ import annotations

import re

# The hub's own rule: letters, digits, "-", "_" and "."; "-" and "." neither first nor last, nor doubled.
_PART = r"(?![-.])[A-Za-z0-9_.-]{1,96}(?<![-.])"
_NAME = re.compile(rf"{_PART}(/{_PART})?")


def is_hub_name(text: str) -> bool:
    """Whether a location can be a name on the hub: ``name`` or ``owner/name``."""
    return _NAME.fullmatch(text) is not None and "--" not in text and ".." not in text
