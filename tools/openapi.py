"""The committed OpenAPI document: `python -m tools` writes docs/openapi.json anew."""

from __future__ import annotations

import json
from pathlib import Path

from service.app import create_app
from service.settings import Settings

TARGET = Path(__file__).parent.parent / "docs" / "openapi.json"


def document() -> str:
    """The interface as it is now, with sorted keys, so that a diff shows what changed."""
    described = create_app(Settings(database_url="sqlite+aiosqlite:///unused.db")).openapi()
    return json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
