"""`tide`: the command line.

Only what the invoked command needs is imported, so that `tide --help` answers at once and a control plane
without torch or Ray still has its own commands.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands import tokens
from tide.cli import jobs, plan, teachers
from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption

PLUGINS = "tide.commands"
_SETTINGS_COMMANDS = {
    "up": "Run Tide on this machine: a local Ray head, the control plane and the page.",
    "serve": "Run the control plane alone, next to a Ray cluster that runs elsewhere.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `tide` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    build_app(next((word for word in given if not word.startswith("-")), None))(given, prog_name="tide")


def build_app(invoked: str | None) -> typer.Typer:
    """The application, with the invoked command in full and the expensive other ones in name only."""
    app = typer.Typer(
        help="Distils diffusion language models as a service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: brackets stay brackets
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, text in _SETTINGS_COMMANDS.items():
        app.command(name)(_settings_command(name, text) if invoked == name else _stub(name, text))
    app.command("down")(_down)
    app.command("doctor")(_doctor)
    app.add_typer(jobs.app, name="jobs")
    app.command("teachers")(teachers.list_teachers)
    app.add_typer(tokens.app, name="tokens")
    app.command("plan")(plan.plan_job)
    known = {"up", "serve", "down", "doctor", "jobs", "teachers", "tokens", "plan"}
    if invoked not in known:
        _add_plugins(app)
    return app


def _settings_command(name: str, text: str) -> Callable[..., None]:
    from service.commands import server
    from service.commands.setting_flags import with_setting_flags

    return with_setting_flags(getattr(server, name), name, text)


def _stub(name: str, text: str) -> Callable[[], None]:
    def stub() -> None:
        raise AssertionError(f"{name} is built in full when it is invoked")

    stub.__doc__ = text
    return stub


def _down(
    data_dir: Annotated[
        Path, typer.Option(envvar="TIDE_DATA_DIR", help="Data folder of the `tide up` to end.")
    ] = Path(".tide"),
) -> None:
    """End the Tide of a data folder, and what a killed one left behind."""
    with clear_errors():
        from service.commands import server

        server.down(data_dir)


def _doctor(
    data_dir: Annotated[Path, typer.Option(envvar="TIDE_DATA_DIR", help="Data folder to look at.")] = Path(
        ".tide"
    ),
    output: OutputOption = Output.TABLE,
) -> None:
    """Look at what is installed, at ports, memory, disk and Ray, and say what to do."""
    with clear_errors(output):
        from service.commands.doctor import run

        run(data_dir, output)


def _add_plugins(app: typer.Typer) -> None:
    """Commands that other packages bring along (`convert`, `sample`, `demo` from the workers' side)."""
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=PLUGINS), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except ImportError as error:
            app.command(entry.name)(_missing(entry.name, error))
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name, context_settings=_context_settings(command))(command)


def _context_settings(command: Callable[..., Any]) -> dict[str, Any] | None:
    """A command that takes nothing but its context reads the words itself, `--help` included."""
    annotations = inspect.get_annotations(command, eval_str=True)
    names = list(inspect.signature(command).parameters)
    if len(names) == 1 and annotations.get(names[0]) is typer.Context:
        return {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    return None


def _missing(name: str, error: ImportError) -> Callable[[], None]:
    reason = str(error)

    def missing() -> None:
        typer.echo(
            f"error: `tide {name}` cannot be loaded: {reason}. Install tide-distill[workers].", err=True
        )
        raise typer.Exit(1)

    missing.__doc__ = "(not installed)"
    return missing


if __name__ == "__main__":
    main()
