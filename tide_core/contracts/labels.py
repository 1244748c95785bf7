"""Numbers that mean "none" in a prepared sample; preparation writes them, the forward process reads them."""

from __future__ import annotations

IGNORED_LABEL = -100
"""Label of a token that is neither masked nor trained."""
NO_CHUNK = -1
"""Chunk number or teacher position of a token that has none."""
