"""A control plane that clients and commands reach over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.running_app import run_app


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a control plane with a cluster in memory."""
    with run_app(tmp_path_factory.mktemp("data")) as address:
        yield address
