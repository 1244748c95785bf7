"""How requests are sent, sent again, and refused: with both kinds of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

import tide
from tests.support.job_objects import SPEC, job_object
from tide.operations import get_job
from tide.transport.patience import NONE, Patience
from tide.transport.steps import Pause, send, wait_for_end
from tide_core.contracts.errors import ConflictError, InvalidInputError, NotFoundError, TideError

Answer = httpx.Response | Exception
GOOD = job_object().model_dump_json()


def refusal(status: int, code: str = "no", **headers: str) -> httpx.Response:
    error = {"message": "No.", "type": "x", "param": "a.b", "code": code}
    return httpx.Response(status, json={"error": error}, headers=headers)


def repeat(action: Callable[[], object]) -> None:
    """Do it until it raises."""
    while True:
        action()


class Script:
    """A server that gives the answers of a list, one after the other."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were kept, at no time."""
    kept: list[float] = []

    async def keep(seconds: float) -> None:
        kept.append(seconds)

    monkeypatch.setattr("time.sleep", kept.append)
    monkeypatch.setattr("asyncio.sleep", keep)
    return kept


Run = Callable[[Script, str, Any], Any]


def run_blocking(script: Script, method: str, *arguments: Any) -> Any:
    with tide.Client("http://tide", "tide_t", transport=httpx.MockTransport(script)) as client:
        return getattr(client.jobs, method)(*arguments)


def run_awaiting(script: Script, method: str, *arguments: Any) -> Any:
    async def run() -> Any:
        transport = httpx.MockTransport(script)
        async with tide.AsyncClient("http://tide", "tide_t", transport=transport) as client:
            return await getattr(client.jobs, method)(*arguments)

    return asyncio.run(run())


