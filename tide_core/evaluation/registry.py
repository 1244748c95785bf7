"""The evaluators that a job's evaluation runs, in their order: add one to the tuple and it is run.

In: a resolved spec. Out: the evaluators that it asks for.

A new evaluator touches:

1. its module in this folder: a class as `Evaluator` (`evaluator.py`) says, and its place in `EVALUATORS`;
2. `tide_core/contracts/job.py`: what a user may say about it, in `EvaluationSpec`;
3. `tide_core/contracts/figures.py`: a `Measure` for each figure that it puts on a curve;
4. `tests/tide_core/evaluation`: its figures against a slow, separate computation;
5. `docs/job-spec.md` and `docs/openapi.json`, generated again by `tools`.

`tests/tide_core/evaluation/test_registry.py` holds the list.
"""

from __future__ import annotations

from tide_core.contracts.job import ResolvedJobSpec
from tide_core.evaluation.evaluator import Evaluator
from tide_core.evaluation.exact_match import ExactMatch
from tide_core.evaluation.held_out import HeldOutFigures

EVALUATORS: tuple[Evaluator, ...] = (HeldOutFigures(), ExactMatch())


def evaluators_of(spec: ResolvedJobSpec) -> tuple[Evaluator, ...]:
    """The evaluators that a job asks for."""
    return tuple(evaluator for evaluator in EVALUATORS if evaluator.is_asked_for(spec))
