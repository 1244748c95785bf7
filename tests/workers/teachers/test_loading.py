"""A teacher folder becomes an engine with a truthful description."""

import subprocess
import sys
from pathlib import Path

import pytest

from tide_core.contracts.errors import CheckpointError, InvalidInputError, TokenizerError
from tide_core.contracts.job import TeacherSpec
from workers.teachers.loading import load_for_serving
from workers.teachers.tiny import MASK_ID, VOCAB_SIZE, write_tiny_teacher


@pytest.mark.parametrize("architecture", ["llada2_moe", "wedlm"])
def test_the_description_is_of_the_folder(tmp_path: Path, architecture: str) -> None:
    folder = write_tiny_teacher(tmp_path / "teacher", architecture)
    loaded = load_for_serving(TeacherSpec(model=str(folder)), threads=1)
    loaded.engine.close()
    description = loaded.description
    assert description.architecture == architecture
    assert (description.vocab_size, description.mask_token_id) == (VOCAB_SIZE, MASK_ID)
    assert (description.dtype, description.device) == ("float32", "cpu")
    assert description.weight_bytes == 4 * description.parameters
    assert description.fingerprint == loaded.engine.fingerprint
    other = write_tiny_teacher(tmp_path / "other", architecture, seed=1)
    again = load_for_serving(TeacherSpec(model=str(other)), threads=1)
    again.engine.close()
    assert again.description.fingerprint != description.fingerprint
    assert again.description.tokenizer_fingerprint == description.tokenizer_fingerprint


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        load_for_serving(TeacherSpec(model=str(tmp_path / "nowhere")))
    folder = write_tiny_teacher(tmp_path / "teacher", "wedlm")
    with pytest.raises(CheckpointError, match="llada2_moe"):
        load_for_serving(TeacherSpec(model=str(folder), architecture="llada2_moe"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        load_for_serving(TeacherSpec(model=str(folder)))


def test_the_application_module_imports_without_torch_and_ray() -> None:
    code = "import sys, workers.teachers.app; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
