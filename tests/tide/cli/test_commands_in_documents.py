"""The `tide` commands that documents show exist, with the options that they show."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SHOWN = re.compile(r"(?:^|`|-- |\()tide ((?:[a-z]+ ?)+[^`\n#|]*)", re.MULTILINE)
GROUPS = ("jobs", "tokens")
"""Commands that have commands of their own."""


def commands_of(text: str) -> set[tuple[str, tuple[str, ...]]]:
    """What a document shows: the command's words, and its options."""
    shown = set()
    for line in SHOWN.findall(text):
        words = line.split()
        length = (
            2 if words[0] in GROUPS and len(words) > 1 and words[1].isalpha() and words[1].islower() else 1
        )
        options = tuple(
            sorted(word.rstrip(".,;:)") for word in words if word.startswith("--") and len(word) > 2)
        )
        shown.add((" ".join(words[:length]), options))
    return shown


def shown_commands() -> list[tuple[str, tuple[str, ...]]]:
    """The commands of all documents."""
    return sorted(set().union(*(commands_of(document.read_text()) for document in DOCUMENTS)))


@functools.cache
def help_of(command: str) -> str:
    """What `tide COMMAND --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tide.cli.main", *command.split(), "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
        timeout=60,
    )
    assert done.returncode == 0, f"tide {command}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("command", "options"), shown_commands())
def test_a_shown_command_exists_with_its_options(command: str, options: tuple[str, ...]) -> None:
    text = help_of(command)
    assert text.startswith("Usage: ")
    for option in options:
        assert re.search(rf"{option}\b", text), f"tide {command} has no {option}"


def test_commands_are_found_in_blocks_and_in_lines() -> None:
    text = "```\ntide jobs list -o json\n```\n`tide up --help` or (`kubectl exec P -- tide tokens revoke x`)."
    assert commands_of(text) == {("jobs list", ()), ("up", ("--help",)), ("tokens revoke", ())}
