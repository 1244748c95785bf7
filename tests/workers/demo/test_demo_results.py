"""What the demo says of its jobs: figures, intervals, verdicts, and what it does when something fails."""

import io
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from tests.support.job_objects import job_object
from tide.client import Client
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.resources import Job, JobError, JobModel
from workers.demo import main, presentation
from workers.demo.results import NELBO, DemoJobError, FinishedJob, compare, group_outcomes, read_finished
from workers.demo.server import Service
from workers.demo.setting import MAIN_JOBS, DemoJob
from workers.student.journal import Speeds

SEQUENCES = 40
TOKENS = np.arange(SEQUENCES) % 7 + 3.0


def figures(nll: np.ndarray, **others: float) -> dict[str, Any]:
    return {"nelbo_per_token": float(nll.sum() / TOKENS.sum()), "masked_token_accuracy": 0.5, **others}


def ended_job(folder: Path, demo_job: DemoJob, nll: np.ndarray, *, has_baselines: bool) -> Job:
    """A job as the service shows it, with its per-sequence file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sequences.npz"
    columns = {"student/nll": nll, "student/tokens": TOKENS}
    columns |= {"student/hits": TOKENS // 2, "student/asked": np.maximum(TOKENS - 3, 0)}
    np.savez(path, **columns)
    models: dict[str, Any] = {"student": figures(nll)}
    models["student"]["exact_match"] = {
        "rate": 0.25,
        "count": 4,
        "by_group": {"sum": {"rate": 0.25, "count": 4}},
    }
    if has_baselines:
        models |= {"start": figures(nll * 2), "teacher": {"content_nelbo_per_byte": 0.1}}
    return job_object(
        f"job-{demo_job.variant}",
        status="succeeded",
        model=JobModel(id="model-1", location=str(folder / "model"), step=1, bytes=1),
        result={
            "models": models,
            "sequences": str(path),
            "sizes": {"student_parameters": 1_500_000},
            "speeds": asdict(Speeds(0.25, tokens_per_second=100.0, teacher_wait_ratio=0.1)),
        },
    )


@pytest.fixture
def pair(tmp_path: Path) -> list[FinishedJob]:
    draw = np.random.default_rng(0)
    control_nll = draw.random(SEQUENCES) * TOKENS
    distilled_nll = control_nll - 0.1 * TOKENS
    distilled, control = MAIN_JOBS[:2]
    return [
        read_finished(distilled, ended_job(tmp_path / "a", distilled, distilled_nll, has_baselines=True)),
        read_finished(control, ended_job(tmp_path / "b", control, control_nll, has_baselines=False)),
    ]


def test_the_difference_is_distilled_minus_control_per_token(pair: list[FinishedJob]) -> None:
    comparison = compare(pair[0], pair[1], NELBO)
    assert comparison is not None
    assert comparison.result.difference == pytest.approx(-0.1)
    assert comparison.verdict == "helped"
    other_way = compare(pair[1], pair[0], NELBO)
    assert other_way is not None
    assert other_way.verdict == "hurt"


def test_an_interval_around_zero_is_no_clear_difference(pair: list[FinishedJob]) -> None:
    comparison = compare(pair[1], pair[1], NELBO)
    assert comparison is not None
    assert comparison.verdict == "no clear difference"


def test_rows_are_start_control_distilled_teacher(pair: list[FinishedJob]) -> None:
    (outcome,) = group_outcomes(pair)
    assert outcome.pipeline is Pipeline.CROSS_TOKENIZER
    assert [row.name for row in outcome.rows] == ["start", "control (none)", "tide_cross", "teacher"]
    assert outcome.rows[3].values[0] is None
    assert outcome.rows[3].values[1] == 0.1
    assert outcome.rows[2].values[3] == 0.25
    # Sequences that ask for no token are left out instead of dividing by nothing.
    assert {c.figure.title for c in outcome.comparisons} == {NELBO.title, "masked-token accuracy"}


def test_without_the_sequence_file_there_are_figures_but_no_intervals(
    pair: list[FinishedJob], tmp_path: Path
) -> None:
    report = {**pair[0].report, "sequences": str(tmp_path / "elsewhere.npz")}
    job = pair[0].job.model_copy(update={"result": report})
    (outcome,) = group_outcomes([read_finished(MAIN_JOBS[0], job), pair[1]])
    assert outcome.comparisons == ()
    assert "No intervals" in presentation.markdown([outcome], {})


def test_speeds_are_read_as_training_reports_them(pair: list[FinishedJob]) -> None:
    text = presentation.markdown(group_outcomes(pair), {})
    assert "0.250 s/step, 100 tokens/s, waited for the teacher 10% of the time" in text


def test_the_student_to_try_is_never_the_control(pair: list[FinishedJob]) -> None:
    (outcome,) = group_outcomes(pair)
    control_first = replace(outcome, jobs=[pair[1]])
    assert "A student to try" not in presentation.markdown([control_first], {})
    assert pair[0].job.model.location in presentation.markdown([outcome], {})


def test_a_failed_job_gives_its_own_reason() -> None:
    job = job_object(status="failed", error=JobError(code="non_finite_loss", message="Step 3."))
    with pytest.raises(
        DemoJobError, match=r"job-1 \(moe · tide_cross\) failed: Step 3\. \(non_finite_loss\)"
    ):
        read_finished(MAIN_JOBS[0], job)


def test_the_report_says_the_same_in_every_form(pair: list[FinishedJob], tmp_path: Path) -> None:
    found = group_outcomes(pair)
    presentation.write(tmp_path, found, {"steps": 3})
    text = (tmp_path / "report.md").read_text()
    values = json.loads((tmp_path / "report.json").read_text())
    output = io.StringIO()
    presentation.show(Console(file=output, width=160), found)
    models = values["pipelines"]["cross_tokenizer"]["models"]
    for form in (text, output.getvalue()):
        assert f"{models['tide_cross'][NELBO.title]:.4f}" in form
        assert "-0.1000" in form
        assert "distillation helped" in form
        assert f'tide sample "{tmp_path / "a" / "model"}"' in form
    assert values["pipelines"]["cross_tokenizer"]["comparisons"][0]["verdict"] == "helped"
    assert "| exact match | sum |" in text


class Recorder:
    """Stands for the service: takes every job and is interrupted while they run."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.cancelled: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        job_id, _, action = request.url.path.removeprefix("/v1/jobs").strip("/").partition("/")
        if request.method == "POST" and not job_id:
            job_id = f"job-{len(self.posted)}"
            self.posted.append(json.loads(request.content)["name"])
        elif request.method == "GET" and not job_id:
            empty = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
            return httpx.Response(200, json=empty)
        elif action == "cancel":
            self.cancelled.append(job_id)
        elif action == "metrics":
            return httpx.Response(200, json={"job_id": job_id, "data": []})
        elif job_id == f"job-{len(self.posted) - 1}":
            raise KeyboardInterrupt
        status = "running" if job_id != "job-0" else "succeeded"
        return httpx.Response(200, text=job_object(job_id, status=status).model_dump_json())

    def open(self, url: str, **options: int) -> Client:
        return Client(url, transport=httpx.MockTransport(self), **options)


