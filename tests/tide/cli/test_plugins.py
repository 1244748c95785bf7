"""Commands of other packages: found by entry points, listed also where they cannot run."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tide.cli import main as cli
from tide.cli import plugins

COMMANDS = {
    "service": ("up", "serve", "down", "doctor", "tokens"),
    "workers": ("sample", "convert", "demo", "measure"),
}


def invoke(*words: str) -> Result:
    invoked = next((word for word in words if not word.startswith("-")), None)
    return CliRunner().invoke(cli.build_app(invoked), list(words), env={"COLUMNS": "200"})


def test_the_commands_that_are_declared_are_the_ones_that_are_found() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"][plugins.GROUP]
    assert {entry.name: entry.value for entry in entry_points(group=plugins.GROUP)} == declared
    assert set(declared) == {name for names in COMMANDS.values() for name in names}


def test_all_are_listed_with_what_they_do() -> None:
    listed = invoke("--help").output
    for name in (*COMMANDS["service"], *COMMANDS["workers"], *cli.OWN):
        assert f"  {name} " in listed
    assert "needs" not in listed
    assert "Run Tide on this machine" in listed


@pytest.mark.parametrize("side", COMMANDS)
def test_a_side_that_is_not_installed_says_what_to_install(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.SIDES, side, ("no_such_module",))
    listed = " ".join(invoke("--help").output.split())
    for name in COMMANDS[side]:
        assert f"{name} (needs tide-distill[{side}]) " in listed
        for words in ([], ["--help"], ["list", "--name", "x", "-o", "json"]):
            answer = invoke(name, *words)
            assert answer.exit_code == 1
            assert f"pip install 'tide-distill[{side}]'" in answer.stderr
            assert answer.stdout == ""
    other = next(each for each in COMMANDS if each != side)
    assert f"(needs tide-distill[{other}])" not in listed


class Installed:
    """Entry points of a test's own."""

    def __init__(self, **values: str) -> None:
        self.entries = [EntryPoint(name, value, plugins.GROUP) for name, value in values.items()]

    def __call__(self, group: str) -> list[EntryPoint]:
        assert group == plugins.GROUP
        return self.entries


def greet(context: typer.Context) -> None:
    """Greet the words that follow."""
    typer.echo(f"hello {' '.join(context.args)}")


def test_a_package_outside_the_repository_adds_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", Installed(greet=f"{__name__}:greet"))
    assert invoke("greet", "you", "--help").output == "hello you --help\n"
    assert "Greet the words that follow." in invoke("--help").output


def test_a_command_that_cannot_be_loaded_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", Installed(broken="no_such_package:command"))
    answer = invoke("broken", "--help")
    assert answer.exit_code == 1
    assert "error: `tide broken` cannot be loaded: No module named 'no_such_package'." in answer.stderr
    assert "broken" in invoke("--help").output


def test_an_unknown_command_is_said_so() -> None:
    answer = invoke("jbos")
    assert answer.exit_code == 2
    assert "No such command 'jbos'" in answer.stderr
