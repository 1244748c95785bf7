"""How errors are shown to people: one clear line, no traceback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tide_core.contracts.errors import TideError

FAILED, INTERRUPTED = 1, 130


@contextmanager
def clear_errors(output: str = "table") -> Iterator[None]:
    """Turn Tide's errors into a line (or, with ``-o json``, an object) on stderr and exit status 1."""
    from tide_core.contracts.errors import TideError

    try:
        yield
    except TideError as error:
        message = error.message + _token_hint(error)
        if output == "json":
            body = {"message": message, "code": error.code, "param": error.param}
            typer.echo(json.dumps({"error": body}), err=True)
        else:
            where = f" [{error.param}]" if error.param else ""
            typer.echo(f"error{where}: {message}", err=True)
        raise typer.Exit(FAILED) from None
    except BrokenPipeError:  # `tide jobs list | head`
        sys.stderr.close()
        raise typer.Exit(FAILED) from None


def _token_hint(error: TideError) -> str:
    """Say where the refused token came from, or how to give one."""
    from tide.connecting import ENV_TOKEN
    from tide.errors import AuthenticationError

    if not isinstance(error, AuthenticationError):
        return ""
    if os.environ.get(ENV_TOKEN, "").strip():
        return f" (The token that was sent is the one in {ENV_TOKEN}.)"
    return f" (Set {ENV_TOKEN} to a token.)"
