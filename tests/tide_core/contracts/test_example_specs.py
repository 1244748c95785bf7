"""The example specs are valid, and resolve to what they say."""

from pathlib import Path

import pytest
import yaml

from tide_core.contracts.job import JobSpec, resolve
from tide_core.contracts.objective import Pipeline, Variant

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_valid_spec(path: Path) -> None:
    spec = JobSpec.model_validate(yaml.safe_load(path.read_text()))
    pipeline = Pipeline.SHARED_TOKENIZER if spec.pipeline == "auto" else Pipeline(spec.pipeline)
    resolved = resolve(spec, pipeline=pipeline)
    if isinstance(spec.objective, Variant):
        assert resolved.variant is spec.objective
    else:
        assert resolved.objective == spec.objective
