"""The commands of the control plane's side, as `tide` finds them by entry points.

Importing this module costs nothing: what a command needs is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption
from tide.cli.plugins import LazyCommand
from tide.instance import DEFAULT_FOLDER, ENV_DATA_DIR

_UP = "Run Tide on this machine: a local Ray head, the control plane and the page."
_SERVE = "Run the control plane alone, next to a Ray cluster that runs elsewhere."


def _build_up() -> Callable[..., None]:
    from service.commands.server import up
    from service.commands.setting_flags import with_setting_flags

    return with_setting_flags(up, "up", _UP)


def _build_serve() -> Callable[..., None]:
    from service.commands.server import serve
    from service.commands.setting_flags import with_setting_flags

    return with_setting_flags(serve, "serve", _SERVE)


up = LazyCommand(_UP, _build_up)
serve = LazyCommand(_SERVE, _build_serve)


def down(
    data_dir: Annotated[
        Path, typer.Option(envvar=ENV_DATA_DIR, help="Data folder of the `tide up` to end.")
    ] = Path(DEFAULT_FOLDER),
) -> None:
    """End the Tide of a data folder, and the processes that a killed one left running."""
    with clear_errors():
        from service.commands import server

        server.down(data_dir)


def doctor(
    data_dir: Annotated[Path, typer.Option(envvar=ENV_DATA_DIR, help="Data folder to look at.")] = Path(
        DEFAULT_FOLDER
    ),
    output: OutputOption = Output.TABLE,
) -> None:
    """Check what is installed, ports, memory, disk and Ray, and say what to do."""
    with clear_errors(output):
        from service.commands.doctor import run

        run(data_dir, output)
