"""The pages about installing name things that exist, and the generated one is current."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ("install", "upgrade", "backup", "security", "air-gapped")
VALUES = yaml.safe_load((ROOT / "helm" / "tide" / "values.yaml").read_text())


def test_the_reference_of_the_values_is_current() -> None:
    path = ROOT / "deploy" / "values_reference.py"
    spec = importlib.util.spec_from_file_location("tide_values_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.document(), "run: python deploy/values_reference.py"


@pytest.mark.parametrize("page", PAGES)
def test_values_and_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for path in re.findall(r"(?:deploy|helm/tide)/[\w./-]+\w", text):
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
