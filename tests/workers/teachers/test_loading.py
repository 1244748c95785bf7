"""A teacher folder becomes an engine with a truthful description."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tide_core.contracts.errors import (
    CheckpointError,
    FingerprintMismatchError,
    InvalidInputError,
    TokenizerError,
)
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.scores import ScoreRequest
from tide_core.models.teachers.adapter import load_teacher
from workers.demo.assets import TEACHER_DENSE, TEACHER_MOE
from workers.teachers.attestation import Attestor, golden_requests
from workers.teachers.loading import load_for_serving
from workers.teachers.tiny import MASK_ID, VOCAB_SIZE, write_tiny_teacher

RequestMaker = Callable[..., ScoreRequest]
# Root mean square error over that of the logits, of the shipped teachers; measured on the worse of the two:
# 0.025 and 0.11, most of it from experts that are chosen otherwise.
LOGIT_ERROR: dict[Literal["int8", "int4"], float] = {"int8": 0.04, "int4": 0.16}


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


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
@pytest.mark.parametrize("architecture", ["llada2_moe", "wedlm"])
def test_a_quantised_teacher_serves_as_another_and_smaller_one(
    tmp_path: Path, make_request: RequestMaker, architecture: str, quantisation: Literal["int8", "int4"]
) -> None:
    folder = write_tiny_teacher(tmp_path / "teacher", architecture)
    whole = load_for_serving(TeacherSpec(model=str(folder)), threads=1)
    spec = TeacherSpec(model=str(folder), quantisation=quantisation)
    small = load_for_serving(spec, threads=1)
    try:
        assert small.description.quantisation == quantisation
        assert small.description.fingerprint != whole.description.fingerprint
        assert small.description.parameters == whole.description.parameters
        assert small.description.weight_bytes < 0.7 * whole.description.weight_bytes
        Attestor(small.engine, golden_requests(small.tokenizer), small.description.dtype).attest()
        request = make_request([40, 17, 33], views=2)
        exact, answer = (one.engine.submit(request).result(60) for one in (whole, small))
        assert answer.fingerprint == small.description.fingerprint
        assert np.isfinite(answer.values).all()
        error = np.abs(answer.values - exact.values).mean()
        assert 0 < error < {"int8": 0.1, "int4": 1.0}[quantisation]
        wrong = dataclasses.replace(request, fingerprint=whole.description.fingerprint)
        with pytest.raises(FingerprintMismatchError):
            small.engine.submit(wrong)
    finally:
        whole.engine.close()
        small.engine.close()


@pytest.mark.parametrize("quantisation", LOGIT_ERROR)
@pytest.mark.parametrize("folder", [TEACHER_DENSE, TEACHER_MOE], ids=["dense", "moe"])
def test_logits_of_trained_teachers_stay_close(folder: Path, quantisation: Literal["int8", "int4"]) -> None:
    whole = load_teacher(folder, dtype=torch.float32)
    small = load_teacher(folder, dtype=torch.float32, quantisation=quantisation)
    ids = torch.randint(0, whole.vocab_size, (4, 48), generator=torch.Generator().manual_seed(0))
    ids[:, ::4] = whole.mask_token_id
    logits, others = (model.lm_head(model.hidden_states(ids))[:, ::4] for model in (whole, small))
    error = (others - logits).square().mean().sqrt() / logits.square().mean().sqrt()
    assert 0 < error < LOGIT_ERROR[quantisation]


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