@pytest.mark.parametrize("is_own", [False, True])
def test_ctrl_c_cancels_the_jobs_on_a_service_that_was_running_before(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(main, "Client", recorder.open)
    monkeypatch.setattr(main, "write_corpus", lambda *arguments: {"splits": {}, "documentation_licence": ""})
    if is_own:
        service = Service("http://own", process=object())  # type: ignore[arg-type]
        monkeypatch.setattr(main, "own_service", lambda *arguments, **options: _Entered(service))
    request = main.DemoRequest(tmp_path, None if is_own else "http://theirs")
    with pytest.raises(SystemExit) as ended:
        main.run(request)
    assert ended.value.code == 130
    assert recorder.posted == [job.name for job in MAIN_JOBS]
    assert recorder.cancelled == ([] if is_own else ["job-1", "job-2", "job-3"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_ends_the_demo_as_ctrl_c_does(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    @contextmanager
    def service(*arguments: object, **options: object) -> Iterator[Service]:
        try:
            yield Service("http://own")
        finally:
            ended.append(number)

    monkeypatch.setattr(main, "own_service", service)
    monkeypatch.setattr(main, "write_corpus", lambda *arguments: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main.run(main.DemoRequest(tmp_path))
    assert stopped.value.code == 130
    assert ended == [number]
    assert signal.getsignal(number) == before


class _Entered:
    def __init__(self, value: Service) -> None:
        self.value = value

    def __enter__(self) -> Service:
        return self.value

    def __exit__(self, *error: object) -> None:
        pass
