"""A person opens the page while a job, posted over REST, runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

from tests.support.fetching import find_program
from tests.support.running_tide import Service, job_spec

QUIET = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def page() -> Iterator[object]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_program("chromium"), args=QUIET)
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def test_the_page_shows_a_job_from_its_start_to_its_curve_and_end(
    tide: Service, page: object, tmp_path: Path
) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # Chromium reports a body that a script read as a stream as aborted, though every byte of it arrived.
    page.on("requestfailed", lambda r: r.url.endswith("/stream") or problems.append(r.url))
    page.goto(tide.url)
    spec = job_spec(tmp_path, steps=60, name="seen in a browser")
    row = f'[data-job="{tide.client.jobs.create(spec).id}"]'

    page.wait_for_selector(row)  # it appears without a reload
    page.wait_for_selector(f"{row} progress", timeout=120_000)
    page.wait_for_selector('#teachers .state:text-is("ready")', timeout=120_000)
    page.click(f'{row} >> text="seen in a browser"')
    page.wait_for_selector('.chart[data-points]:not([data-points="0"]) canvas', timeout=120_000)
    page.wait_for_selector('#job .state:text-is("succeeded")', timeout=120_000)
    page.wait_for_selector('ol.events >> text="job.succeeded"')
    page.wait_for_selector("#job >> text=training state")
    if picture := os.environ.get("TIDE_SCREENSHOT"):
        page.screenshot(path=picture, full_page=True)

    page.goto(tide.url)
    page.wait_for_selector(f'{row}[data-state="succeeded"]')
    assert problems == [], "the page asks for nothing that is not there"
    assert not page.is_visible("#offline")


def test_a_server_that_went_away_is_said_so(tide: Service, page: object) -> None:
    page.goto(tide.url)
    page.route("**/ui/fragments/**", lambda route: route.abort())
    page.wait_for_selector("#offline:visible", timeout=15_000)
    page.unroute("**/ui/fragments/**")
    page.wait_for_selector("#offline", state="hidden", timeout=15_000)


def test_an_unknown_job_is_a_clear_answer(tide: Service) -> None:
    answer = httpx.get(f"{tide.url}/ui/jobs/nobody", timeout=10)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text
