"""Tiny teachers and random requests."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.score_answers import top_k_for
from tide_core.contracts.scores import Layout, ScoreRequest, Want
from tide_core.models.decoder import Decoder
from workers.teachers.tiny import tiny_teacher

RequestMaker = Callable[..., ScoreRequest]


@pytest.fixture(scope="session", params=["llada2_moe", "wedlm"])
def teacher(request: pytest.FixtureRequest) -> Decoder:
    return tiny_teacher(request.param, seed=3)


@pytest.fixture(scope="session")
def dense_teacher() -> Decoder:
    return tiny_teacher("wedlm", seed=3)


@pytest.fixture
def make_request() -> RequestMaker:
    def make(
        lengths: list[int],
        *,
        layout: Layout = Layout.BIDIRECTIONAL,
        want: Want = Want.TARGET_LOG_PROB,
        views: int = 1,
        rate: float = 0.4,
        seed: int = 0,
        **more: object,
    ) -> ScoreRequest:
        draws = np.random.default_rng(seed)
        total = sum(lengths)
        groups = np.where(draws.random(total) < rate, draws.integers(1, views + 1, total), 0)
        return ScoreRequest(
            token_ids=draws.integers(0, 256, total).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            groups=groups.astype(np.uint8),
            layout=layout,
            want=want,
            **{"block_size": 8, "top_k": top_k_for(want), **more},  # type: ignore[arg-type]
        )

    return make
