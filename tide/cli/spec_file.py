"""Reading a job spec from a file or from standard input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
import yaml

from tide_core.contracts.errors import InvalidInputError


def read_spec(source: str) -> dict[str, Any]:
    """A job spec as a document; YAML contains JSON, so one parser reads both.

    Raises:
        InvalidInputError: ``bad_spec_file``: unreadable, not YAML or JSON, or not a mapping.
    """
    try:
        text = typer.get_text_stream("stdin").read() if source == "-" else Path(source).read_text()
    except OSError as error:
        raise InvalidInputError(f"Cannot read {source}: {error.strerror}.", code="bad_spec_file") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{source} is not a text file in UTF-8.", code="bad_spec_file") from None
    name = "standard input" if source == "-" else source
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{name} is neither YAML nor JSON: {error}", code="bad_spec_file") from None
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{name} must hold a job spec, a mapping of fields; see docs/job-spec.md.", code="bad_spec_file"
        )
    return document


class _Loader(yaml.SafeLoader):
    """Reads `5e-5` as the number it is: YAML 1.1 needs a dot in it, which is easily forgotten."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
