"""One tiny teacher with its student and data, for all tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.tiny_runs import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    from tests.support.tiny_runs import make_bench

    bench, engine = make_bench(tmp_path)
    yield bench
    bench.transport.close()
    engine.close()
