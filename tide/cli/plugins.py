"""Commands that other packages add to `tide`, by entry points of the group `tide.commands`.

In: the entry points that are installed. Out: their commands. A command whose side of Tide is not installed is
listed all the same, and says what to install.

An entry names a function, a `typer.Typer` with commands of its own, or a `LazyCommand`. Its module must
import nothing heavy: all of them are imported for `tide --help`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import typer

GROUP = "tide.commands"
SIDES = {"service": ("fastapi", "sqlalchemy", "uvicorn"), "workers": ("ray", "torch")}
"""Packages of Tide that need an extra of the same name, and modules that are there when it is installed."""
Command = Callable[..., Any]
_TAKES_ANY_WORDS: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is expensive to describe: it is built when it is invoked, and only named otherwise.

    Attributes:
        help: what it does, in a sentence.
        build: makes the command.
    """

    help: str
    build: Callable[[], Command]


def add_plugins(app: typer.Typer, invoked: str | None) -> None:
    """Add the command that is invoked; all of them, when none or an unknown one is.

    Args:
        app: where to add them.
        invoked: the first word of the command line that is no option.
    """
    installed = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    chosen = [entry for entry in installed if entry.name == invoked] or installed
    for entry in chosen:
        _add(app, entry, is_invoked=entry.name == invoked)


def lacks(side: str) -> bool:
    """Whether the extra of a side is not installed; False for what is no side of Tide."""
    return any(find_spec(module) is None for module in SIDES.get(side, ()))


def _add(app: typer.Typer, entry: EntryPoint, *, is_invoked: bool) -> None:
    name, side = entry.name, entry.module.split(".")[0]
    try:
        command = entry.load()
    except ImportError as error:
        _add_unusable(app, name, "(cannot be loaded)", f"cannot be loaded: {error}.")
        return
    if lacks(side):
        package = f"tide-distill[{side}]"
        note = f"(needs {package}) {_summarise(command)}"
        _add_unusable(app, name, note, f"needs more than the client. Run: pip install '{package}'")
    elif isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    elif isinstance(command, LazyCommand):
        app.command(name)(command.build() if is_invoked else _name_only(name, command.help))
    else:
        app.command(name, context_settings=_context_settings(command))(command)


def _add_unusable(app: typer.Typer, name: str, text: str, reason: str) -> None:
    """Add a command that only says why it cannot run, whatever words follow it."""

    def unusable(context: typer.Context) -> None:
        typer.echo(f"error: `tide {name}` {reason}", err=True)
        raise typer.Exit(1)

    unusable.__doc__ = text
    app.command(name, context_settings=_TAKES_ANY_WORDS)(unusable)


def _summarise(command: Command | typer.Typer | LazyCommand) -> str:
    """The first paragraph of a command's help, in one line."""
    if isinstance(command, LazyCommand):
        text = command.help
    elif isinstance(command, typer.Typer):
        text = str(command.info.help)
    else:
        text = inspect.getdoc(command) or ""
    return " ".join(text.split("\n\n")[0].split())


def _name_only(name: str, text: str) -> Command:
    def stub() -> None:
        raise AssertionError(f"{name} is built in full when it is invoked")

    stub.__doc__ = text
    return stub


def _context_settings(command: Command) -> dict[str, Any] | None:
    """A command that takes nothing but its context reads the words itself, `--help` included."""
    annotations = inspect.get_annotations(command, eval_str=True)
    names = list(inspect.signature(command).parameters)
    if len(names) == 1 and annotations.get(names[0]) is typer.Context:
        return _TAKES_ANY_WORDS
    return None
