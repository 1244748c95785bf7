"""Fixtures of the method's tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import config

# The first call of a test pays for imports and type checkers; a busy machine is slow at any time.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture
def no_shape_annotations() -> Iterator[None]:
    """Run as in production, where nothing but our own checks stands between a wrong shape and the result."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
