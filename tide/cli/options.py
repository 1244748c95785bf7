"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TIDE_URL",
        help="Address of the control plane; default: that of the `tide up` of this folder.",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people, json for programs.")]
JobArgument = Annotated[str, typer.Argument(help="Id of the job, as `tide jobs list` shows it.")]
