"""A malformed score request never leaves the trainer."""

import numpy as np
import pytest

from tide_core.contracts.errors import ShapeError
from tide_core.contracts.scores import Layout, ScoreRequest, Want


def request(ids: list[int], offsets: list[int], groups: list[int]) -> ScoreRequest:
    return ScoreRequest(
        token_ids=np.array(ids, dtype=np.int32),
        offsets=np.array(offsets, dtype=np.int64),
        groups=np.array(groups, dtype=np.uint8),
        layout=Layout.BIDIRECTIONAL,
        want=Want.TARGET_LOG_PROB,
    )


def test_counts_follow_the_sequences() -> None:
    asked = request([1, 2, 3, 4, 5], [0, 2, 5], [0, 1, 2, 0, 1])
    assert asked.batch == 2
    assert asked.masked_counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "offsets", "groups", "param"),
    [
        ([1, 2], [0, 2], [0], "groups"),
        ([1, 2], [0, 2], [0, 3], "groups"),
        ([1, 2], [0, 1], [0, 1], "offsets"),
        ([1, 2], [1, 2], [0, 1], "offsets"),
        ([1, 2], [0, 0, 2], [0, 1], "offsets"),
        ([1, 2], [0, 2, 1, 2], [0, 1], "offsets"),
        ([1, 2], [2], [0, 1], "offsets"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    ids: list[int], offsets: list[int], groups: list[int], param: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        request(ids, offsets, groups)
    assert caught.value.param == param
