"""One running Tide for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.support.running_tide import Service


@pytest.fixture(scope="package")
def tide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`tide up` on a folder of its own, ended in order."""
    service = Service(tmp_path_factory.mktemp("tide") / "data")
    service.start()
    yield service
    service.end()
