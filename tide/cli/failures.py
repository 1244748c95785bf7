"""What a person sees of an error: one clear line, no traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

FAILED, INTERRUPTED = 1, 130


@contextmanager
def clear_errors(output: str = "table") -> Iterator[None]:
    """Turn Tide's errors into a line (or, with ``-o json``, an object) on stderr and exit status 1."""
    from tide_core.contracts.errors import TideError

    try:
        yield
    except TideError as error:
        if output == "json":
            body = {"message": error.message, "code": error.code, "param": error.param}
            typer.echo(json.dumps({"error": body}), err=True)
        else:
            where = f" [{error.param}]" if error.param else ""
            typer.echo(f"error{where}: {error.message}", err=True)
        raise typer.Exit(FAILED) from None
    except BrokenPipeError:  # `tide jobs list | head`
        sys.stderr.close()
        raise typer.Exit(FAILED) from None
