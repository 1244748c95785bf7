"""The table of families is the one place that knows them: a new entry is enough for all that read it."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from service.jobs.model_folders import check_student_architecture, check_teacher_architecture
from tide_core.contracts.errors import CheckpointError, InvalidInputError
from tide_core.contracts.families import (
    ALL_ATTENTION,
    ALWAYS,
    FAMILIES,
    QWEN3,
    STUDENT_PREFIX,
    Switch,
    architecture_name,
    find_family,
    is_student_type,
    read_model_type,
    teacher_types,
)
from tide_core.contracts.job import JobSpec, TeacherSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import Layout
from tide_core.models.conversion import convert, initialise
from tide_core.models.decoder import Decoder
from tide_core.models.registry import model_class
from tide_core.models.teachers.adapter import load_teacher
from tide_core.planning.shapes import model_shape
from tools import model_families_page

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 800,
}
NEW = replace(
    QWEN3,
    model_type="newcomer",
    title="Newcomer",
    architecture="NewcomerForCausalLM",
    attention=("bidirectional",),
)


@pytest.fixture
def newcomer(monkeypatch: pytest.MonkeyPatch) -> str:
    """A family that exists for one test, as one entry of the table."""
    monkeypatch.setitem(FAMILIES, NEW.model_type, NEW)
    return NEW.model_type


def test_one_entry_is_enough_for_loader_planner_checks_conversion_and_page(
    newcomer: str, qwen_folder: Path, tmp_path: Path
) -> None:
    assert check_teacher_architecture(newcomer, "auto", "teacher.model") == newcomer
    check_student_architecture(newcomer, "student.model")
    check_student_architecture(STUDENT_PREFIX + newcomer, "student.model")
    student = initialise(SIZES | {"model_type": newcomer}, qwen_folder, tmp_path / "made", seed=1)
    assert student.config.model_type == STUDENT_PREFIX + newcomer
    assert student.config_json()["architectures"] == ["A2DNewcomerLMHeadModel"]
    assert "NewcomerForCausalLM" in (tmp_path / "made" / "README.md").read_text()
    converted = convert(tmp_path / "made", tmp_path / "converted")
    assert converted.config.family is NEW
    teacher = load_teacher(tmp_path / "converted")
    assert type(teacher) is type(student)
    shape = model_shape(SIZES | {"model_type": newcomer}, "teacher.model")
    assert shape.parameters == sum(
        each.numel() for each in model_class(newcomer)(student.config).parameters()
    )
    assert "| Newcomer | `newcomer` | `a2d-newcomer` | `bidirectional` |" in model_families_page.document()


def test_a_pattern_that_the_family_does_not_know_is_refused(newcomer: str) -> None:
    body = {"teacher": {"model": "m"}, "student": {"model": "s"}, "objective": [{"type": "reverse_kl"}]}
    body |= {"data": {"sources": [{"location": "d"}]}}
    left_open = JobSpec.model_validate(body)
    assert resolve(left_open, pipeline=Pipeline.SHARED_TOKENIZER).teacher.attention == "block_staircase"
    resolved = resolve(left_open, pipeline=Pipeline.SHARED_TOKENIZER, teacher_architecture=newcomer)
    assert resolved.teacher.attention == "bidirectional"
    spec = JobSpec.model_validate(body | {"teacher": {"model": "m", "attention": "block_staircase"}})
    with pytest.raises(InvalidInputError) as caught:
        resolve(spec, pipeline=Pipeline.SHARED_TOKENIZER, teacher_architecture=newcomer)
    assert (caught.value.code, caught.value.param) == ("attention_not_supported", "teacher.attention")


def test_the_spec_takes_what_the_loader_takes() -> None:
    assert get_args(TeacherSpec.model_fields["architecture"].annotation) == ("auto", *teacher_types())
    for model_type in teacher_types():
        assert issubclass(model_class(model_type), Decoder)
    with pytest.raises(CheckpointError, match="not known here"):
        model_class("mamba")


def test_the_patterns_are_those_of_score_requests() -> None:
    assert set(ALL_ATTENTION) == {layout.value for layout in Layout}
    assert [name for name, family in FAMILIES.items() if "causal" in family.attention] == ["wedlm"]


def test_a_switch_is_settled_or_read_from_its_field() -> None:
    assert ALWAYS.read({"": False})
    switch = Switch(True, "use_it")
    assert [switch.read(config) for config in ({}, {"use_it": None}, {"use_it": False}, {"use_it": 1})] == [
        True,
        True,
        False,
        True,
    ]


def test_only_causal_families_have_students() -> None:
    assert find_family("a2d-qwen2") is FAMILIES["qwen2"]
    for name in ("a2d-wedlm", "a2d-llada2_moe", "a2d-", "a2d-mamba", "", None):
        assert find_family(name) is None
        assert not is_student_type(name)
    for name in ("a2d-sdar", "a2d-Dream", "a2d-Fast_dLLM_Qwen"):
        assert find_family(name) is None
    assert FAMILIES["sdar"].student_type == "a2d-qwen3"
    assert architecture_name("a2d-llama") == "A2DLlamaLMHeadModel"
    with pytest.raises(KeyError):
        architecture_name("a2d-wedlm")


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        ({"model_type": "qwen3", "architectures": ["Anything"]}, "qwen3"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "Dream"),
        ({"model_type": "Dream"}, "Dream"),
        # Not shifted, and of another shape.
        ({"model_type": "Dream", "architectures": ["DreamForCausalLM"]}, "Dream (DreamForCausalLM)"),
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada"),
        ({"model_type": "llada"}, "llada"),
        ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}, "llada_moe"),
        ({"model_type": "llada", "architectures": ["LLaDAMoEModel"]}, "llada_moe"),
        ({"model_type": "lladamoe"}, "llada_moe"),
        ({"model_type": "llada", "architectures": ["LLaDAVModel"]}, "llada (LLaDAVModel)"),
        ({"model_type": "mamba"}, "mamba"),
        ({}, "None"),
    ],
)
def test_a_name_that_several_models_use_is_settled_by_the_class(config: dict, model_type: str) -> None:
    assert read_model_type(config) == model_type


NAME = re.compile(r"\b(wedlm|llada2_moe\w*|llada_?moe|sdar|Fast_dLLM_Qwen|DreamModel)\b|\ba2d-")
IMPORT = re.compile(r"^\s*(from|import) ")
TABLE = Path("tide_core/contracts/families.py")


def spelt_names(text: str) -> set[int]:
    """Lines of a source that spell a family's name: distinctive ones anywhere, all of them as literals."""
    lines = text.splitlines()
    found = {number for number, line in enumerate(lines, 1) if NAME.search(line) and not IMPORT.match(line)}
    names = {
        name
        for family in FAMILIES.values()
        for name in (family.model_type, family.student_type, family.architecture)
    }
    found |= {
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    }
    return found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from tide_core.models.teachers.wedlm import WeDLMModel", set()),
        ("KIND = QWEN3.model_type  # as Qwen3", set()),
        ("if kind == 'qwen3':\n    pass", {1}),
        ("x = 1\nnames = ['llama', 'Qwen2ForCausalLM']", {2}),
        ("prefix = 'a2d-'", {1}),
        ("# as in wedlm", {1}),
    ],
)
def test_what_spells_a_name(source: str, lines: set[int]) -> None:
    assert spelt_names(source) == lines


def test_no_other_source_spells_a_familys_name() -> None:
    found = []
    for package in ("tide", "tide_core", "service", "workers", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.relative_to(ROOT) != TABLE:
                lines = sorted(spelt_names(path.read_text()))
                found += [f"{path.relative_to(ROOT)}:{number}" for number in lines]
    assert not found, "read tide_core/contracts/families.py instead:\n" + "\n".join(found)
