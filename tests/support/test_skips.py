"""A skipped test ends a strict run with an error, in one process and in several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import skips

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]

SUITE = """
import pytest

def test_that_runs():
    pass

def test_without_a_tool():
    pytest.skip("no spoon here: apt-get install spoon")
"""
EXCUSED = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu():
    pass

@pytest.mark.soak
def test_for_long():
    pytest.skip("no nodes here")

@pytest.mark.xfail
def test_that_fails_as_expected():
    assert False
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a suite of its own, in a run of continuous integration."""
    markers = "\n    ".join(("gpu", "soak", "browser", "custom_resources"))
    pytester.makeini(f"[pytest]\nmarkers =\n    {markers}\n")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


FLAGS = ("-p", "tests.support.skips", "-p", "no:cacheprovider")
IN_TWO_PROCESSES = ("-p", "xdist.plugin", "-n2")


def run(suite: pytest.Pytester, *flags: str) -> pytest.RunResult:
    """One run of the suite in a child process, with the plugin and further flags."""
    return suite.runpytest_subprocess(*FLAGS, *flags)


@pytest.mark.parametrize("flags", [(), IN_TWO_PROCESSES], ids=["one process", "two processes"])
def test_a_skip_is_an_error_that_says_how_to_get_what_is_missing(
    suite: pytest.Pytester, flags: tuple[str, ...]
) -> None:
    suite.makepyfile(SUITE)
    result = run(suite, *flags)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*skipped, which is an error here*", "1 skipped: no spoon here: apt-get *"])


def test_a_module_that_is_skipped_as_a_whole_is_one_too(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\npytest.importorskip('no_such_module')")
    for flags in ((), IN_TWO_PROCESSES):
        result = run(suite, *flags)
        assert result.ret != pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["1 skipped: could not import 'no_such_module'*"])


def test_a_missing_gpu_a_soak_test_and_an_expected_failure_are_excused(suite: pytest.Pytester) -> None:
    suite.makepyfile(EXCUSED)
    result = suite.runpytest_inprocess(*FLAGS)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*skipped and excused*", "1 skipped: no nodes here"])
    result.stdout.no_fnmatch_line("*which is an error*")


def test_a_gpu_test_that_lacks_something_else_is_not_excused(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.gpu\ndef test_it(): pass")
    suite.makeconftest(
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    items[0].add_marker(pytest.mark.skip(reason='no kernel'))"
    )
    assert run(suite).ret == pytest.ExitCode.TESTS_FAILED


def test_elsewhere_the_skips_are_only_listed(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile(SUITE)
    monkeypatch.delenv("CI")
    monkeypatch.setenv("PATH", "/nowhere")  # no apt-get there
    result = run(suite)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["1 skipped: no spoon here: apt-get install spoon"])


def test_files_that_no_registry_offers_are_an_error_in_integration_alone(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.custom_resources\ndef test_it(): pass")
    monkeypatch.setenv("TIDE_CRDS", str(suite.path / "absent"))
    refused = run(suite)
    assert refused.ret == pytest.ExitCode.TESTS_FAILED
    refused.stdout.fnmatch_lines(["1 skipped: no custom resource definitions in *: set TIDE_CRDS"])
    monkeypatch.delenv("CI")
    listed = run(suite)
    assert listed.ret == pytest.ExitCode.OK
    listed.stdout.fnmatch_lines(["1 skipped: no custom resource definitions in *: set TIDE_CRDS"])


def test_root_with_a_package_manager_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(skips, "has_package_manager", lambda: True)
    assert skips.is_strict()
    monkeypatch.setattr(skips, "has_package_manager", lambda: False)
    assert not skips.is_strict()
