"""The script still makes the like of the shipped models, and the models are what they say."""

import json
from pathlib import Path

import pytest

from tide_core.alignment.tokenizer_folder import load_tokenizer
from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.models.headers import read_headers
from workers.demo.assets import FOLDER, STUDENT_TOKENIZER, TEACHER_DENSE, TEACHER_MOE
from workers.demo.pretrain import RECORD_NAME, make

TEACHERS = [TEACHER_MOE, TEACHER_DENSE]


@pytest.mark.slow
@pytest.mark.parametrize("shipped", TEACHERS, ids=lambda folder: folder.name)
def test_the_script_begins_as_it_did_and_writes_the_same_folder(shipped: Path, tmp_path: Path) -> None:
    """A hundredth of the recipe: the first losses are the recorded ones, but for another standard library."""
    losses = make(shipped.name, tmp_path, share_of_steps=0.008)
    recorded = json.loads((shipped / RECORD_NAME).read_text())["losses"]
    assert losses[0][0] == pytest.approx(recorded[0][0], rel=0.05)
    assert recorded[-1][-1] < 0.5 * recorded[0][0], "the shipped model had learnt"
    ours, theirs = read_headers(tmp_path), read_headers(shipped)
    assert set(ours) == set(theirs)
    assert (
        json.loads((tmp_path / "config.json").read_text()).keys()
        == json.loads((shipped / "config.json").read_text()).keys()
    )


@pytest.mark.parametrize("folder", [*TEACHERS, STUDENT_TOKENIZER], ids=lambda folder: folder.name)
def test_no_file_is_large_and_no_model_exceeds_four_megabytes(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert max(sizes.values()) < 2 * 2**20
    assert sum(sizes.values()) < 4 * 2**20


def test_the_dense_teacher_shares_the_students_vocabulary_and_the_mixture_does_not() -> None:
    student, dense, mixture = map(load_tokenizer, (STUDENT_TOKENIZER, TEACHER_DENSE, TEACHER_MOE))
    shared = shared_vocabulary_size(student, dense)
    assert 2000 < shared < dense.get_vocab_size()
    assert shared_vocabulary_size(student, mixture) < 1000


def test_everything_shipped_is_known() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        "student_tokenizer",
        "teacher_dense",
        "teacher_moe",
    }
