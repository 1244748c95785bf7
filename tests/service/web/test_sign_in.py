"""A person signs in to the page with a token, and is signed out when it is revoked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from service.access import client_tokens
from service.access.tables import Role
from service.app import create_app
from service.db.session import Database
from service.orchestrator.embedded_ray import find_free_port
from service.orchestrator.fake_compute import FakeCompute
from service.settings import Authentication, Settings
from tests.support.fetching import find_program

pytestmark = [pytest.mark.slow, pytest.mark.browser]


class Closed:
    """A control plane over HTTP that wants tokens."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            data_dir=folder,
            port=find_free_port(),
            authentication=Authentication.TOKENS,
            events_poll_seconds=0.05,
        )
        self.url = f"http://127.0.0.1:{self.settings.port}"
        app = create_app(self.settings, FakeCompute())
        config = uvicorn.Config(app, port=self.settings.port, log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)

    def end(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def create(self, name: str, role: Role) -> str:
        return str(self._write(lambda session: client_tokens.create(session, name, role, None)))

    def revoke(self, name: str) -> None:
        self._write(lambda session: client_tokens.revoke(session, name))

    def _write(self, action: Any) -> Any:
        async def run() -> Any:
            database = Database(self.settings.resolved_database_url)
            async with database.write() as session:
                result = await action(session)
            await database.close()
            return result

        outcome: list[Any] = []
        # A thread of its own: the browser's driver runs a loop in this one.
        thread = threading.Thread(target=lambda: outcome.append(asyncio.run(run())))
        thread.start()
        thread.join()
        return outcome[0]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Closed]:
    made = Closed(tmp_path / "data")
    made.start()
    yield made
    made.end()


@pytest.fixture
def browser_page() -> Iterator[Any]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=find_program("chromium"), args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        opened = browser.new_page(viewport={"width": 1100, "height": 800})
        opened.set_default_timeout(20_000)
        yield opened
        browser.close()


def sign_in(page: Any, token: str) -> None:
    page.fill("#token", token)
    page.click('#sign-in button[type="submit"]')


def test_sign_in_follow_a_job_and_be_signed_out(
    closed: Closed, browser_page: Any, job_body: dict[str, Any]
) -> None:
    page, problems = browser_page, []
    page.on("pageerror", lambda error: problems.append(str(error)))
    editor = {"Authorization": f"Bearer {closed.create('poster', Role.EDITOR)}"}
    posted = httpx.post(f"{closed.url}/v1/jobs", json=job_body | {"name": "a secret job"}, headers=editor)
    job_id = posted.json()["id"]

    page.goto(closed.url)
    page.wait_for_selector("#sign-in")
    assert "a secret job" not in page.content()
    assert page.is_hidden("[role=alert]")
    sign_in(page, "tide_" + "x" * 43)
    page.wait_for_selector('[role=alert]:visible:has-text("does not know this token")')
    assert page.is_visible("#sign-in")

    sign_in(page, closed.create("reader", Role.VIEWER))
    page.wait_for_selector(f'[data-job="{job_id}"]')
    assert page.query_selector("#sign-in") is None
    page.wait_for_selector("#sign-out:visible")
    page.wait_for_function("document.querySelector('#jobs').dataset.last !== undefined")  # it is kept fresh

    # Another page of the same tab is signed in already, and hears of events as they happen.
    page.click(f'[data-job="{job_id}"] >> text="a secret job"')
    page.wait_for_selector('ol.events >> text="job.queued"')
    assert page.title() == "a secret job · Tide"
    assert httpx.post(f"{closed.url}/v1/jobs/{job_id}/cancel", headers=editor).status_code == 200
    page.wait_for_selector('ol.events >> text="job.cancelled"')
    page.wait_for_selector('#job .state:text-is("cancelled")')
    assert page.locator('ol.events >> text="job.queued"').count() == 1
    assert page.context.cookies() == []
    assert "tide_" not in page.url

    closed.revoke("reader")
    page.wait_for_selector('[role=alert]:visible:has-text("was revoked")')
    assert page.is_visible("#sign-in")
    assert "a secret job" not in page.content()
    assert problems == []


def test_sign_out_forgets_the_token(closed: Closed, browser_page: Any) -> None:
    page = browser_page
    page.goto(closed.url)
    sign_in(page, closed.create("reader", Role.VIEWER))
    page.click("#sign-out:visible")
    page.wait_for_selector("#sign-in")
    page.reload()
    page.wait_for_selector("#sign-in")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_page_that_is_not_there_is_said_so(closed: Closed, browser_page: Any) -> None:
    page = browser_page
    page.goto(f"{closed.url}/ui/jobs/nobody")
    sign_in(page, closed.create("reader", Role.VIEWER))
    page.wait_for_selector('[role=alert]:visible:has-text("no such page")')
