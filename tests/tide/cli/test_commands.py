"""The commands as a person types them, against the real control plane without a network between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.commands.setting_flags import read_settings
from service.orchestrator.embedded_ray import find_free_port
from service.settings import Settings
from tests.support.job_objects import job_object
from tide.cli import main as cli
from tide.cli.jobs import print_lines
from tide.cli.options import Output
from tide.cli.spec_file import read_spec
from tide.cli.watching import event_line, follow, outcome
from tide.client import Client
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.event import Event
from tide_core.contracts.resources import JobError, JobModel


def invoke(*words: str, text: str | None = None, **environment: str) -> Any:
    app = cli.build_app(words[0])
    return CliRunner().invoke(app, list(words), input=text, env=environment)


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tide.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'sqlalchemy', 'fastapi', 'pydantic', 'httpx', 'transformers', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert answer.stderr.strip() == "[]"
    for word in ("up", "down", "doctor", "jobs", "teachers", "tokens", "plan", "sample", "convert", "demo"):
        assert word in answer.stdout


def test_up_help_lists_every_setting_with_its_variable() -> None:
    answer = invoke("up", "--help", COLUMNS="200")
    assert answer.exit_code == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in answer.output
        assert f"[env: TIDE_{name.upper()}]" in " ".join(answer.output.split())


class TestSettings:
    def test_flags_over_environment_over_file_over_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "tide.toml"
        file.write_text('port = 1\nhost = "10.0.0.1"\nlog_level = "DEBUG"\n')
        monkeypatch.setenv("TIDE_CONFIG", str(file))
        monkeypatch.setenv("TIDE_PORT", "2")
        monkeypatch.setenv("TIDE_HOST", "10.0.0.2")
        settings = read_settings(None, {"port": "3", "host": None})
        assert (settings.port, settings.host, settings.log_level) == (3, "10.0.0.2", "DEBUG")
        assert settings.reconcile_interval_seconds == 1.0

    @pytest.mark.parametrize(
        ("flags", "param"),
        [({"port": "many"}, "port"), ({"teacher_linger_seconds": "-1"}, "teacher_linger_seconds")],
    )
    def test_a_wrong_value_is_named(self, flags: dict[str, str], param: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            read_settings(None, flags)
        assert caught.value.param == param

    def test_an_unknown_setting_in_the_file_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "tide.yaml"
        file.write_text("prot: 1\n")
        monkeypatch.setenv("TIDE_CONFIG", str(file))
        with pytest.raises(InvalidInputError, match="no setting 'prot'"):
            read_settings(None, {})

    def test_a_missing_file_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TIDE_CONFIG", "/nowhere/tide.toml")
        with pytest.raises(InvalidInputError, match=r"/nowhere/tide\.toml"):
            read_settings(None, {})

    def test_up_reports_it_in_one_line(self, tmp_path: Path) -> None:
        answer = invoke("up", "--port", "many", "--data-dir", str(tmp_path / "d"))
        assert answer.exit_code == 1
        assert answer.stderr.startswith("error [port]: ")
        assert not (tmp_path / "d").exists()


class TestSpecFiles:
    def test_yaml_and_json_and_numbers_as_people_write_them(self, tmp_path: Path) -> None:
        file = tmp_path / "job.yaml"
        file.write_text("rate: 5e-5\nmore: 1E3\nwhole: 7\nname: 5e-5x\n")
        assert read_spec(str(file)) == {"rate": 5e-5, "more": 1000.0, "whole": 7, "name": "5e-5x"}
        file.write_text(json.dumps({"a": [1, None]}))
        assert read_spec(str(file)) == {"a": [1, None]}

    @pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
    def test_what_is_no_spec(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "job.yaml"
        file.write_text(text)
        with pytest.raises(InvalidInputError) as caught:
            read_spec(str(file))
        assert caught.value.code == "bad_spec_file"

    def test_a_missing_file_is_one_line(self) -> None:
        answer = invoke("jobs", "submit", "/nowhere.yaml")
        assert answer.exit_code == 1
        assert "/nowhere.yaml" in answer.stderr
        assert "Traceback" not in answer.output


class TestAgainstAControlPlane:
    def test_empty_lists(self, url: str) -> None:
        assert "no jobs yet" in invoke("jobs", "list", "--url", url).output
        assert "no teachers yet" in invoke("teachers", TIDE_URL=url).output
        assert json.loads(invoke("jobs", "list", "--url", url, "-o", "json").output) == []

    def test_the_servers_refusal_is_shown_with_its_field(self, url: str) -> None:
        answer = invoke("jobs", "submit", "-", "--url", url, text='{"colour": "red"}')
        assert answer.exit_code == 1
        assert "colour" in answer.stderr
        answer = invoke("jobs", "submit", "-", "--url", url, "-o", "json", text='{"colour": "red"}')
        assert json.loads(answer.stderr)["error"]["code"]

    @pytest.mark.parametrize("verb", ["get", "watch", "cancel", "pause", "resume", "logs"])
    def test_an_unknown_job(self, url: str, verb: str) -> None:
        answer = invoke("jobs", verb, "job-unknown", "--url", url)
        assert answer.exit_code == 1
        assert "job-unknown" in answer.stderr

    def test_log_lines_are_printed_whole(self, capsys: pytest.CaptureFixture[str]) -> None:
        rest = print_lines('one\n\ntw"o\nthr', Output.TABLE)
        assert (capsys.readouterr().out, rest) == ('one\n\ntw"o\n', "thr")
        assert print_lines(rest + "ee\n", Output.JSON) == ""
        assert print_lines("\nx\n", Output.JSON) == ""
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines == [{"line": "three"}, {"line": ""}, {"line": "x"}]
        assert print_lines("", Output.JSON) == ""
        assert capsys.readouterr().out == ""

    def test_an_address_without_a_server(self) -> None:
        answer = invoke("jobs", "list", "--url", f"http://127.0.0.1:{find_free_port()}")
        assert answer.exit_code == 1
        assert "tide up" in answer.stderr


class BrokenOnce(httpx.BaseTransport):
    """A control plane that goes away in the middle of a stream and comes back."""

    def __init__(self) -> None:
        self.last_ids: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/metrics"):
            return httpx.Response(200, json={"job_id": "job-1", "data": []})
        if not request.url.path.endswith("/stream"):
            return httpx.Response(200, text=job_object(status="succeeded").model_dump_json())
        self.last_ids.append(request.headers.get("Last-Event-ID"))
        if len(self.last_ids) == 1:
            return httpx.Response(200, stream=self._first())
        return httpx.Response(200, text="event: done\ndata: {}\n\n")

    def _first(self) -> httpx.SyncByteStream:
        event = TestWatching.EVENT.model_dump_json()

        class Broken(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                yield f": ping\n\nid: 7\ndata: {event}\n\n".encode()
                raise httpx.ReadError("gone")

        return Broken()


class TestWatching:
    def test_goes_on_after_the_last_event_when_the_control_plane_comes_back(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        transport = BrokenOnce()
        with Client("http://tide", transport=transport) as client:
            assert follow(client, "job-1", Output.JSON) == 0
        assert transport.last_ids == [None, "7"]
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line.get("type", line.get("status")) for line in lines] == ["teacher.slow", "succeeded"]

    def test_ctrl_c_leaves_the_job_alone_and_says_so(self, url: str, job_body: dict[str, Any]) -> None:
        job_id = Client(url).jobs.create(job_body).id
        words = [sys.executable, "-m", "tide.cli.main", "jobs", "watch", job_id, "--url", url]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As in a terminal: a shell's background job, such as this test run may be, ignores the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert "accepted" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert f"tide jobs cancel {job_id}" in said
        assert "Traceback" not in said
        assert "is cancelling" in invoke("jobs", "cancel", job_id, "--url", url).stdout
        answer = invoke("jobs", "watch", job_id, "--url", url)
        assert answer.exit_code == 1
        assert f"{job_id} is cancelled." in answer.stdout
        assert (
            json.loads(invoke("jobs", "get", job_id, "--url", url, "-o", "json").stdout)["status"]
            == "cancelled"
        )

    EVENT = Event(
        id=7,
        job_id="job-1",
        created_at=datetime(2026, 1, 1, 10, 20, 30, tzinfo=UTC),
        type="teacher.slow",
        level="warning",
        message="slow",
    )

    def test_lines(self) -> None:
        assert event_line(self.EVENT) == "10:20:30  WARNING: slow"
        error = JobError(code="no_rows", message="None left.")
        failed = job_object(status="failed", error=error)
        assert outcome(failed) == "job-1 failed: None left. (no_rows)"
        done = job_object(status="succeeded", model=JobModel(id="m", location="/m", step=1, bytes=1))
        assert "tide sample /m" in outcome(done)
