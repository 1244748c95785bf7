"""A malformed score request never leaves the trainer."""

import numpy as np
import pytest

from tide_core.contracts.errors import InvalidInputError, ShapeError
from tide_core.contracts.scores import Layout, ScoreRequest, TopKQuestion, Want


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


@pytest.mark.parametrize(("k", "bytes_each"), [(8, 56), (128, 776), (512, 3080)])
def test_sparse_scores_take_six_bytes_an_id_and_four_a_temperature(k: int, bytes_each: int) -> None:
    assert TopKQuestion(k, 151_936, (1.0, 2.0)).row_format.itemsize == bytes_each


@pytest.mark.parametrize(
    ("k", "temperatures", "param"),
    [(0, (1.0,), "k"), (11, (1.0,), "k"), (3, (), "temperatures"), (3, (1.0, 0.0), "temperatures")],
)
def test_a_question_that_has_no_answer_is_refused(
    k: int, temperatures: tuple[float, ...], param: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TopKQuestion(k, 10, temperatures)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("want", "question"), [(Want.TOP_K, None), (Want.HIDDEN, TopKQuestion(3, 10, (1.0,)))]
)
def test_a_top_k_question_goes_with_its_want_alone(want: Want, question: TopKQuestion | None) -> None:
    asked = request([1, 2], [0, 2], [0, 1])
    with pytest.raises(InvalidInputError, match="top_k"):
        ScoreRequest(asked.token_ids, asked.offsets, asked.groups, asked.layout, want, top_k=question)
