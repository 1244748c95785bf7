"""Variants expand to the table of the paper, and impossible sums are refused."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.objective import (
    REVERSE_TERMS,
    TIDAL_TERMS,
    AnyChunkTerm,
    CalmTerm,
    ChunkTerm,
    CrossEntropyTerm,
    ObjectiveTerm,
    Pipeline,
    PositionTerm,
    Variant,
    check_terms,
    expand_variant,
    needs_teacher,
    term_names,
    weighted_terms,
)
from tide_core.objective.objective import Objective
from tide_core.schedules.noise import LinearNoise

ROOT = Path(__file__).resolve().parents[3]

EXPANSIONS = {
    (Variant.NONE, Pipeline.CROSS_TOKENIZER): (["cross_entropy"], "full"),
    (Variant.NONE, Pipeline.SHARED_TOKENIZER): (["cross_entropy"], "full"),
    (Variant.BASELINE, Pipeline.CROSS_TOKENIZER): (["cross_entropy", "calm"], "full"),
    (Variant.BASELINE, Pipeline.SHARED_TOKENIZER): (["cross_entropy", "forward_kl"], "full"),
    (Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER): (["cross_entropy", "reverse_calm"], "full"),
    (Variant.TIDE_CROSS, Pipeline.SHARED_TOKENIZER): (["cross_entropy", "reverse_kl"], "full"),
    (Variant.TIDE_SHARED, Pipeline.CROSS_TOKENIZER): (["cross_entropy", "tidal_calm"], "comp_demo"),
    (Variant.TIDE_SHARED, Pipeline.SHARED_TOKENIZER): (["cross_entropy", "tidal"], "comp_demo"),
}


@pytest.mark.parametrize(("variant", "pipeline"), [(v, p) for v in Variant for p in Pipeline])
def test_variant_expands_to_the_papers_table(variant: Variant, pipeline: Pipeline) -> None:
    terms, context = expand_variant(variant, pipeline)
    assert ([term.type for term in terms], context.type) == EXPANSIONS[variant, pipeline]
    check_terms(terms, pipeline)


def test_temperatures_default_to_the_pipelines_own() -> None:
    (_, chunk), _ = expand_variant(Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER)
    (_, position), _ = expand_variant(Variant.TIDE_SHARED, Pipeline.SHARED_TOKENIZER)
    assert (chunk.temperature, position.temperature) == (5.0, 2.0)
    assert (position.timestep_weight, position.schedule.lambda_init) == ("midrange", 0.1)


@pytest.mark.parametrize("forward", ["tidal", "tidal_calm"])
def test_tidal_with_a_reverse_term_is_refused_unless_asked_for(forward: str) -> None:
    pipeline = Pipeline.SHARED_TOKENIZER if forward == "tidal" else Pipeline.CROSS_TOKENIZER
    reverse = "reverse_kl" if forward == "tidal" else "reverse_calm"
    terms = TypeAdapter(tuple[ObjectiveTerm, ...]).validate_python([{"type": forward}, {"type": reverse}])
    with pytest.raises(InvalidInputError) as caught:
        check_terms(terms, pipeline)
    assert caught.value.code == "tidal_with_reverse"
    check_terms(terms, pipeline, allow_unsupported=True)


@pytest.mark.parametrize(
    ("term", "pipeline"),
    [("calm", Pipeline.SHARED_TOKENIZER), ("forward_kl", Pipeline.CROSS_TOKENIZER)],
)
def test_a_term_of_the_other_pipeline_is_refused_by_name(term: str, pipeline: Pipeline) -> None:
    terms = TypeAdapter(tuple[ObjectiveTerm, ...]).validate_python([{"type": term}])
    with pytest.raises(InvalidInputError, match=term) as caught:
        check_terms(terms, pipeline)
    assert caught.value.param == "objective.0.type"


def test_unknown_fields_and_types_are_refused() -> None:
    adapter = TypeAdapter(ObjectiveTerm)
    for bad in (
        {"type": "calm", "temprature": 2},
        {"type": "klm"},
        {"type": "tidal", "weight": -1},
        {"type": "tidal", "temperature": 0},
        {"type": "calm", "probability_floor": float("nan")},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_only_cross_entropy_or_zero_weights_need_no_teacher() -> None:
    adapter = TypeAdapter(tuple[ObjectiveTerm, ...])
    assert not needs_teacher((CrossEntropyTerm(),))
    assert not needs_teacher(adapter.validate_python([{"type": "calm", "weight": 0}]))
    assert needs_teacher(adapter.validate_python([{"type": "calm", "weight": 0.1}]))


def test_a_second_term_of_one_type_has_a_name_of_its_own() -> None:
    terms = (CrossEntropyTerm(), CalmTerm(), CalmTerm(weight=0.0), CalmTerm(temperature=2.0), CalmTerm())
    assert term_names(terms) == ("cross_entropy", "calm", "calm_2", "calm_3")
    assert weighted_terms(terms) == (terms[0], terms[1], terms[3], terms[4])
    objective = Objective(terms, LinearNoise())
    assert objective.part_names == term_names(terms)


def all_terms() -> list[type[ChunkTerm]]:
    union, _ = get_args(ObjectiveTerm)
    return list(get_args(union))


@pytest.mark.parametrize("term", all_terms(), ids=lambda term: term.__name__)
def test_every_term_is_a_position_or_a_chunk_term_and_documented(term: type[ChunkTerm]) -> None:
    """What a new term touches: its pipeline and the page of specs; the objective's test holds its oracle."""
    kinds = (*get_args(PositionTerm), *get_args(AnyChunkTerm), CrossEntropyTerm)
    assert kinds.count(term) == 1
    name = term.model_fields["type"].default
    assert f'`"{name}"`' in (ROOT / "docs/job-spec.md").read_text()
    if "schedule" in term.model_fields:
        assert term in TIDAL_TERMS
    if name.startswith("reverse"):
        assert term in REVERSE_TERMS
