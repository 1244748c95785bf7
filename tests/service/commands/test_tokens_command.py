"""`tide tokens` on the database, and the commands and servers that its tokens open and close."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.orchestrator.embedded_ray import find_free_port
from service.settings import Authentication
from tests.support.running_app import run_app
from tide.cli import main as cli


def invoke(*words: str, **environment: str) -> Any:
    app = cli.build_app(words[0])
    return CliRunner().invoke(app, list(words), env=environment)


def create(folder: Path, name: str, role: str, *more: str) -> str:
    answer = invoke("tokens", "create", "--name", name, "--role", role, "--data-dir", str(folder), *more)
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.strip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("closed")


@pytest.fixture(scope="module")
def closed_url(folder: Path) -> Iterator[str]:
    """The address of a control plane that asks for tokens."""
    with run_app(folder, authentication=Authentication.TOKENS) as address:
        yield address


def test_a_token_is_printed_alone_once_and_listed_without_its_secret(tmp_path: Path) -> None:
    token = create(tmp_path, "ci", "editor", "--expires-days", "30")
    assert token.startswith("tide_")
    assert len(token.split()) == 1
    as_json = json.loads(create(tmp_path, "reader", "viewer", "-o", "json"))
    assert as_json["token"].startswith("tide_")
    shown = invoke("tokens", "list", TIDE_DATA_DIR=str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert token not in shown.stdout
    titles, first, second = shown.stdout.splitlines()
    assert titles.split() == ["NAME", "ROLE", "STATUS", "AGE", "LAST", "USED", "EXPIRES"]
    assert first.split()[:3] == ["ci", "editor", "valid"]
    assert second.split()[0::4] == ["reader", "-"], "never used"
    assert second.endswith("never")
    listed = json.loads(invoke("tokens", "list", "--data-dir", str(tmp_path), "-o", "json").stdout)
    assert [(each["name"], each["role"], each["status"]) for each in listed] == [
        ("ci", "editor", "valid"), ("reader", "viewer", "valid")
    ]  # fmt: skip
    assert listed[0]["expires_at"] is not None
    assert listed[1]["expires_at"] is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("create", "--name", "a b", "--role", "viewer"), "[name]"),
        (("create", "--name", "a", "--role", "admin"), "viewer or editor"),
        (("revoke", "nobody"), "no token 'nobody'"),
        (("list", "--database-url", "postgresql+asyncpg://u:hush@127.0.0.1:1/x"), "cannot be used"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    answer = invoke("tokens", *words, "--data-dir", str(tmp_path))
    assert answer.exit_code == 1
    assert named in answer.stderr
    assert "hush" not in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_commands_show_the_token_of_the_environment(closed_url: str, folder: Path) -> None:
    without = invoke("jobs", "list", "--url", closed_url)
    assert without.exit_code == 1
    assert "Set TIDE_TOKEN" in without.stderr
    wrong = invoke("jobs", "list", "--url", closed_url, TIDE_TOKEN="tide_wrong")
    assert "unknown" in wrong.stderr
    assert "tide_wrong" not in wrong.output
    no_token = invoke("jobs", "list", "--url", closed_url, TIDE_TOKEN="two words")
    assert "[TIDE_TOKEN]" in no_token.stderr

    token = create(folder, "terminal", "viewer")
    for words in (("jobs", "list"), ("teachers",)):
        answer = invoke(*words, "--url", closed_url, TIDE_TOKEN=f" {token}\n")
        assert answer.exit_code == 0, answer.stderr
    steered = invoke("jobs", "cancel", "job-x", "--url", closed_url, TIDE_TOKEN=token)
    assert "'terminal' has the role viewer" in steered.stderr
    assert invoke("tokens", "revoke", "terminal", "--data-dir", str(folder)).exit_code == 0
    assert "revoked" in invoke("teachers", "--url", closed_url, TIDE_TOKEN=token).stderr


def test_a_server_that_strangers_reach_does_not_start_without_tokens(tmp_path: Path) -> None:
    port = find_free_port()
    where = ("--host", "0.0.0.0", "--port", str(port), "--data-dir", str(tmp_path / "d"))
    for command in ("serve", "up"):
        answer = invoke(command, *where)
        assert answer.exit_code == 1
        assert answer.stderr.startswith("error [authentication]: ")
        for name in ("TIDE_AUTHENTICATION=tokens", "TIDE_ALLOW_UNAUTHENTICATED", "tide tokens create"):
            assert name in answer.stderr
    for flags in (("--authentication", "tokens"), ("--allow-unauthenticated",)):
        _serves(port, *where, *flags)


def _serves(port: int, *flags: str) -> None:
    command = [sys.executable, "-m", "tide.cli.main", "serve", *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, f"`tide serve` ended with {flags}"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(20)


def test_a_secret_setting_that_is_wrong_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "tide.yaml"
    file.write_text("bootstrap_token: [tide_hush]\n")
    answer = invoke("serve", "--data-dir", str(tmp_path), TIDE_CONFIG=str(file))
    assert "bootstrap_token" in answer.stderr
    assert "hush" not in answer.output
