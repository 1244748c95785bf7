"""Fixtures of the loss tests."""

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture
def no_shape_annotations() -> Iterator[None]:
    """Run as in production, where nothing but our own checks stands between a wrong shape and the result."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
