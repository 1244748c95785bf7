"""The pages about installing name things that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ("install", "upgrade", "backup", "security", "air-gapped")
VALUES = yaml.safe_load((ROOT / "helm" / "tide" / "values.yaml").read_text())


@pytest.mark.parametrize("page", PAGES)
def test_values_and_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for path in re.findall(r"(?<![\w/])(?:deploy|helm/tide)/[\w./-]+\w", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w-]+\.md)\)", text):
        assert (ROOT / "docs" / link).exists(), link
    for name in re.findall(r"`((?:\w+)\.[\w.]+)`", text):
        if name.split(".")[0] in VALUES:
            assert _has(VALUES, name.split(".")), name


def _has(values: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
