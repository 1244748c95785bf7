"""docs/client.md works as it is written: its snippets run in order, against a real control plane."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import tide
from service.orchestrator.compute import Submission
from service.orchestrator.fake_compute import FakeCompute
from tests.support.running_app import run_app

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


class FailingCompute(FakeCompute):
    """A cluster whose jobs end at once: waiting and watching have an end."""

    async def submit(self, submission: Submission) -> None:
        """Take a submission and let it fail."""
        await super().submit(submission)
        self.finish(submission.submission_id, exit_code=1, message="nothing computes here")


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_body: dict[str, Any]) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 7
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_body))
    monkeypatch.chdir(tmp_path)
    with run_app(tmp_path / "data", FailingCompute(), reconcile_interval_seconds=0.05) as url:
        monkeypatch.setenv("TIDE_URL", url)
        names: dict[str, Any] = {}
        for snippet in snippets:
            exec(compile(snippet, PAGE.name, "exec"), names)
    assert names["story"][0] == "job.queued"
    assert names["story"][-1] == "job.failed"
    assert [job.status for job in names["ended"]] == [tide.JobState.FAILED] * 2
    assert len(names["newest"]) == 2


def test_every_error_class_is_on_the_page() -> None:
    page = PAGE.read_text()
    errors = [name for name in tide.__all__ if name.endswith("Error") and name != "InvalidInputError"]
    assert [name for name in errors if f"`{name}`" not in page and f"tide.{name}" not in page] == []