@pytest.fixture(params=[run_blocking, run_awaiting], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    return request.param


class TestTryingAgain:
    @pytest.mark.parametrize("failure", [httpx.ConnectError, httpx.ReadTimeout, 429, 502, 503, 504])
    def test_what_may_pass_is_sent_again_after_growing_pauses(
        self, run: Run, pauses: list[float], failure: Any
    ) -> None:
        failures = [refusal(failure) if isinstance(failure, int) else failure("gone") for _ in range(2)]
        script = Script(*failures, httpx.Response(200, text=GOOD))
        assert run(script, "get", "job-1").id == "job-1"
        assert len(script.requests) == 3
        assert 0.125 <= pauses[0] <= 0.25
        assert 0.25 <= pauses[1] <= 0.5

    def test_it_ends_with_the_error_after_the_last_retry(self, run: Run, pauses: list[float]) -> None:
        script = Script(*[httpx.ConnectError("refused")] * 5)
        with pytest.raises(tide.UnreachableError, match="No server answers at http://tide"):
            run(script, "get", "job-1")
        assert len(pauses) == 4

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
    def test_what_does_not_pass_is_sent_once(self, run: Run, pauses: list[float], status: int) -> None:
        with pytest.raises(tide.ApiError):
            run(Script(refusal(status)), "get", "job-1")
        assert pauses == []

    def test_the_server_says_when(self, run: Run, pauses: list[float]) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
        wild = refusal(503, **{"Retry-After": "soon"})
        script = Script(
            refusal(429, **{"Retry-After": "7"}),
            refusal(503, **{"Retry-After": later}),
            wild,
            httpx.Response(200, text=GOOD),
        )
        run(script, "get", "job-1")
        assert pauses[0] == 7
        assert 28 < pauses[1] <= 30
        assert pauses[2] <= 1

    def test_a_post_is_sent_again_under_its_key_alone(self, run: Run, pauses: list[float]) -> None:
        script = Script(httpx.ReadError("gone"), refusal(503), httpx.Response(201, text=GOOD))
        run(script, "create", SPEC)
        keys = {request.headers["Idempotency-Key"] for request in script.requests}
        assert len(script.requests) == 3
        assert len(keys) == 1
        other = Script(httpx.Response(201, text=GOOD))
        run(other, "create", SPEC)
        assert other.requests[0].headers["Idempotency-Key"] not in keys

    @pytest.mark.parametrize("method", ["cancel", "pause", "resume", "plan"])
    def test_a_post_without_a_key_is_sent_once(self, run: Run, pauses: list[float], method: str) -> None:
        argument = {"spec": SPEC} if method == "plan" else "job-1"
        with pytest.raises(tide.UnreachableError):
            run(Script(httpx.ReadError("gone")), method, argument)
        assert pauses == []

    def test_a_deadline_ends_it_too(self) -> None:
        now = [0.0]
        patience = Patience(retries=None, seconds=10.0)
        steps = send(get_job("job-1"), "http://tide", patience, lambda: now[0])
        next(steps)

        def fail_again() -> None:
            step = steps.throw(httpx.ConnectError("refused"))
            assert isinstance(step, Pause)
            now[0] += step.seconds
            steps.send(None)

        with pytest.raises(tide.UnreachableError):
            repeat(fail_again)
        assert 0 < now[0] <= 10


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind", "also"),
        [
            (401, tide.AuthenticationError, TideError),
            (403, tide.AccessDeniedError, TideError),
            (404, tide.MissingResourceError, NotFoundError),
            (409, tide.RequestConflictError, ConflictError),
            (422, tide.InvalidRequestError, InvalidInputError),
            (429, tide.TooManyRequestsError, TideError),
            (500, tide.ServerFailedError, TideError),
            (503, tide.ServerFailedError, TideError),
        ],
    )
    def test_each_status_has_a_class_that_carries_what_the_server_said(
        self, status: int, kind: type[tide.ApiError], also: type[TideError]
    ) -> None:
        script = Script(refusal(status, "some_code", **{"X-Request-Id": "req-7"}))
        with (
            tide.Client("http://tide", retries=0, transport=httpx.MockTransport(script)) as client,
            pytest.raises(kind) as caught,
        ):
            client.jobs.get("job-1")
        error = caught.value
        assert isinstance(error, also)
        assert (error.message, error.code, error.param) == ("No.", "some_code", "a.b")
        assert (error.status, error.request_id) == (status, "req-7")

    @pytest.mark.parametrize("status", [404, 500, 418])
    def test_another_program_at_the_address_is_said_so(self, run: Run, status: int) -> None:
        with pytest.raises(tide.UnexpectedAnswerError, match="is it Tide"):
            run(Script(httpx.Response(status, text="<html>")), "get", "job-1")

    def test_a_proxy_that_says_the_server_is_away_counts_as_that(self, run: Run, pauses: list[float]) -> None:
        proxy = httpx.Response(502, text="<html>")
        assert run(Script(proxy, httpx.Response(200, text=GOOD)), "get", "job-1").id == "job-1"

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 3}'])
    def test_an_answer_that_cannot_be_read(self, run: Run, text: str) -> None:
        with pytest.raises(tide.UnexpectedAnswerError, match="If the server is newer, upgrade"):
            run(Script(httpx.Response(200, text=text)), "get", "job-1")

    def test_fields_of_a_newer_server_are_ignored(self, run: Run) -> None:
        document = job_object().model_dump(mode="json")
        document["novelty"] = 1
        document["spec"]["data"]["novelty"] = {"deep": True}
        document["spec"]["objective"][0]["novelty"] = 2
        job = run(Script(httpx.Response(200, json=document)), "get", "job-1")
        assert job.model_dump(exclude={"spec"}) == job_object().model_dump(exclude={"spec"})
        assert job.spec == job_object().spec

    @pytest.mark.parametrize("job_id", ["", ".", ".."])
    def test_what_is_no_id_is_not_sent(self, run: Run, job_id: str) -> None:
        with pytest.raises(InvalidInputError, match="give an id"):
            run(Script(), "get", job_id)

    def test_an_id_stays_one_part_of_the_path(self, run: Run) -> None:
        script = Script(refusal(404))
        with pytest.raises(tide.MissingResourceError):
            run(script, "get", "a/../b?c")
        assert script.requests[0].url.raw_path == b"/v1/jobs/a%2F..%2Fb%3Fc"


