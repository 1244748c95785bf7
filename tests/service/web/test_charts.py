"""Charts ask for the very series that trainers report."""

from types import SimpleNamespace
from typing import Any

from service.web.views import job_charts
from tide_core.contracts.objective import CalmTerm, CrossEntropyTerm


def test_two_terms_of_one_type_have_a_curve_each() -> None:
    terms = (CrossEntropyTerm(), CalmTerm(), CalmTerm(temperature=2.0), CalmTerm(weight=0.0))
    job: Any = SimpleNamespace(id="job", spec=SimpleNamespace(objective=terms))
    (chart,) = [chart for chart in job_charts(job) if chart.title == "Loss by term"]
    assert [series["name"] for series in chart.series] == ["loss/cross_entropy", "loss/calm", "loss/calm_2"]
