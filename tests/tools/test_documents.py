"""The documents that are generated from the code are the committed ones."""

from __future__ import annotations

import json

from tools import job_spec_page as docs
from tools import openapi
from tools import sizing_page as sizing


def test_the_openapi_document_is_current() -> None:
    assert openapi.TARGET.read_text(encoding="utf-8") == openapi.document(), "run python -m tools.openapi"


def test_the_job_specs_reference_is_current() -> None:
    assert docs.TARGET.read_text(encoding="utf-8") == docs.document(), "run python -m tools.job_spec_page"


def test_the_sizes_of_real_pairs_are_current() -> None:
    assert sizing.TARGET.read_text(encoding="utf-8") == sizing.document(), "run python -m tools.sizing_page"


def test_every_failure_is_described_by_the_envelope() -> None:
    described = json.loads(openapi.document())
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    content = response["content"]["application/json"]["schema"]
                    assert content == envelope, f"{method} {path} {status}"
