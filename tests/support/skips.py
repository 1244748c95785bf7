"""A skip is a failure: a pytest plugin that ends a run with an error when a test was skipped.

In: the reports of all tests, from this process or from the processes of xdist. Out: a list of what was
skipped and how to get what is missing, and the exit status. Strict runs are those of continuous integration
(``CI=true``) and of root with a package manager, where `make test` can install what is missing; elsewhere the
list is only printed. Tests with the marker `soak` may skip with a reason, and each entry of `NEEDS` says when
its absence is excused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.support.fetching import CRDS, NotAvailableError, find_program, has_package_manager

T = TypeVar("T")
SOAK = "soak"


def require(find: Callable[..., T], *arguments: object) -> T:
    """What a function of `tests/support/fetching.py` finds; where it finds nothing, the test is skipped."""
    try:
        return find(*arguments)
    except NotAvailableError as error:
        pytest.skip(str(error))


def is_integration() -> bool:
    """Whether this is a run of continuous integration."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def is_strict() -> bool:
    """Whether a skip ends the run with an error."""
    return is_integration() or has_package_manager()


@dataclass(frozen=True)
class Need:
    """What the tests with a marker need, where a machine may lack it."""

    marker: str
    reason: str
    """What is missing, and how to get it."""
    is_there: Callable[[], bool]
    is_excused: Callable[[], bool]
    """Whether tests may skip for this reason in a strict run."""


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_chromium() -> bool:
    try:
        find_program("chromium")
    except NotAvailableError:
        return False
    return True


NEEDS = (
    Need("gpu", "no CUDA device here", _has_gpu, is_excused=lambda: True),
    Need("browser", "no chromium here: apt-get install chromium", _has_chromium, is_excused=lambda: False),
    Need(
        "custom_resources",
        f"no custom resource definitions in {CRDS}: set TIDE_CRDS",
        CRDS.is_dir,
        is_excused=lambda: not is_integration(),
    ),
)


class SkipRecorder:
    """Counts the skips of a run by reason; lives in the process that the user started."""

    def __init__(self) -> None:
        self.excused: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a skipped test, unless it is an expected failure."""
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = read_reason(report)
            (self.excused if is_excused(reason, set(report.keywords)) else self.refused)[reason] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a module that was skipped as a whole."""
        if report.skipped:
            self.refused[read_reason(report)] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the reasons of all skips, the excused ones apart."""
        if self.excused:
            terminalreporter.section("skipped and excused")
            _list_reasons(terminalreporter, self.excused)
        if not self.refused:
            return
        title = "skipped, which is an error here" if is_strict() else "skipped"
        terminalreporter.section(title, red=is_strict(), yellow=not is_strict())
        _list_reasons(terminalreporter, self.refused)
        if is_strict():
            terminalreporter.line("`make test` installs what it can; only a missing GPU excuses a skip.")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a good end into an error."""
        if self.refused and is_strict() and session.exitstatus in (pytest.ExitCode.OK, 0):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _list_reasons(terminalreporter: pytest.TerminalReporter, reasons: Counter[str]) -> None:
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count} skipped: {reason}")


def read_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def is_excused(reason: str, markers: set[str]) -> bool:
    """Whether a test with these markers may be skipped for this reason."""
    if SOAK in markers:
        return True
    return any(need.marker in markers and need.reason == reason and need.is_excused() for need in NEEDS)


def pytest_configure(config: pytest.Config) -> None:
    """Record skips, but not in the processes of xdist: their reports reach the first one."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipRecorder(), "skip-recorder")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose need the machine cannot meet."""
    for need in NEEDS:
        marked = [item for item in items if item.get_closest_marker(need.marker)]
        if marked and not need.is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=need.reason))