class TestConnecting:
    @pytest.mark.parametrize("url", ["tide", "ftp://tide", "http://", "http://tide:port", "127.0.0.1:8700"])
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            tide.Client(url)
        assert caught.value.code == "bad_url"

    def test_what_is_no_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InvalidInputError) as caught:
            tide.Client("http://tide", "two words")
        assert caught.value.param == "token"
        monkeypatch.setenv("TIDE_TOKEN", "two words")
        with pytest.raises(InvalidInputError) as caught:
            tide.Client("http://tide")
        assert caught.value.param == "TIDE_TOKEN"
        assert "two words" not in caught.value.message

    def test_the_environment_names_server_and_token(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        monkeypatch.setenv("TIDE_URL", "http://elsewhere:1/")
        monkeypatch.setenv("TIDE_TOKEN", " tide_env\n")
        script = Script(refusal(404), refusal(404))
        client = tide.Client(transport=httpx.MockTransport(script))
        assert client.url == "http://elsewhere:1"
        for one in (client, client.with_token(None)):
            with pytest.raises(tide.MissingResourceError):
                one.jobs.get("x")
        assert script.requests[0].headers["Authorization"] == "Bearer tide_env"
        assert "Authorization" not in script.requests[1].headers
        monkeypatch.delenv("TIDE_URL")
        monkeypatch.setenv("TIDE_DATA_DIR", str(tmp_path))
        assert tide.Client().url == "http://127.0.0.1:8700"
        record = '{"pid": 1, "url": "http://127.0.0.1:99", "ray_dashboard": "", "started_at": ""}'
        (tmp_path / "up.json").write_text(record)
        assert tide.Client().url == "http://127.0.0.1:99"

    def test_a_copy_with_another_token_shares_the_connections(self) -> None:
        script = Script(*[httpx.Response(200, text=GOOD) for _ in range(3)])
        client = tide.Client("http://tide", "tide_one", transport=httpx.MockTransport(script))
        with client.with_token("tide_two") as other:
            other.jobs.get("x").refresh()
        client.jobs.get("x")
        sent = [request.headers["Authorization"] for request in script.requests]
        assert sent == ["Bearer tide_two", "Bearer tide_two", "Bearer tide_one"]
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            other.jobs.get("x")

    def test_a_slash_at_the_end_of_an_address_or_a_path_before_it(self) -> None:
        script = Script(httpx.Response(200, text=GOOD))
        with tide.Client("http://proxy/tide/", transport=httpx.MockTransport(script)) as client:
            client.jobs.get("job-1")
        assert script.requests[0].url.path == "/tide/v1/jobs/job-1"


class TestWaiting:
    def test_looks_less_and_less_often_until_the_end(self, run: Run, pauses: list[float]) -> None:
        running = httpx.Response(200, text=job_object(status="running").model_dump_json())
        done = httpx.Response(200, text=job_object(status="succeeded").model_dump_json())
        job = run(Script(*[running] * 8, done), "wait", "job-1")
        assert job.status is tide.JobState.SUCCEEDED
        assert len(pauses) == 8
        assert pauses[0] <= 0.25
        assert 2.5 <= pauses[-1] <= 5

    def test_a_control_plane_that_restarts_is_waited_for(self, run: Run, pauses: list[float]) -> None:
        done = httpx.Response(200, text=job_object(status="failed").model_dump_json())
        job = run(Script(*[httpx.ConnectError("refused")] * 9, done), "wait", "job-1")
        assert job.status is tide.JobState.FAILED

    def test_the_time_is_up(self) -> None:
        now = [0.0]
        running = httpx.Response(200, text=job_object(status="running").model_dump_json())
        steps = wait_for_end(get_job("job-1"), "http://tide", NONE, 3.0, lambda: now[0])
        next(steps)

        def look_again() -> None:
            step = steps.send(running)
            assert isinstance(step, Pause)
            now[0] += step.seconds
            steps.send(None)

        with pytest.raises(tide.WaitTimeoutError, match="job-1 is running after 3 seconds"):
            repeat(look_again)
        assert now[0] == 3.0
        assert issubclass(tide.WaitTimeoutError, TimeoutError)
