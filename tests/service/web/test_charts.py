"""Charts ask for the very series that trainers report."""

from types import SimpleNamespace
from typing import Any

from service.web.views import chart_title, job_charts
from tide_core.contracts.figures import (
    GRADIENT_NORM,
    STEP_SECONDS,
    TEACHER_WAIT_SECONDS,
    TOKENS_PER_SECOND,
    figure_of,
)
from tide_core.contracts.objective import CalmTerm, CrossEntropyTerm


def test_two_terms_of_one_type_have_a_curve_each() -> None:
    terms = (CrossEntropyTerm(), CalmTerm(), CalmTerm(temperature=2.0), CalmTerm(weight=0.0))
    job: Any = SimpleNamespace(id="job", spec=SimpleNamespace(objective=terms))
    (chart,) = [chart for chart in job_charts(job) if chart.title == "Loss by term"]
    assert [series["name"] for series in chart.series] == ["loss/cross_entropy", "loss/calm", "loss/calm_2"]


def test_every_chart_draws_figures_that_are_reported() -> None:
    job: Any = SimpleNamespace(id="job", spec=SimpleNamespace(objective=(CrossEntropyTerm(),)))
    drawn = {series["name"] for chart in job_charts(job) for series in chart.series}
    assert "held_out/nelbo" in drawn
    assert all(figure_of(name) is not None for name in drawn)


def test_a_charts_title_names_the_unit_once() -> None:
    assert chart_title(TOKENS_PER_SECOND) == "Throughput (tokens per second)"
    assert chart_title(TEACHER_WAIT_SECONDS, STEP_SECONDS) == "Wait for the teacher and step time (seconds)"
    assert chart_title(GRADIENT_NORM) == "Gradient norm"
