"""One tiny teacher for all training tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_runs import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench, engine = make_bench(tmp_path)
    yield bench
    bench.transport.close()
    engine.close()
